"""Run trials: one in this process, or many with Ray."""
