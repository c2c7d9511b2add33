"""Evaluation of trained weights; it reads checkpoints and changes no training result."""
