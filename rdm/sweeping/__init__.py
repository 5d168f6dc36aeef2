"""Sweeps from their grid to the engines that train their points."""
