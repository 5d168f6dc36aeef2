"""Configurations of the experiments, one gin file each; sweeps are a base file and a grid of bindings."""
