"""The trainer: batches, optimiser, EMAs, checkpoints, events."""
