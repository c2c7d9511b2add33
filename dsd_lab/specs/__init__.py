"""Specs: names, ranges and defaults of everything that a sweep can vary. They are defined only here."""
