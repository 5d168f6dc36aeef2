"""Data sets, one file per source; each registers itself (see `rdm.registry`)."""
