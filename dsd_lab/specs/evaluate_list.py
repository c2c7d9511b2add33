"""The `evaluate` list of a spec: expands lists of guidance scales or weights, and resolves files to paths and hashes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dsd_lab.errors import BadInput
from dsd_lab.files.sha256 import sha256_of
from dsd_lab.specs.trial import OF_ENCODER, Generation, Trial
from dsd_lab.specs.yaml_document import Document, one_line

MAX_EVALUATIONS = 1000
_LISTS = ("guidance", "weights", "checkpoint")


def expanded(document: Document) -> Document:
    """The document with one entry of `evaluate` per value, where guidance, weights or checkpoint are lists.

    Raises:
        BadInput: a list is empty, or there are more than `MAX_EVALUATIONS`.
    """
    entries = document.values.get("evaluate")
    if not isinstance(entries, list):
        return document
    made: list[Any] = []
    marks = {path: mark for path, mark in document.marks.items() if path[:1] != ("evaluate",) or len(path) == 1}
    for place, entry in enumerate(entries):
        at = ("evaluate", str(place))
        lists = {key: entry[key] for key in _LISTS if isinstance(entry, dict) and isinstance(entry.get(key), list)}
        for key, values in lists.items():
            if not values:
                where = f"{document.where((*at, key))}: {'.'.join((*at, key))}"
                raise BadInput(f"{where}: [] is not valid; it must be given at least one entry")
        if len(made) + math.prod(map(len, lists.values())) > MAX_EVALUATIONS:
            raise BadInput(f"{document.where(at)}: evaluate: more than {MAX_EVALUATIONS:,} evaluations per trial")
        inner = {path[2:]: mark for path, mark in document.marks.items() if path[:2] == at}
        for chosen in itertools.product(*lists.values()):
            marks |= {("evaluate", str(len(made)), *path): mark for path, mark in inner.items()}
            made.append({**entry, **dict(zip(lists, chosen, strict=True))} if lists else entry)
    return Document({**document.values, "evaluate": made}, marks)


def with_files(evaluations: list[Generation], document: Document, folder: Path) -> list[Generation]:
    """The evaluations with absolute paths, and with the hash of each reference.

    A missing reference keeps the hash from the spec, or none: `sweep` refuses it later, `plan` accepts it.

    Raises:
        BadInput: a reference cannot be read, or its hash differs from the spec's.
    """
    return [_with_files(e, document, ("evaluate", str(i)), folder) for i, e in enumerate(evaluations)]


def _with_files(evaluation: Generation, document: Document, at: tuple[str, ...], folder: Path) -> Generation:
    found: dict[str, Any] = {}
    for key in ("reference", "inception_weights", "dinov2_weights"):
        given = getattr(evaluation, key)
        if given is None:
            continue
        where = f"{document.where((*at, key))}: {'.'.join((*at, key))}"
        try:
            path = folder.absolute() / Path(given).expanduser()
            found[key] = str(path)
            if key == "reference" and path.is_file():
                found["reference_sha256"] = sha256_of(path)
        except (OSError, RuntimeError, ValueError) as error:
            raise BadInput(f"{where}: {one_line(given)!r} cannot be read: {error}") from None
        wanted = evaluation.reference_sha256
        if key == "reference" and wanted is not None and found.get("reference_sha256", wanted) != wanted:
            raise BadInput(f"{where}: {path} has the SHA-256 {found['reference_sha256']}, not {wanted}")
    return evaluation.model_copy(update=found) if found else evaluation


def of_trial(evaluations: Iterable[Generation], trial: Trial, saved: Iterable[int] | None = None) -> list[Generation]:
    """The evaluations that a trial has anything for, each of one checkpoint.

    Args:
        evaluations: of a spec.
        trial: its fields.
        saved: steps of the checkpoints that it has; None where it is not trained yet, and keeps what its fields say.
    """
    last, every = trial.training.steps, trial.observation.keep_every
    if saved is None:
        saved = range(every, last, every) if every is not None else ()
    kept = [step for step in sorted(saved) if step < last and (every is None or step % every == 0)]
    found: list[Generation] = []
    for evaluation in (e for e in evaluations if applies(e, trial)):
        asked = [*kept, "last"] if evaluation.checkpoint == "all" else [evaluation.checkpoint]
        found += [evaluation.model_copy(update={"checkpoint": "last" if s == last else s}) for s in asked]
    return found


def lacking_checkpoint(evaluation: Generation, trial: Trial) -> str | None:
    """Why a trial will have no checkpoint that an evaluation asks for, in words; None where it will."""
    step, last, every = evaluation.checkpoint, trial.training.steps, trial.observation.keep_every
    if step in ("last", last) or (
        every is not None and (step == "all" or (int(step) < last and int(step) % every == 0))
    ):
        return None
    kept = (
        f"those of every {every:,} steps and the last, {last:,}"
        if every
        else f"only the last, {last:,}: set observation.keep_every"
    )
    return f"keeps {kept}"


def applies(evaluation: Generation, trial: Trial) -> bool:
    """Whether an evaluation measures anything of a trial.

    A trial without a denoiser, such as a reconstruction-only control, has no samples: only its reconstructions and
    latents are measured.
    """
    return trial.has_denoiser or bool(set(evaluation.measured) & set(OF_ENCODER))
