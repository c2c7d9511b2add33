"""Comparison with published results: our rows below the published ones, with one column per kind of FID.

The published rows are `analysis/reference/*.csv`, which are part of the package. An empty cell was not published, or
not copied.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from importlib.resources import files

import pandas as pd

from dsd_lab.home.parameter_count import parameters_in
from dsd_lab.home.trial_records import DataRecord
from dsd_lab.report.groups import Group
from dsd_lab.report.statistics.intervals import POSITIVE, Estimate, estimate
from dsd_lab.report.tables.rendering import Cell, Table, estimate_cell
from dsd_lab.specs.auxiliary import EMA
from dsd_lab.specs.evaluation import Generation
from dsd_lab.specs.metrics import fids
from dsd_lab.specs.report import ReportSettings
from dsd_lab.specs.trial import Trial

_EXTRACTORS = {"indomain": "in-domain", "turns": "in-domain turns", "inception": "Inception", "dinov2": "DINOv2"}
_MAX_TRAINING = 100_000
"""Maximum number of training images for the statistics of FID (as in `dsd_lab.evaluation.real_images`)."""
_IMAGENET = "ImageNet 256"
ADM_STATISTICS = "b32732719497e42660a9affb4a966068cba0855ac449b82015e34ec376d20758"
"""SHA-256 of ADM's `VIRTUAL_imagenet256_labeled.npz` (2,037,122,530 bytes), the reference of published FIDs.

Its authors publish no hash. Two copies have this one: huggingface.co/WindATree/diffusion-data (7c6013f) and
huggingface.co/xiangzai/reference (bd36c84).
"""
_SAMPLERS = {"sde": "SDE-EM"}
_SPATIAL, _VARIATION = "latent/spatial_variance", "latent/total_variation"


@dataclass(frozen=True)
class Row:
    """A row of the table of generation results; an empty text was not published or does not apply."""

    method: str
    parameters: float | None
    """Millions."""
    epochs: float | None
    guidance: str
    sampler: str
    images: int | None
    extractor: str
    data: str
    autoencoder_counted: str
    pretrained_model: str
    source: str
    cite: str
    """Short source, such as an arXiv number."""
    fid: Estimate
    """For a published row, a single value."""
    inception_score: float | None = None

    @property
    def kind(self) -> str:
        """Column of its FID: one per extractor and data set."""
        return f"FID ({self.extractor}, {self.data})"


def reference(name: str) -> list[dict[str, str]]:
    """The rows of a file of published results, `generation` or `collapse`."""
    text = files("dsd_lab.report").joinpath("reference", f"{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def published_rows() -> list[Row]:
    """Published results."""
    texts = (
        "method",
        "guidance",
        "sampler",
        "extractor",
        "data",
        "autoencoder_counted",
        "pretrained_model",
        "source",
        "cite",
    )
    return [
        Row(
            **{name: r[name] for name in texts},
            parameters=_number(r["params_m"]),
            epochs=_number(r["epochs"]),
            images=int(r["images"]) if r["images"] else None,
            fid=Estimate(float(r["fid"]), None, None, None, 1),
            inception_score=_number(r["inception_score"]),
        )
        for r in reference("generation")
    ]


def _number(text: str) -> float | None:
    return float(text) if text else None


def our_rows(groups: list[Group]) -> list[Row]:
    """One row for every group and FID, from the settings of its evaluation and the trials' fields."""
    rows = []
    for group in groups:
        settings = {
            name: (r, evaluation)
            for r in group.described
            for evaluation, metrics in r.evaluations
            for name in fids(metrics)
        }
        for name in (n for n in group.estimates if n in settings):
            first, e = settings[name]
            data = first.record.data
            weights, reference = parameters_in(first.folder), (e.reference_sha256 or "")[:8]
            labels = "holdout" if e.images == "holdout" else e.labels
            rows.append(
                Row(
                    method=group.name,
                    parameters=weights / 1e6 if weights else None,
                    epochs=first.step * first.trial.training.batch_size / data.train,
                    guidance=_guidance(e),
                    sampler=f"{_sampler(e)}; {labels}, {name.rpartition('-')[2]}",
                    images=first.images_of(e),
                    extractor=_extractor(e, data, name),
                    data=_IMAGENET if _as_published(e) and _is_imagenet(first.trial, data) else data.name,
                    autoencoder_counted="yes",
                    pretrained_model=_pretrained_model(first.trial),
                    source=f"this sweep; statistics {reference}" if reference else "this sweep",
                    cite="this sweep",
                    fid=group.estimates[name],
                )
            )
    return rows


def _guidance(e: Generation) -> str:
    """Guidance scale, and the interval of guided times if there is one."""
    if e.guidance == 1:
        return "none"
    interval = "" if e.guidance_interval is None else " in t [{:g}, {:g}]".format(*e.guidance_interval)
    return f"{e.guidance:g}{interval}"


def _sampler(e: Generation) -> str:
    if e.adaptive:
        return f"{e.sampler} (rtol {e.rtol:g}, atol {e.atol:g})"
    precision = "" if e.precision == "fp32" else f" in {e.precision}"
    return f"{_SAMPLERS.get(e.sampler, e.sampler.capitalize())} {e.steps}{precision}"


def _extractor(e: Generation, data: DataRecord, metric: str) -> str:
    """Features and reference of an FID: published statistics are a different measure than training images."""
    name = _EXTRACTORS.get(e.extractor, e.extractor)
    if _as_published(e):
        return name
    if e.reference is not None:
        return f"{name} against statistics {(e.reference_sha256 or '')[:8]}"
    if e.extractor == "indomain":
        return _EXTRACTORS["turns"] if "/turns-" in metric else name
    return f"{name} against {min(data.train, _MAX_TRAINING):,} training images"


def _as_published(e: Generation) -> bool:
    """Whether FID was measured as in the published rows: Inception features, and ADM's file as reference."""
    return e.extractor == "inception" and e.reference is not None and e.reference_sha256 == ADM_STATISTICS


def _is_imagenet(trial: Trial, data: DataRecord) -> bool:
    """Whether a trial's images have 1,000 classes and 256 pixels, as those of the published rows."""
    return data.classes == 1000 and trial.network.image_size == 256


def _pretrained_model(trial: Trial) -> str:
    """`yes` if a loss uses a timm model with weights that are not random."""
    objective, auxiliary = trial.objective, trial.auxiliary
    perceptual = objective.perceptual_weight > 0 and objective.perceptual_weights != "random"
    aligned = auxiliary.alignment > 0 and auxiliary.alignment_to != EMA
    return "yes" if perceptual or (aligned and auxiliary.alignment_weights != "random") else "no"


def published_table(groups: list[Group], dots: dict[str, str]) -> Table | None:
    """Published generation results and ours below them; None if we have none."""
    ours, theirs = our_rows(groups), published_rows()
    if not ours:
        return None
    rows = [*theirs, *ours]
    kinds = list(dict.fromkeys(row.kind for row in rows))
    header = ["method", "weights, M", "autoencoder counted", "pretrained model", "epochs", "guidance", "sampler", "images", *kinds, "IS (Inception)", "source"]  # fmt: skip
    cells = [
        [
            Cell(r.method),
            Cell(_short(r.parameters)),
            Cell(r.autoencoder_counted),
            Cell(r.pretrained_model.partition("; ")[0]),
            Cell(_short(r.epochs)),
            Cell(r.guidance),
            Cell(r.sampler.partition("; ")[0]),
            Cell(f"{r.images:,}" if r.images else ""),
            *(estimate_cell(r.fid, 2) if r.kind == kind else Cell("") for kind in kinds),
            Cell(_short(r.inception_score)),
            Cell(r.cite),
        ]
        for r in rows
    ]
    frame = pd.DataFrame([_record(r, kinds) for r in rows])
    note = (
        "An empty cell was not published or not copied. Parameter counts differ: some include the autoencoder, some leave out its "
        "49 to 84 M. A column holds one kind of FID (one extractor, one data set); values in different columns, or at different "
        "numbers of images, cannot be compared. Our rows share the published column if they were measured against ADM's "
        "VIRTUAL_imagenet256_labeled.npz with 1,000 classes and 256 pixels. Other statistics have their own columns, named by the "
        "start of the file's SHA-256. SDE-EM: Euler-Maruyama on the SDE. A later paper lists DSD as using a pretrained model. "
        "The CSV file has full sources."
    )
    colours = {r.method: dots[g.variant] for g in groups for r in ours if r.method == g.name}
    return Table(
        "published",
        "Comparison with published results",
        header,
        cells,
        frame,
        note,
        [colours.get(r.method, "transparent") for r in rows],
        folded=not {r.kind for r in ours} & {r.kind for r in theirs},
    )


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _record(row: Row, kinds: list[str]) -> dict[str, object]:
    plain = {k: v for k, v in vars(replace(row)).items() if k != "fid"}
    for kind in kinds:
        own = row.kind == kind
        plain[kind] = row.fid.mean if own else None
    measured = row.cite == "this sweep"
    return plain | {"ci_low": row.fid.ci_low, "ci_high": row.fid.ci_high, "seeds": row.fid.n if measured else None}


def collapse_table(groups: list[Group], settings: ReportSettings, dots: dict[str, str]) -> Table | None:
    """Published metrics of collapse and ours below them; None if nothing was probed."""
    rows, numbers, colours, comparable = [], [], [], False
    for r in reference("collapse"):
        rows.append([Cell(r["method"]), Cell(r["spatial_variance"]), Cell(r["total_variation"]), Cell(r["setup"]), Cell(r["source"])])  # fmt: skip
        own = {name: _number(r[name]) for name in ("spatial_variance", "total_variation")}
        numbers.append({"method": r["method"], **own, "setup": r["setup"], "source": r["source"]})
        colours.append("transparent")
    published = len(rows)
    for group in groups:
        spatial, variation = (
            estimate(list(group.probed(name, settings).values()), within=POSITIVE) for name in (_SPATIAL, _VARIATION)
        )
        if spatial is None or variation is None or not group.described:
            continue
        setup = _setup(group)
        first = group.described[0]
        comparable = comparable or _is_imagenet(first.trial, first.record.data)
        rows.append([Cell(group.name), estimate_cell(spatial, 4), estimate_cell(variation, 2), Cell(setup), Cell("this sweep")])  # fmt: skip
        means = {"spatial_variance": spatial.mean, "total_variation": variation.mean}
        numbers.append({"method": group.name, **means, "setup": setup, "source": "this sweep"})
        colours.append(dots[group.variant])
    if len(rows) == published:
        return None
    note = (
        "Spatial variance: over the positions of an image, mean over channels and images. Total variation: sum over neighbours, mean "
        "over images; it grows with the number of tokens and channels, so compare only rows with one setup. Rows without values "
        "published an effect on FID only."
    )
    header = ["latents", "spatial variance", "total variation", "setup", "source"]
    title, frame = "Comparison with published results on collapse", pd.DataFrame(numbers)
    return Table("published_collapse", title, header, rows, frame, note, colours, folded=not comparable)


def _setup(group: Group) -> str:
    first = group.described[0]
    network = first.trial.network
    return (
        f"{first.record.data.name}, {network.tokens} tokens x {network.latent_channels} channels, "
        f"{first.trial.latent.normaliser}, {first.step:,} steps"
    )
