"""Unused cache files: counts, extractors, packed images, images of evaluations, folders of killed benchmarks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from dsd_lab.files.atomic import size_of, write_json
from dsd_lab.files.below import remove_below
from dsd_lab.files.bounded import read_json
from dsd_lab.files.index import index_path
from dsd_lab.files.locks import is_held
from dsd_lab.home.home import Home
from dsd_lab.home.names import DRAWING, extractor_path
from dsd_lab.home.ownership import Freeable, below, is_own_folder
from dsd_lab.home.trial_records import TrialRecord

_EXTRACTOR = re.compile(r"[0-9a-f]{16}-v\d+(-rotation)?\.safetensors")
_STATISTICS = re.compile(r"[0-9a-f]{16}-.+\.safetensors")
_INDEX = re.compile(r"files-[0-9a-f]{24}\.(index|part|json)|read-[0-9a-f]{24}\.json")
"""Of folders. Earlier versions wrote `read-` files, which are no longer read."""
_PACK = re.compile(r"[0-9a-f]{24}\.pack|\.[0-9a-f]{24}\.pack\.[a-z0-9_]{8}")
_BENCH = re.compile(r"bench-[a-z0-9_]{8}")


def unused_counts(home: Home, code: str) -> Iterator[Freeable]:
    """Counts of networks from other training code."""
    folder = below(home, "cache")
    if folder is None or (folder / "shapes.json").is_symlink():
        return
    path = folder / "shapes.json"
    try:
        known = read_json(path)
        kept = {key: value for key, value in known.items() if json.loads(key)[0] == code}
    except (OSError, ValueError, AttributeError, LookupError, TypeError):
        return
    if len(kept) == len(known):
        return

    def free() -> bool:
        write_json(path, kept)
        return True

    why = f"{len(known) - len(kept)} counts of networks from other training code"
    yield Freeable("cache", path, why, path.stat().st_size - len(json.dumps(kept, indent=1)) - 1, free)


def unused_extractors(home: Home, named: set[str]) -> Iterator[Freeable]:
    """Extractors and statistics of data that no recorded trial uses."""
    files, kept = _cached(home, "extractors", _EXTRACTOR), _cached(home, "statistics", _STATISTICS)
    prints = {d.data.fingerprint for d in _described(home, named)}
    needed = {extractor_path(home.cache, fingerprint, kind) for fingerprint in prints for kind in (True, False)}
    needed |= {path for path in kept if any(path.name.startswith(f"{p[:16]}-") for p in prints)}
    for path in (*files, *kept):
        lock = path.with_suffix(".lock")
        if path not in needed and not is_held(lock):
            why = "features of data that no recorded trial uses, or from other code"
            yield Freeable("cache", path, why, size_of(path), partial(remove_below, home.root, path))


def unused_indexes(home: Home, named: set[str]) -> Iterator[Freeable]:
    """Indexes of folders that no recorded trial reads; they are rebuilt when needed."""
    places = {str(path) for d in _described(home, named) if (path := d.fields.get("data", {}).get("path"))}
    needed = {index_path(home.cache / "data", Path(place)).name for place in places}
    for path in _cached(home, "data", _INDEX):
        if path.stem not in needed:
            why = "index of files that no recorded trial reads"
            yield Freeable("cache", path, why, size_of(path), partial(remove_below, home.root, path))


def unused_packs(home: Home, named: set[str]) -> Iterator[Freeable]:
    """Unpacked parquet files for streaming that no recorded trial reads, and remains of interrupted unpacking."""
    streams = any(not d.data.resident for d in _described(home, named))
    for path in _cached(home, "data", _PACK):
        whole = path.suffix == ".pack"
        lock = path.parent / f"{path.name.removeprefix('.').partition('.')[0]}.lock"
        if not (whole and streams) and not is_held(lock):
            why = (
                "images of parquet files that no recorded trial streams"
                if whole
                else "remains of interrupted unpacking"
            )
            yield Freeable("cache", path, why, size_of(path), partial(remove_below, home.root, path))


def interrupted_samples(home: Home) -> Iterator[Freeable]:
    """Images of interrupted evaluations; the same evaluation would draw them again."""
    for path in _cached(home, "drawn", re.compile(DRAWING)):
        held = is_held(home.trial(path.name.partition("-")[0]).root / "lock") or is_held(path.with_suffix(".lock"))
        if not held and is_own_folder(path):
            why = "images of an interrupted evaluation, which would resume with them"
            yield Freeable("cache", path, why, size_of(path), partial(remove_below, home.root, path))


def killed_bench_folders(home: Home) -> Iterator[Freeable]:
    """Folders of killed benchmarks."""
    for path in [] if is_held(home.cache / "bench" / "lock") else killed_benches(home):
        yield Freeable(
            "cache", path, "left by a benchmark that was killed", size_of(path), partial(remove_below, home.root, path)
        )


def killed_benches(home: Home) -> list[Path]:
    """Folders of killed benchmarks; none while a benchmark runs."""
    return [path for path in _cached(home, "bench", _BENCH) if is_own_folder(path)]


def _described(home: Home, named: set[str]) -> Iterator[TrialRecord]:
    return filter(None, (home.trial(i).description() for i in sorted(named)))


def _cached(home: Home, name: str, pattern: re.Pattern[str]) -> list[Path]:
    """Files in a folder of the cache whose names match, sorted."""
    folder = below(home, "cache", name)
    return [] if folder is None else sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))
