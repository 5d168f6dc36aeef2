"""What keeps a run whatever happens to it: checkpoints while training goes on, signals, full disks, lost ranks."""
