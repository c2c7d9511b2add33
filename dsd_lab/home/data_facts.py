"""What is known about images without decoding them, and which trials were trained on different images.

A dataset is identified by its declared name and revision. Its content is identified by the fingerprint that every
trial records. `refuse_other_images` enforces one fingerprint per declared dataset.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from dsd_lab.errors import BadInput
from dsd_lab.files.bounded import MAX_JSON, read_plain
from dsd_lab.files.index import Listing, content_digest, known_digest, listing_of
from dsd_lab.home.data_records import DataFacts
from dsd_lab.home.home import Home
from dsd_lab.home.hub_files import content_of_hub, remember_hub
from dsd_lab.home.trial_folder import ENDED, STOPPED
from dsd_lab.home.trial_records import TrialRecord
from dsd_lab.specs.data import PREPARED_MANIFEST
from dsd_lab.specs.identity import canonical_fields, data_name
from dsd_lab.specs.part_fields import is_foreign
from dsd_lab.specs.registry import find_plugin_part
from dsd_lab.specs.trial import Data, Trial

_READERS = ("pillow", "pyarrow", "scikit-learn", "datasets")
"""Packages that decode images; another version may decode other pixels."""
_NOT_READ = {"path", "name", "revision", "memory", "workers"}
"""Fields that do not affect the pixels read from given files."""


@dataclass(frozen=True)
class Images:
    """The images of a dataset: fingerprint, counts and location."""

    fingerprint: str
    place: str
    train: int
    holdout: int
    class_names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.place} ({self.train:,} training and {self.holdout:,} held-out images)"

    def is_of(self, other: Images) -> bool:
        """Whether pixels, labels and class order are equal. Class names may differ."""
        numbers = {name: number for number, name in enumerate(other.class_names)}
        moved = any(numbers.get(name, number) != number for number, name in enumerate(self.class_names))
        return self.fingerprint == other.fingerprint and not moved


@dataclass(frozen=True)
class Trained:
    """What a trial was trained on."""

    trial: str
    images: Images


# -- What the images are -----------------------------------------------------------------------------------


def known_facts(home: Home, data: Data) -> DataFacts | None:
    """The facts stored when the dataset was last loaded in this home folder, without fingerprint; None before that."""
    return DataFacts.known(_path(home, data))


def skipped(trial: Trial, facts: DataFacts | None) -> str:
    """One line about damaged images that are left out of a trial's data; empty where there are none."""
    if facts is None or not facts.damaged:
        return ""
    first = f", first {facts.damaged_named[0]}" if facts.damaged_named else ""
    return f"data {data_name(trial)}: {facts.damaged} damaged images are left out{first}"


def place_of(data: Data) -> str:
    """Where the images lie, for messages."""
    return data.path or data.hub or data.source


def list_files(data: Data) -> Listing | None:
    """Current listing of the dataset's files; None where it is not read from a folder."""
    try:
        return None if data.path is None else listing_of(Path(data.path))
    except OSError:  # the reader reports the folder
        return None


def remember_images(
    home: Home,
    data: Data,
    before: Listing | None,
    facts: DataFacts,
    files: Sequence[str] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Store the facts under the content of the dataset's files, so that they are known later without decoding.

    Args:
        home: whose cache stores them.
        data: dataset that was read.
        before: listing of its files when reading began. Nothing is stored if they changed since.
        facts: of the images, with their fingerprint.
        files: of a Hub dataset, which are in the Hub library's cache.
        on_progress: called with the number of hashed files and the total.
    """
    (path := _path(home, data)).parent.mkdir(parents=True, exist_ok=True)
    DataFacts.model_validate(facts.model_dump(exclude_unset=True, exclude={"fingerprint"})).write(path)
    after = list_files(data)
    if (before is None) != (after is None) or (before and after and before.digest != after.digest):
        return
    folder = home.cache / "data"
    if data.source == "datasets":
        remember_hub(folder, data, files)
    content = _content(data, folder, after, True, on_progress)
    if content is not None:
        facts.write(_images_path(folder, data, content))


def known_images(home: Home, data: Data, reads: bool = False) -> Images | None:
    """The present images, if they are known without decoding.

    Args:
        home: whose cache is read.
        data: the dataset.
        reads: hash changed files, to see whether their content differs; False reads nothing but the listing.
    """
    kept = _kept(home, data, reads)
    if kept is None or kept.fingerprint is None:
        return None
    return Images(kept.fingerprint, place_of(data), kept.train, kept.holdout, tuple(kept.class_names))


def facts_at_hand(home: Home, data: Data) -> DataFacts | None:
    """`DataSet.facts` and fingerprint of the present images; None if files were never read or changed since."""
    return _kept(home, data, reads=False)


def _kept(home: Home, data: Data, reads: bool) -> DataFacts | None:
    folder = home.cache / "data"
    content = _content(data, folder, list_files(data), reads) if folder.is_dir() else None
    return None if content is None else DataFacts.known(_images_path(folder, data, content))


def _content(
    data: Data,
    folder: Path,
    listing: Listing | None,
    reads: bool,
    on_progress: Callable[[int, int], None] | None = None,
) -> str | None:
    """Key of the content of a dataset's files; None where unknown."""
    if is_foreign("data_source", data.source):
        return None  # a plug-in may read anything
    if data.source == "digits":
        return "digits"  # the package's version is in the reader's
    if data.source == "datasets":
        return content_of_hub(folder, data)
    if listing is None:
        return None
    try:
        if data.source == "prepared":  # its manifest has the hashes: terabytes need not be read for them
            manifest = hashlib.sha256(read_plain(listing.root / PREPARED_MANIFEST, MAX_JSON)).hexdigest()
            return json.dumps(
                [manifest, [[path.decode(errors="replace"), row.split()[0].decode()] for path, row in listing.rows]]
            )
        return content_digest(listing, folder, on_progress) if reads else known_digest(listing, folder)
    except OSError:
        return None


def _images_path(folder: Path, data: Data, content: str) -> Path:
    read = json.dumps([content, data.model_dump(exclude=_NOT_READ), _reader()], sort_keys=True)
    return folder / f"images-{hashlib.sha256(read.encode()).hexdigest()[:24]}.json"


@cache
def _reader() -> list[str]:
    """Key of the decoder: hash of the readers' code and versions of the packages that they use."""
    digest = hashlib.sha256()
    for path in sorted((Path(__file__).parents[1] / "core" / "data").rglob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return [digest.hexdigest(), *map(_version, _READERS)]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _path(home: Home, data: Data) -> Path:
    part = find_plugin_part("data_source", data.source)
    text = data.model_dump_json(exclude={"memory", "workers"}) + ("" if part is None else part.digest)
    return home.cache / "data" / f"facts-{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"


# -- What trials were trained on ---------------------------------------------------------------------------


def images_of(description: TrialRecord) -> Images:
    """The images that a trial was trained on, from its record."""
    data, fields = description.data, description.fields.get("data", {})
    place = fields.get("path") or fields.get("hub") or fields.get("source") or data.name
    return Images(data.fingerprint, str(place), data.train, data.holdout, tuple(data.class_names))


def declared_by(canonical_data: dict[str, Any]) -> str:
    """The declared identity of a dataset: all fields of `data` that enter a trial's id."""
    defaults = {k: v.default for k, v in Data.model_fields.items() if k not in ("source", "path", "hub", "memory", "workers")}  # fmt: skip
    return json.dumps(defaults | canonical_data, sort_keys=True)


def declared_in(description: TrialRecord) -> str:
    """The declared identity of the dataset that a trial was trained on."""
    return declared_by(description.canonical.get("data", {}))


def trained_images(home: Home) -> dict[str, list[Trained]]:
    """Images of all trials with a result or a checkpoint, by declared identity."""
    found: dict[str, list[Trained]] = {}
    for path in sorted(home.root.glob("trials/*/trial.json")):
        folder = home.trial(path.parent.name)
        described = folder.description()
        if described is None:
            continue
        # A trial that failed before its first checkpoint restarts, on the images of that time.
        if folder.state() in (*ENDED, STOPPED) or folder.is_locked() or any(folder.checkpoints.glob("step-*")):
            found.setdefault(declared_in(described), []).append(Trained(folder.id, images_of(described)))
    return found


def declared_of(trial: Trial) -> str:
    """The declared identity of a trial's dataset."""
    return declared_by(canonical_fields(trial)["data"])


def refuse_other(trial: Trial, here: Images, trained: Iterable[Trained]) -> None:
    """Refuse images that differ from those of other trials with the same declared dataset.

    Args:
        trial: whose dataset it is.
        here: the present images.
        trained: trials of the same declared dataset.

    Raises:
        BadInput: the images or their class order differ. The message names both places and the cure.
    """
    for other in trained:
        if here.is_of(other.images):
            continue
        what = "other images" if here.fingerprint != other.images.fingerprint else "another order of classes"
        if here.place == other.images.place:
            where = f"{here} has {what} than when trial {other.trial} was trained on it ({other.images.train:,} and {other.images.holdout:,} then)"
        else:
            where = f"{here} has {what} than {other.images}, on which trial {other.trial} was trained"
        raise BadInput(
            f"data {data_name(trial)!r} revision {trial.data.revision!r}: {where}; write another data.name or data.revision"
        )


def other_images(descriptions: Mapping[str, TrialRecord]) -> dict[str, str]:
    """Trials whose images differ from the majority with the same declared dataset, each with a line about them.

    A tie goes to the images of the first trial.

    Args:
        descriptions: of started trials, by id.
    """
    declared: dict[str, dict[str, Images]] = {}
    for trial, described in descriptions.items():
        declared.setdefault(declared_in(described), {})[trial] = images_of(described)
    found = {}
    for trials in declared.values():
        most = Counter(images.fingerprint for images in trials.values()).most_common(1)[0][0]
        usual = next(images for images in trials.values() if images.fingerprint == most)
        for trial, images in trials.items():
            if images.fingerprint != most:
                found[trial] = f"{images}, fingerprint {images.fingerprint[:12]}, not {usual}, fingerprint {most[:12]}"
    return found
