"""Flow maps: what a fake network costs and what its surrogate loses."""
