"""Metrics of generated features against real ones, one file a family; each registers itself."""
