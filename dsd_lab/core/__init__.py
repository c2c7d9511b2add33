"""The core: network, objectives, latent metrics, data and trainer. Imports neither Ray nor MLflow nor pandas."""
