"""A content-addressed store of everything that is expensive to make."""

from osrm_exp.store.names import file_name as file_name
from osrm_exp.store.store import Store as Store
from osrm_exp.store.store import resume as resume
