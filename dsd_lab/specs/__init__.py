"""Specs: the only place that knows the names, ranges and defaults of what a sweep can vary."""
