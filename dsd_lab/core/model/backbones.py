"""Frozen vision models from timm, for alignment and perceptual losses.

Weights are downloaded only if the spec says `pretrained`; otherwise they come from a local file or are random.
"""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dsd_lab.core.randomness import generator
from dsd_lab.errors import BadInput

if TYPE_CHECKING:
    from dsd_lab.specs.sources import NamedBackbone


def check_name(named: NamedBackbone) -> None:
    """Refuse a name that timm does not know.

    Raises:
        BadInput: the name is unknown; the message has the nearest known name.
    """
    import timm

    known = {*timm.list_models(), *timm.list_pretrained()}
    if named.name not in known:
        near = difflib.get_close_matches(named.name, sorted(known), n=1)
        meant = f"; did you mean {near[0]!r}?" if near else "; `timm.list_models()` lists those that there are"
        raise BadInput(f"{named.key}: no timm model {named.name!r}{meant}")


def read_weights(named: NamedBackbone) -> dict[str, Tensor]:
    """Tensors by name from a safetensors or PyTorch file; only tensors are unpickled.

    Raises:
        BadInput: the file is missing or damaged, or holds anything but tensors.
    """
    from timm.models import load_state_dict

    where = f"{named.weights_key}: {named.weights}"
    try:
        found = load_state_dict(named.weights, weights_only=True)
    except FileNotFoundError:
        raise BadInput(f"{where}: no such file; it would hold the weights of {named.name}") from None
    except (
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        KeyError,
        AttributeError,
        pickle.UnpicklingError,
        SafetensorError,
    ) as error:
        raise BadInput(f"{where}: not a safetensors or PyTorch file of tensors alone: {_first_line(error)}") from None
    if not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise BadInput(f"{where}: holds no tensors by name")
    return found


def _first_line(error: Exception) -> str:
    """The most informative line of an error: torch names the first missing weight in its second line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[1][:200] if lines[0].startswith("Error(s) in loading") and len(lines) > 1 else lines[0][:200]


class Backbone:
    """A frozen timm model that extracts features. It is not an `nn.Module`, so its weights are not trained or saved.

    Args:
        named: the model, its weights, and the keys of the spec that name them.
        layers: indices of the features (negative: from the end): blocks of a vision transformer, stages of other
            models; None: timm's default.
        pixels: reduction of the deepest feature -> side of the input images in pixels.
        device: device of the model; on `meta` no weights are read.

    Raises:
        BadInput: the model, a layer or the file does not exist, the file has other weights, a download fails, or the
            model does not accept images of that size.
    """

    def __init__(
        self, named: NamedBackbone, layers: list[int] | None, pixels: Callable[[int], int], device: torch.device
    ) -> None:
        import timm

        check_name(named)
        settings = timm.get_pretrained_cfg(named.name)
        chosen: dict[str, Any] = {}
        try:
            with torch.device("meta"):
                stages = list(timm.create_model(named.name).feature_info)  # type: ignore[arg-type]
                places = _places(named, layers, len(stages))
                if places is not None:
                    chosen["out_indices"] = sorted(set(places))
                deepest = max(int(stages[i]["reduction"]) for i in chosen.get("out_indices", range(len(stages))))
                self.pixels = pixels(deepest)
                if settings.fixed_input_size:  # type: ignore[union-attr]
                    chosen["img_size"] = self.pixels
                self.model = timm.create_model(named.name, features_only=True, **chosen).eval()
                self._order: list[int] | None = None
                shapes = [part.shape for part in self._found(torch.zeros(1, 3, self.pixels, self.pixels))]
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError, AttributeError) as error:
            raise BadInput(f"{named.key}: {named.name} gives no features here: {_first_line(error)}") from None
        if places is not None:  # timm returns them in the order of the model
            self._order = [chosen["out_indices"].index(place) for place in places]
        self.channels = [int(shapes[i][1]) for i in self._order or range(len(shapes))]
        if device.type != "meta":
            self.model = self._loaded(named, chosen).to(device)
        self.model.requires_grad_(False).eval()
        # Buffers on the device: copying them at every call would synchronise with the GPU.
        for name, numbers in (("pixel_mean", settings.mean), ("pixel_std", settings.std)):  # type: ignore[union-attr]
            self.model.register_buffer(name, torch.tensor(numbers, device=device).reshape(1, 3, 1, 1), persistent=False)

    def _loaded(self, named: NamedBackbone, settings: dict[str, Any]) -> nn.Module:
        if not named.from_file:
            try:
                return self._start(named, settings)
            except (OSError, RuntimeError) as error:
                raise BadInput(
                    f"{named.weights_key}: timm cannot fetch the weights of {named.name} ({_first_line(error)}); name a local file of them instead"
                ) from None
        import timm

        heads = timm.get_pretrained_cfg(named.name).classifier or ()  # type: ignore[union-attr]
        dropped = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
        kept = {name: value for name, value in read_weights(named).items() if not name.startswith(dropped)}
        # timm loads some models with strict=False. A weight that a second file does not change was not in the first.
        other = {name: value.float() + 1 if value.is_floating_point() else value for name, value in kept.items()}
        lacking = f"{named.weights_key}: {named.weights} does not hold the weights of {named.name}"
        try:
            first, second = (
                self._start(
                    named,
                    {**settings, "pretrained_cfg_overlay": {"state_dict": s, "num_classes": 0, "label_offset": 0}},
                )
                for s in (kept, other)
            )
        except (RuntimeError, ValueError, KeyError) as error:
            raise BadInput(f"{lacking}: {_first_line(error)}") from None
        others = second.state_dict()
        for name, value in first.state_dict().items():
            if value.is_floating_point() and torch.equal(value, others[name]):
                raise BadInput(f"{lacking}: no {name}")
        return first

    @staticmethod
    def _start(named: NamedBackbone, settings: dict[str, Any]) -> nn.Module:
        import timm

        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(generator(0, "backbone").initial_seed())
            return timm.create_model(named.name, features_only=True, pretrained=named.weights != "random", **settings)

    def features(self, x: Tensor) -> list[Tensor]:
        """Features [B, c, h, w] per layer of images x [B, 1 or 3, H, W] in [-1, 1].

        Grey is repeated to three channels; images are resized and normalised as the model expects.
        """
        x = (x.expand(-1, 3, -1, -1) + 1) / 2
        if x.shape[-1] != self.pixels:
            x = nn.functional.interpolate(x, size=(self.pixels, self.pixels), mode="bilinear", antialias=True)
        return self._found((x - self.model.pixel_mean) / self.model.pixel_std)  # type: ignore[operator]

    def _found(self, x: Tensor) -> list[Tensor]:
        channels_last = str(getattr(getattr(self.model, "output_fmt", None), "value", "NCHW")) == "NHWC"
        found = [part.permute(0, 3, 1, 2) if channels_last else part for part in self.model(x)]
        return found if self._order is None else [found[i] for i in self._order]

    def parameters(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.model.parameters())


def _places(named: NamedBackbone, layers: list[int] | None, count: int) -> list[int] | None:
    if layers is None:
        return None
    for layer in layers:
        if not -count <= layer < count:
            raise BadInput(
                f"{named.layers_key}: {named.name} has {count} layers, {-count} to {count - 1}; {layer} is none of them"
            )
    return [layer % count for layer in layers]
