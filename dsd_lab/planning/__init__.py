"""What a trial will need: time, memory, disk, files."""
