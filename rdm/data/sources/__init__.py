"""Forms of data that `rdm reference` and `rdm evaluate` read, one file each; detected by name and content."""
