"""How far reading a data set is, for whoever waits for it: a data set of a million images is read for an hour."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

OnProgress = Callable[[str, int, int], None]
"""Called with what is done, the images or files done, and their number."""
_LISTENERS: ContextVar[tuple[OnProgress, ...]] = ContextVar("listeners", default=())


@contextmanager
def listening(on_progress: OnProgress) -> Iterator[None]:
    """Within the block, whatever reads images calls the function from this thread; several may listen."""
    token = _LISTENERS.set((*_LISTENERS.get(), on_progress))
    try:
        yield
    finally:
        _LISTENERS.reset(token)


def tell(what: str, done: int, of: int) -> None:
    """Say how far reading is."""
    for listener in _LISTENERS.get():
        listener(what, done, of)
