"""Hydra callbacks of launchers, a module each: what is to be done before a launcher starts."""
