"""Disk space of a sweep by variant: checkpoints, spools and artifacts."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from dsd_lab.errors import NoResources
from dsd_lab.files.atomic import size_of
from dsd_lab.home.home import Home
from dsd_lab.planning.estimates import cached_shape
from dsd_lab.specs.per_seed import once_for_seeds
from dsd_lab.specs.sweep import PlannedTrial
from dsd_lab.specs.trial import Trial
from dsd_lab.units import readable

_RECORD_BYTES, _PROBE_BYTES, _EIGENVALUE_BYTES = 500, 6_000, 25
"""Sizes in the spool, as measured: a line of losses, a probe's metrics, one eigenvalue."""
_STORE_FACTOR = 1.5
"""Bytes in the MLflow store per byte in the spool: metric rows, their indices, and the history."""
_MAX_SHOWN = 6


@dataclass(frozen=True)
class Need:
    """Peak disk space of a trial in bytes."""

    checkpoints: int
    spool: int
    artifacts: int

    @property
    def total(self) -> int:
        return self.checkpoints + self.spool + self.artifacts


def need_of(trial: Trial, home: Home, code: str) -> Need:
    """Disk space of a trial: kept checkpoints and the one being written, spool, images, copies in the store."""
    shape, watch, steps = cached_shape(trial, home, code), trial.observation, trial.training.steps
    weights = shape.params["total"]
    checkpoint = 4 * (3 * weights + sum(shape.copies.values()))  # float32 weights and AdamW's two moments
    written = -(-steps // watch.checkpoint_every)
    values = 2 * trial.probe.images  # two spectra, each with at most as many eigenvalues as images
    spool = (steps // watch.log_every + 1) * _RECORD_BYTES + (steps // trial.probe.every + 2) * (
        _PROBE_BYTES + values * _EIGENVALUE_BYTES
    )
    side = max(32, trial.network.image_size or 0)
    images = (steps // watch.images_every + 1) * 3 * watch.images * side**2
    artifacts = 2 * images + int(_STORE_FACTOR * spool) + 4 * weights
    return Need(checkpoint * (min(watch.checkpoints_kept, written) + 1), spool, artifacts)


def announce_need(home: Home, trials: list[PlannedTrial], code: str) -> str:
    """A line on the needed space, without files already written, and the free space.

    Raises:
        NoResources: the free space is too small.
    """
    variants: dict[str, list[int]] = {}
    need = once_for_seeds(lambda fields: need_of(fields, home, code))
    needs = [need(t.fields) for t in trials]
    wanted = 0
    for trial, its in zip(trials, needs, strict=True):
        variants.setdefault(trial.variant, []).append(its.total)
        wanted += max(0, its.total - size_of(home.trial(trial.id).root))
    parts = {k: sum(getattr(n, k) for n in needs) for k in ("checkpoints", "spool", "artifacts")}
    what = ", ".join(f"{k} {readable(v)}" for k, v in parts.items())
    largest = sorted(variants.items(), key=lambda item: -sum(item[1]))
    each = ", ".join(f"{name} {len(sizes)} x {readable(max(sizes))}" for name, sizes in largest[:_MAX_SHOWN])
    more = f" and {len(largest) - _MAX_SHOWN} smaller variants" if len(largest) > _MAX_SHOWN else ""
    free = shutil.disk_usage(home.root).free
    if wanted > free:
        raise NoResources(
            f"--home {home.root}: the sweep needs about {readable(wanted)} of disk space ({what}; {each}{more}), but {readable(free)} are free; free space (`dsd-lab gc`), use another --home, or keep fewer checkpoints (--set observation.checkpoints_kept=1)"
        )
    return f"disk: about {readable(wanted)} of {readable(free)} free ({what}; {each}{more})"
