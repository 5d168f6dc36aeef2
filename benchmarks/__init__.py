"""Benchmarks: speed and peak memory beside peers, accuracy printed next to time. `make bench`."""
