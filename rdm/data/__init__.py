"""What items are read from: sources and data sets, in memory or on disk. Knows no distance."""
