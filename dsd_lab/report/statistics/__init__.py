"""Intervals, verdicts, comparisons and effects."""
