"""What the command line takes, and the commands that need no torch: help, lists, completion."""
