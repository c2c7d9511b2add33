"""Path, objectives and samplers."""
