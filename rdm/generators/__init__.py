"""Generators, one file per family of networks; each registers itself (see `rdm.registry`)."""
