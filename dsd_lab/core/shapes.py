"""Checks of what a plug-in's part returns. Each check returns a message about what is wrong, or None."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def scalar(found: Any, *given: Any) -> str | None:
    """A tensor of one number."""
    return _shape(found, ())


def like_first(found: Any, first: Tensor, *given: Any) -> str | None:
    """A tensor of the first argument's shape."""
    return _shape(found, tuple(first.shape))


def like_second(found: Any, first: Any, second: Tensor, *given: Any) -> str | None:
    """A tensor of the second argument's shape."""
    return _shape(found, tuple(second.shape))


def pair_like_first(found: Any, first: Tensor, *given: Any) -> str | None:
    """Two tensors of the first argument's shape."""
    if not isinstance(found, tuple | list) or len(found) != 2:
        return f"gives a {type(found).__name__}, not two tensors"
    return _shape(found[0], tuple(first.shape)) or _shape(found[1], tuple(first.shape))


def count_second(found: Any, first: Any, count: int, *given: Any) -> str | None:
    """A tensor [count], the count being the second argument."""
    return _shape(found, (count,))


def _shape(found: Any, wanted: tuple[int, ...]) -> str | None:
    if not isinstance(found, Tensor):
        return f"gives a {type(found).__name__}, not a tensor"
    if tuple(found.shape) != wanted:
        text = f"a tensor of shape {list(wanted)}" if wanted else "a scalar"
        return f"gives a tensor of shape {list(found.shape)}, not {text}"
    return None
