"""Representations, one file per loader family, and named batteries of them; each registers itself."""
