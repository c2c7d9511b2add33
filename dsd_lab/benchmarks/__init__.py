"""How fast training is on this machine: what `dsd-lab bench` measures, remembers and shows."""
