"""Thresholds of the skip rule, and the counts of what it skipped."""
