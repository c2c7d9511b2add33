"""Output folders of commands: only files that dsd-lab provably wrote are replaced or deleted there.

The home folder records the names and SHA-256 of the files written into each output folder. A file is ours while
its content matches the record. Lists inside the output folder are not trusted, and links are not followed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from dsd_lab.errors import BadInput
from dsd_lab.files.below import digest_in, folder_below, put_in
from dsd_lab.files.locks import locked
from dsd_lab.files.printable import say
from dsd_lab.files.sha256 import sha256_of
from dsd_lab.home.home import Home
from dsd_lab.home.record_types import Count, Record, Sha256, Text


class Written(Record):
    """A file of `written/`: the files written into an output folder."""

    format: int = 1
    folder: Text
    files: dict[str, list[Sha256]] = {}
    results: dict[str, Count] = {}
    """Finished trials by sweep."""


class Output:
    """A folder that a command writes into repeatedly.

    Args:
        home: its folder `written` holds the record.
        folder: output folder; created if missing.
        option: name in messages, such as `--out DIR`.
        file: name of the only output file; other files in the folder are foreign.
        aside: rename a folder with foreign files instead of refusing it; for folders of the home.
    """

    def __init__(self, home: Home, folder: Path, option: str, aside: bool = False, file: str = "") -> None:
        self._given, self._option, self._aside = folder, option, aside
        self.folder = folder.resolve()
        root = home.root.resolve()
        inside = self.folder.is_relative_to(root)  # relative, so that it survives a move of the home
        self._key = self.folder.relative_to(root).as_posix() if inside else str(self.folder)
        self._key += f"/{file}" if file else ""
        self._record = home.root / "written" / f"{hashlib.sha256(self._key.encode()).hexdigest()[:24]}.json"

    def check(self, names: Iterable[str], alone: str | None = None) -> None:
        """Check before the work starts that the output files can be written.

        Args:
            names: relative paths.
            alone: a subfolder that may hold no foreign files.

        Raises:
            BadInput: a foreign file is in the way.
        """
        record = self._read()
        obstacle = self._obstacle(names, record) or self._foreign_file(alone, record)
        if obstacle is not None and not self._aside:
            raise BadInput(f"{self._option}: {obstacle}; move it away or name another folder")

    def publish(self, made: Path, results: dict[str, int], alone: str | None = None) -> None:
        """Move finished files into the folder and remove files of earlier calls that are no longer among them.

        Args:
            made: folder of the finished files.
            results: finished trials by sweep. Files made from fewer results never replace files made from more.
            alone: as for `check`.

        Raises:
            BadInput: a foreign file is in the way, or the folder holds a report of more results.
        """
        names = sorted(path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file())
        with locked(self._record.with_suffix(".lock")):
            record = self._read()
            obstacle = (
                self._obstacle(names, record)
                or self._foreign_file(alone, record)
                or self._larger_report(results, record)
            )
            if obstacle is not None:
                if not self._aside:
                    raise BadInput(f"{self._option}: {obstacle}; move it away or name another folder")
                record = self._set_aside(obstacle)
            before = record.files
            new = {name: [sha256_of(made / name)] for name in names}
            # Record old and new files first, so that a killed call still knows its files.
            both = {name: [*before.get(name, []), *new.get(name, [])] for name in {*before, *new}}
            self._write(both, record.results)
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in names:
                self._put(made / name, name, both)
            for name in before.keys() - new.keys():
                self._remove(name, before)
            self._write(new, results)

    def _obstacle(self, names: Iterable[str], record: Written) -> str | None:
        """What is in the way; None where nothing is."""
        for name in names:
            path = self.folder
            for part in PurePosixPath(name).parts[:-1]:
                path = path / part
                if path.is_symlink() or (path.exists() and not path.is_dir()):
                    return f"{path} is a link or a file, not a folder"
            path = self.folder / name
            if path.is_symlink():
                return f"{path} is a link"
            if path.exists() and not self._is_ours(name, record.files):
                return f"{path} was not written by dsd-lab, or has changed since"
        return None

    def _foreign_file(self, alone: str | None, record: Written) -> str | None:
        """A foreign file in a subfolder that is for our files alone; None where there is none."""
        folder = None if alone is None else self.folder / alone
        if folder is None or not folder.is_dir():
            return None
        names = sorted(path.relative_to(self.folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
        theirs = [name for name in names if not self._is_ours(name, record.files)]
        return f"{self.folder / theirs[0]} would lie among the new files" if theirs else None

    @staticmethod
    def _larger_report(results: dict[str, int], record: Written) -> str | None:
        for key, count in record.results.items():
            if key in results and results[key] < count:
                return f"it holds a report of {count} finished trials of sweep {key!r}, and this one has {results[key]}"
        return None

    def _set_aside(self, why: str) -> Written:
        number = 1
        while (place := self._given.with_name(f"{self._given.name}.before-{number}")).exists() or place.is_symlink():
            number += 1
        self._given.rename(place)
        self.folder = self._given.absolute()
        say(f"dsd-lab: {why}; that folder is kept as {place}", error=True)
        return Written(folder=self._key)

    def _is_ours(self, name: str, files: dict[str, list[str]]) -> bool:
        """Whether a file is as recorded and reached without a link."""
        *parts, last = PurePosixPath(name).parts
        try:
            with folder_below(self.folder, tuple(parts)) as folder:
                return digest_in(folder, last) in files.get(name, [])
        except OSError:
            return False

    def _put(self, source: Path, name: str, files: dict[str, list[str]]) -> None:
        *parts, last = PurePosixPath(name).parts
        try:
            with folder_below(self.folder, tuple(parts), make=True) as folder, source.open("rb") as content:
                there = os.path.lexists(self.folder / name)
                if there and digest_in(folder, last) not in files.get(name, []):
                    raise BadInput(
                        f"{self._option}: {self.folder / name} was just changed by another process and is kept"
                    )
                put_in(folder, last, content, source.stat().st_mode & 0o777)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            raise BadInput(f"{self._option}: {self.folder / name} is reached through a link; name another folder") from None  # fmt: skip

    def _remove(self, name: str, files: dict[str, list[str]]) -> None:
        parts = PurePosixPath(name).parts
        with contextlib.suppress(OSError):  # gone, or reached through a link
            with folder_below(self.folder, parts[:-1]) as folder:
                if digest_in(folder, parts[-1]) not in files.get(name, []):
                    return
                os.unlink(parts[-1], dir_fd=folder)
            for depth in range(len(parts) - 1, 0, -1):
                with folder_below(self.folder, parts[: depth - 1]) as folder:
                    os.rmdir(parts[depth - 1], dir_fd=folder)  # raises where it is not empty

    def _read(self) -> Written:
        """The record; empty where it is missing, damaged or of another folder."""
        found = Written.known(self._record) or Written(folder="")
        if found.folder != self._key:
            return Written(folder=self._key)
        return found.changed(
            files={n: d for n, d in found.files.items() if not {"..", "/"} & {*PurePosixPath(n).parts}}
        )

    def _write(self, files: dict[str, list[str]], results: dict[str, int]) -> None:
        Written(format=1, folder=self._key, files=files, results=results).write(self._record, durable=True)
