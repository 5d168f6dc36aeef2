"""Where the points of a sweep are trained; one file an engine."""
