"""Format of an exported folder: its files and their checks.

    export.json                       format version, and size and SHA-256 of every other file
    sweeps/<key>/                     manifest.json  spec.json (the resolved spec)
    trials/<id>/                      trial.json (fields, data, provenance)  status.json  spool.jsonl  parameters.json
    trials/<id>/code.diff             git diff of the work tree
    plugins/<digest>/<name>.py        sources of the loaded plug-ins; an import does not run them
    trials/<id>/images/*.png          trials/<id>/evaluations/*.json
    trials/<id>/checkpoints/step-N/   manifest.json  tensors.safetensors: the newest, with --weights

Files of other names are refused, so no path can leave the root, and nothing is unpickled.
Contents are checked too: names in a manifest or spool later become paths and queries.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from dsd_lab.errors import BadInput
from dsd_lab.files.bounded import parse_json
from dsd_lab.home.names import PICTURE_STEM, SWEEP_KEY, TRIAL_ID
from dsd_lab.home.record_types import (
    FOREIGN,
    FORMAT,
    Count,
    DamagedRecord,
    Key,
    Record,
    Sha256,
    reason_of,
    refuse_newer,
)
from dsd_lab.home.sweep_records import Manifest
from dsd_lab.home.trial_records import CheckpointManifest, Evaluation, Parameters, SpoolLine, Status, TrialRecord
from dsd_lab.specs.part_fields import unknown_parts_pass
from dsd_lab.specs.sweep import Sweep
from dsd_lab.specs.trial import Trial
from dsd_lab.specs.yaml_document import one_line

M = TypeVar("M", bound=BaseModel)
R = TypeVar("R")
INDEX = "export.json"
_TRIAL = rf"trials/(?P<trial>{TRIAL_ID})"
_PLACES = (
    rf"sweeps/{SWEEP_KEY}/(?P<kind>manifest|spec)\.json",
    rf"{_TRIAL}/(?P<kind>trial|status|parameters)\.json",
    rf"{_TRIAL}/(?P<kind>spool)\.jsonl",
    rf"{_TRIAL}/code\.(?P<kind>diff)",
    r"plugins/[0-9a-f]{12}/[A-Za-z_][A-Za-z0-9_]{0,63}\.(?P<kind>py)",
    rf"{_TRIAL}/images/{PICTURE_STEM}\.(?P<kind>png)",
    rf"{_TRIAL}/(?P<kind>evaluation)s/[0-9a-f]{{8}}\.json",
    rf"{_TRIAL}/checkpoints/step-\d{{9}}/(?P<kind>tensors)\.safetensors",
    rf"{_TRIAL}/(?P<kind>checkpoint)s/step-\d{{9}}/manifest\.json",
)


class Listed(Record):
    """A file of the export."""

    sha256: Sha256
    bytes: Count


class Index(Record):
    """`export.json`."""

    format: int
    sweep: Key
    weights: bool
    schema_version: int
    """Version of the trials' identities."""
    made_by: dict[str, str]
    files: dict[str, Listed]


_MODELS: dict[str, type[BaseModel]] = {
    "spec": Sweep,
    "manifest": Manifest,
    "trial": TrialRecord,
    "status": Status,
    "parameters": Parameters,
    "evaluation": Evaluation,
    "checkpoint": CheckpointManifest,
}


def kind_of(name: str) -> tuple[str, str | None] | None:
    """Kind of a relative path in an export, and its trial; None where an export has no such file."""
    for place in _PLACES:
        if found := re.fullmatch(place, name, re.ASCII):
            groups = found.groupdict()
            return groups["kind"], groups.get("trial")
    return None


def parsed(kind: str, where: str, raw: bytes) -> Any:
    """Parse and check a JSON file. A spool returns None: its lines are checked one by one and not kept.

    Raises:
        BadInput: it is not JSON, or not a valid file of its kind.
    """
    if kind == "spool":
        if raw and not raw.endswith(b"\n"):
            raise BadInput(f"{where}: the last line is incomplete")
        for n, line in enumerate(raw.split(b"\n")[:-1], 1):
            _checked(SpoolLine, f"{where}: line {n}", line)
        return None
    with unknown_parts_pass():
        found = _checked(_MODELS[kind], where, raw)
        if isinstance(found, TrialRecord):
            _read(lambda: Trial.model_validate(found.fields), where, "fields")
        return found


def parsed_index(where: str, raw: bytes) -> Index:
    """Parse `export.json`. A newer format is refused before anything else is read.

    Raises:
        BadInput: it is not a valid index, or newer than this program.
    """
    content = _read(lambda: dict(parse_json(raw)), where)
    refuse_newer(content, where)
    if content.get("format") != FORMAT:
        raise BadInput(f"{where}: is not the index of an export: format {content.get('format')!r}")
    return _checked(Index, where, raw)


def _checked(model: type[M], where: str, raw: bytes) -> M:
    return _read(lambda: model.model_validate(parse_json(raw), context=FOREIGN), where)


def _read(read: Callable[[], R], where: str, prefix: str = "") -> R:
    try:
        return read()
    except ValidationError as error:
        raise DamagedRecord(where, reason_of(error, prefix)) from None
    except (ValueError, TypeError, RecursionError) as error:
        reason = one_line((str(error).splitlines() or ["?"])[0], 300)
        raise DamagedRecord(where, f"is not valid: {reason}") from None
