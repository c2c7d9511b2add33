"""Progress of reading a data set, which takes an hour for a million images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

OnProgress = Callable[[str, int, int], None]
"""(activity, images or files done, their total)."""
_LISTENERS: ContextVar[tuple[OnProgress, ...]] = ContextVar("listeners", default=())


@contextmanager
def listening(on_progress: OnProgress) -> Iterator[None]:
    """Within the block, functions that read images in this thread report progress to `on_progress`. Blocks nest."""
    token = _LISTENERS.set((*_LISTENERS.get(), on_progress))
    try:
        yield
    finally:
        _LISTENERS.reset(token)


def tell(what: str, done: int, of: int) -> None:
    """Report progress to all listeners."""
    for listener in _LISTENERS.get():
        listener(what, done, of)
