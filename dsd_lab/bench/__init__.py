"""Measures training steps, evaluations and sweeps on this machine."""
