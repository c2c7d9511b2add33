"""DINOv2 (Oquab et al., arXiv 2304.07193) from the weights that its authors publish, on timm's ViT."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional

_SIDE, _PATCH, _HEAD = 224, 14, 64
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def dinov2_network(tensors: Mapping[str, Tensor]) -> VisionTransformer:
    """The ViT without registers that a checkpoint holds, for images of 224 pixels a side.

    Positions of the 518 pixels that it was trained on are interpolated as its own code does.
    """
    width = tensors["cls_token"].shape[-1]
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    network = VisionTransformer(
        img_size=_SIDE,
        patch_size=_PATCH,
        embed_dim=width,
        depth=depth,
        num_heads=width // _HEAD,
        init_values=1.0,
        num_classes=0,
    )
    own = {name: value for name, value in tensors.items() if name != "mask_token"}
    network.load_state_dict(own | {"pos_embed": _positions(tensors["pos_embed"])})
    return network.eval().requires_grad_(False)


def _positions(trained: Tensor) -> Tensor:
    """Embeddings of positions [1, 1 + n n, C] on the grid of 224 pixels."""
    grid, side = round((trained.shape[1] - 1) ** 0.5), _SIDE // _PATCH
    if grid == side:
        return trained
    patches = trained[:, 1:].unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    scale = (side + 0.1) / grid  # DINOv2's `interpolate_offset`
    found = functional.interpolate(patches, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([trained[:, :1], found.permute(0, 2, 3, 1).flatten(1, 2)], 1)


def dinov2_features(network: VisionTransformer, images: Tensor) -> Tensor:
    """The normalised class token [B, C] of uint8 images [B, 3, H, W]."""
    x = functional.interpolate(images.float(), (_SIDE, _SIDE), mode="bicubic", antialias=True)
    x = x.round().clamp(0, 255) / 255  # as an image that was resized and stored
    mean, std = (x.new_tensor(values)[:, None, None] for values in (_MEAN, _STD))
    found: Tensor = network.forward_features((x - mean) / std)[:, 0]
    return found
