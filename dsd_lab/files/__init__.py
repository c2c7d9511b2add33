"""Atomic writes, locks, mounts."""
