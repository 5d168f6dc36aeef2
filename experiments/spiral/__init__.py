"""Objectives, batches and memories on a spiral in 64 dimensions."""
