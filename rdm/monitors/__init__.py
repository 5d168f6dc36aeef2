"""Monitors: what a run measures of its generator now and then, one a file (`rdm.training.watching.Monitor`)."""
