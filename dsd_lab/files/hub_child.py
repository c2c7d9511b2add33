"""Child process that downloads a dataset of the Hugging Face Hub and unpacks it into the library's cache.

The library reads archives and tables of others without a bound of its own. Here the kernel bounds memory and every
file, and a thread compares what was written with the sizes of the set's files, as the Hub lists them. What comes out
are the library's own Arrow files, which the caller maps into memory. Imports nothing of dsd-lab: torch would take its
time.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import psutil

_EVERY, _PATIENCE = 0.1, 60.0
"""Seconds between two looks at what was written, and those that the library has to end once it was too much."""


class TooMuch(BaseException):
    """More was written than the set may take. No `Exception`: the library would take it for a damaged file."""


def main(name: str, memory: str, file: str, ratio: str, flat: str) -> int:
    """Print, as JSON, the Arrow files of every split, or the reason why there are none.

    Args:
        name: of the set.
        memory: bytes that may be allocated.
        file: bytes that a file may have.
        ratio: bytes that may be written for each byte of the set's files: the download and all that is unpacked.
        flat: bytes that may be written besides.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory), int(memory)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(file), int(file)))
    import datasets

    answer: dict[str, object]
    listed = most = 0
    try:
        builder = datasets.load_dataset_builder(name)
        if not os.path.exists(os.path.join(builder.cache_dir, datasets.config.DATASET_INFO_FILENAME)):
            listed, most = _listed(builder, datasets), int(flat)
            most += int(ratio) * listed
            _refuse_more_than_is_free(listed, builder.cache_dir)
            with _bounded(most):
                builder.download_and_prepare()
        else:
            builder.download_and_prepare()  # reads what is said of the splits, and writes nothing
        found = builder.as_dataset()
    except TooMuch:
        answer = {"large": {"listed": listed, "most": most}}
    except ConnectionError as error:
        answer = {"unreachable": str(error)}
    except MemoryError:
        return 1
    except Exception as error:  # whatever a library says of what others wrote
        cause = error.__cause__ or error  # the library's own words are "an error occurred"
        answer = {"refused": str(cause) or type(cause).__name__}
    else:
        answer = {"splits": {split: [f["filename"] for f in table.cache_files] for split, table in found.items()}}
    print("\n" + json.dumps(answer))
    return 0


def _listed(builder: Any, datasets: Any) -> int:
    """Bytes of the set's files, as the Hub, or the folder that stands for it, lists them."""
    from datasets.utils.file_utils import xgetsize

    asked = datasets.DownloadConfig(token=builder.token)
    return sum(xgetsize(path, asked) for paths in (builder.config.data_files or {}).values() for path in paths)


def _refuse_more_than_is_free(listed: int, place: str) -> None:
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    if listed > (free := shutil.disk_usage(place).free):
        raise OSError(f"its files have {listed:,} bytes, {free:,} are free in {place}")


@contextlib.contextmanager
def _bounded(most: int) -> Iterator[None]:
    """Raise `TooMuch` in the block once this process has written more bytes than it may; not where no kernel counts them."""
    if not hasattr(psutil.Process, "io_counters"):
        yield
        return
    process, ended = psutil.Process(), threading.Event()
    before = process.io_counters().write_chars

    def watch() -> None:
        while not ended.wait(_EVERY):
            if process.io_counters().write_chars - before > most:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                if not ended.wait(_PATIENCE):
                    os._exit(1)
                return

    def stop(*_: object) -> None:
        raise TooMuch

    signal.signal(signal.SIGUSR1, stop)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
