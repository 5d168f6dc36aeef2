"""Populations: exact gradients of a distance over more items than one forward pass holds."""
