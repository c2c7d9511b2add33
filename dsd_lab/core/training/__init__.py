"""The trainer: batches, optimiser, averages, checkpoints, events."""
