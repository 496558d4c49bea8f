"""A content-addressed store of everything that is expensive to make."""

from osrm_exp.store.store import Store as Store
