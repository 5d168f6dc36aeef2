"""Trackers: other programs that get every row of a run's log, one a file (`rdm.training.run.Tracker`)."""
