"""Sweeps as folders that travel: `export` writes one, `import` checks every byte of one before anything is kept."""
