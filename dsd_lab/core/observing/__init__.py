"""Latent metrics, probes and pictures: what is measured while training and changes no result."""
