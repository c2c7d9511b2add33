"""Decoding, resizing and cropping of image files."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from dsd_lab.core.data.display import as_shown
from dsd_lab.core.data.layout import is_image_name
from dsd_lab.core.data.records import Item
from dsd_lab.errors import BadInput
from dsd_lab.files.image_files import MAX_PIXELS, DamagedImage, open_image

if TYPE_CHECKING:
    from dsd_lab.specs.trial import Data

Given = TypeVar("Given")
Found = TypeVar("Found")
_AHEAD = 8
"""Items per thread that are decoded ahead."""


def decoded(read: Callable[[], bytes | None], where: str, spec: Data) -> np.ndarray:
    """Pixels uint8, [H, W] of a grey image and [H, W, 3] of any other, resized and cropped as the spec says.

    Raises:
        DamagedImage: the image cannot be read, is incomplete, or does not have 8 bits per channel. The message begins
            with `where`.
    """
    try:
        raw = read()
        if not isinstance(raw, bytes):
            raise DamagedImage("no bytes" if raw is None else "not bytes")
        picture = open_image(raw)
    except (DamagedImage, OSError, MemoryError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        name = Path(where.removesuffix(")"))
        if not is_image_name(name.name) and "identify" in reason:
            raise DamagedImage(f"{where}: {_no_image(name)}") from None
        raise DamagedImage(f"{where}: damaged image: {reason}") from None
    if picture.mode.startswith(("I", "F")):
        raise DamagedImage(f"{where}: a picture of mode {picture.mode}; convert it to 8 bits per channel")
    try:
        return np.asarray(framed(as_shown(picture, spec.background), spec))
    except (ValueError, OSError, MemoryError) as error:
        raise DamagedImage(f"{where}: damaged image: {error}") from None


def _no_image(name: Path) -> str:
    known = name.suffix[1:].isalnum() and len(name.suffix) < 9
    return f"not an image but a {name.suffix} file; move it away" if known else "damaged image: not an image"


def framed(picture: Any, spec: Data) -> Any:
    """A Pillow image resized so that its shorter side is `size`, then cropped to its central square.

    Resizing is that of ImageNet diffusion models (`center_crop_arr` of guided-diffusion, Dhariwal and Nichol,
    arXiv 2105.05233; also DiT and SiT): box averages halve the image while it is at least twice as large, then
    bicubic with antialiasing.
    """
    from PIL import Image

    size = spec.size
    if size is not None and min(picture.size) != size:
        while min(picture.size) >= 2 * size:
            picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
        scale = size / min(picture.size)
        wanted = (round(picture.width * scale), round(picture.height * scale))
        if wanted[0] * wanted[1] > MAX_PIXELS:
            raise ValueError(f"{picture.width} x {picture.height} pixels would become {wanted[0]} x {wanted[1]}")
        picture = picture.resize(wanted, Image.Resampling.BICUBIC)
    if spec.crop == "centre":
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    return picture


def framed_arrays(pixels: np.ndarray, spec: Data) -> np.ndarray:
    """Grey images [N, H, W] uint8, resized and cropped as the spec says."""
    from PIL import Image

    if spec.size is None and spec.crop == "none":
        return pixels
    return np.stack([np.asarray(framed(Image.fromarray(array), spec)) for array in pixels])


def in_channels(array: np.ndarray, channels: int) -> np.ndarray:
    """[H, W] or [H, W, 3] -> [C, H, W]. Grey is repeated: colour data sets such as ImageNet contain grey images."""
    return np.broadcast_to(array, (channels, *array.shape)) if array.ndim == 2 else array.transpose(2, 0, 1)


def attempt(spec: Data, item: Item) -> tuple[str, np.ndarray | DamagedImage]:
    """The name of an image in messages, and its pixels or the error."""
    where, read = item
    try:
        return where, decoded(read, where, spec)
    except DamagedImage as damage:
        return where, damage


def in_order(function: Callable[[Given], Found], items: Iterable[Given], workers: int) -> Generator[Found]:
    """`map` in order, by `workers` threads that decode ahead (0: by the caller's thread); they end with the iterator."""
    if not workers:
        yield from map(function, items)
        return
    threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[Future[Found]] = deque()
    try:
        for item in items:
            waiting.append(threads.submit(function, item))
            if len(waiting) > _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)


def refusal(damage: DamagedImage) -> BadInput:
    """The error for a damaged image under `damaged: refuse`."""
    return BadInput(f"{damage}; `data.damaged: skip` leaves such images out")


def mismatch(where: str, shape: tuple[int, ...], others: tuple[int, ...]) -> BadInput:
    """The error for an image whose size differs from the others'."""
    return BadInput(
        f"{where}: {shape} pixels where others have {others}; `data.size` with `data.crop: centre` makes them alike"
    )
