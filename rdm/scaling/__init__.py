"""Generators over several devices: sharded modules, gradients summed over ranks, the norm of the whole gradient."""
