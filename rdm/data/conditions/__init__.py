"""Conditions, one file per family; each registers itself (see `rdm.registry`)."""
