"""The command line and what it does: configuration by gin (its only import), commands, sweeps."""
