"""What generators are judged by.

Metrics with intervals, ratios to fresh real data, evaluations. Imports nothing of training.
"""
