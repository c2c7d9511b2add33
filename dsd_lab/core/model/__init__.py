"""The network, its normalisers, and pretrained backbones."""
