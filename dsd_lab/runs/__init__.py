"""Running trials: one in this process, or many through Ray."""
