"""The real side: measured once (exact sums, samples, floors), written to one file, read back and checked."""
