"""Compare two runs of a trial: bit-identical, or how far apart and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dsd_lab.core.training.checkpoints import list_checkpoints, load_checkpoint
from dsd_lab.errors import CorruptCheckpoint
from dsd_lab.files.bounded import read_plain
from dsd_lab.files.image_files import MAX_BYTES
from dsd_lab.home.spool import read_spool
from dsd_lab.home.trial_folder import TrialFolder


def compare(recorded: TrialFolder, again: TrialFolder) -> dict[str, Any]:
    """Compare weights, records and origin of a trial and its reproduction.

    Returns:
        `equal`, `weights` and `records`, each with `equal` (None: nothing to compare) and `text`; and
        `differs`: the differences of their origins.
    """
    weights, records = _weights(recorded, again), _records(recorded, again)
    equal = records["equal"] and weights["equal"] is not False
    return {"equal": equal, "weights": weights, "records": records, "differs": list(_origins(recorded, again))}


def other_than(recorded: TrialFolder, again: TrialFolder) -> str | None:
    """The first evaluation or picture of a trial that its reproduction does not have the same; None where all are."""
    mine = again.evaluations()
    for key, evaluation in recorded.evaluations().items():
        if key not in mine or mine[key].metrics != evaluation.metrics:
            return f"evaluation {key}"
    for path in sorted(recorded.images.glob("*.png")):
        own = again.images / path.name
        if not own.is_file() or read_plain(own, MAX_BYTES) != read_plain(path, MAX_BYTES):
            return f"picture {path.name}"
    return None


def _newest(folder: TrialFolder) -> tuple[str, dict[str, Tensor]] | None:
    for path in list_checkpoints(folder.checkpoints):
        try:
            return path.name, load_checkpoint(path)[0]
        except CorruptCheckpoint:
            continue
    return None


def _weights(recorded: TrialFolder, again: TrialFolder) -> dict[str, Any]:
    """Compare all tensors of the last checkpoints: weights, EMA, optimiser moments."""
    before, now = _newest(recorded), _newest(again)
    if before is None or now is None or before[0] != now[0]:
        where = "the recorded trial has no checkpoint" if before is None else "the checkpoints are of different steps"
        return {"equal": None, "text": f"not compared: {where}"}
    (_, a), (_, b) = before, now
    if a.keys() != b.keys() or any(a[name].shape != b[name].shape for name in a):
        return {"equal": False, "text": "differ in names or shapes of tensors"}
    unequal = [name for name in a if not _same_bits(a[name], b[name])]
    if not unequal:
        return {"equal": True, "text": f"bit-identical ({len(a)} tensors at {before[0]})"}
    most = max(unequal, key=lambda name: _distance(a[name], b[name]))
    distance = _distance(a[most], b[most])
    text = f"{len(unequal)} of {len(a)} tensors differ, by at most {distance:.3g} (in {most})"
    return {"equal": False, "text": text, "largest_difference": distance, "tensor": most}


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(
        a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8)
    )


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().nan_to_num(float("inf")).max()) if a.numel() else 0.0


def _records(recorded: TrialFolder, again: TrialFolder) -> dict[str, Any]:
    """Compare all lines of the spools without clock times."""
    before, now = ([line.result() for line in read_spool(f.spool)] for f in (recorded, again))
    if not all("images" in line for line in before):  # written by a version without these counts
        now = [{k: v for k, v in line.items() if k not in ("images", "flops")} for line in now]
    now = [*map(_as_recorded, before, now), *now[len(before) :]]
    if before == now:
        return {"equal": True, "text": f"equal ({len(now)} lines)"}
    for a, b in zip(before, now, strict=False):
        if a != b:
            named, values = a.get("metrics", {}), b.get("metrics", {})
            apart = {k: abs(v - values[k]) / max(abs(v), 1e-30) for k, v in named.items() if v != values.get(k, v)}
            most = max(apart, key=lambda name: apart[name], default=None)
            how = f", most in {most}, by {apart[most]:.2%}" if most is not None else ""
            return {"equal": False, "text": f"differ from step {a['step']:,} on ({a['kind']}{how})", "step": a["step"]}
    return {"equal": False, "text": f"differ: {len(before)} lines then, {len(now)} now"}


def _as_recorded(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """A line without what probes measure only since the recorded one: it observes the trial and changes nothing in it."""
    if before.get("kind") != "probe" or now.get("kind") != "probe":
        return now
    return now | {
        part: {name: value for name, value in now[part].items() if name in before.get(part, {})}
        for part in ("metrics", "spectra")
        if part in now
    }


def _origins(recorded: TrialFolder, again: TrialFolder) -> Iterator[dict[str, Any]]:
    """Differences in code, versions, machine and data."""
    before, now = (_origin(folder) for folder in (recorded, again))
    for what in sorted(before.keys() | now.keys()):
        if before.get(what) != now.get(what):
            yield {"what": what, "recorded": before.get(what), "now": now.get(what)}


def _origin(folder: TrialFolder) -> dict[str, Any]:
    described = folder.description()
    if described is None:
        return {}
    origin = described.provenance
    found: dict[str, Any] = origin.model_dump(include={"code", "git_commit", "git_diff", "python", "device"})
    found |= {f"version of {name}": version for name, version in origin.versions.items()}
    found |= origin.machine.model_dump(include={"system", "processor"})
    found["images"] = described.data.fingerprint
    found["codes in turn"] = [entry.code for entry in folder.status().trained_by]
    return found
