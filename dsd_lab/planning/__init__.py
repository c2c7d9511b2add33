"""Predict time, memory, disk space and files of trials."""
