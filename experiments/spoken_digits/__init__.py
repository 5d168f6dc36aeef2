"""Spoken digits: encoders, a flow model of spectrograms, and its post-training to one step."""
