"""dsd-lab: why jointly trained latent diffusion collapses, what stops it, and how surely one knows."""

__version__ = "0.1.0"
