"""Evaluation of trained weights from checkpoints; it never changes a training result."""
