"""Losses that the trainer adds up: one file each."""
