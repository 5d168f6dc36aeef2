"""CIFAR-10 to one step, in an hour of one core."""
