"""Measure training steps and what happens between them on this machine."""
