"""Paper tables: our rows under the published ones, each kind of FID in a column of its own.

The published rows are `analysis/reference/*.csv`, which the package carries along. An empty cell was not
published, or says nothing that was carried over.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import pandas as pd

from dsd_lab.home.parameter_count import parameters_in
from dsd_lab.report.groups import Group
from dsd_lab.report.statistics.intervals import POSITIVE, Estimate, estimate
from dsd_lab.report.tables.rendering import Cell, Table, estimate_cell
from dsd_lab.specs.auxiliary import EMA
from dsd_lab.specs.report import ReportSettings

_NUMBER = r"\d+(?:\.\d+)?(?:e[+-]?\d+)?"
_EVALUATION = re.compile(
    r"fid/(?P<extractor>[a-z]+)(?:-ref(?P<reference>[0-9a-f]{8}))?-n(?P<images>\d+)"
    rf"-cfg(?P<guidance>{_NUMBER})(?:in(?:side)?(?P<low>{_NUMBER})to(?P<high>{_NUMBER}))?"
    rf"-(?P<sampler>[a-z]+)(?:(?P<order>5)rtol(?P<rtol>{_NUMBER})atol(?P<atol>{_NUMBER})|(?P<steps>\d+))-(?P<rest>.+)"
)
"""The name of a FID tells how it was measured (`dsd_lab.evaluation.metric_names`)."""
_EXTRACTORS = {"indomain": "in-domain", "turns": "in-domain turns", "inception": "Inception"}
_MOST_TRAINING = 100_000
"""Training images, at most, that FID is measured against where no statistics are given (`dsd_lab.evaluation.real_images`)."""
_IMAGENET = "ImageNet 256"
ADM_STATISTICS = "b32732719497e42660a9affb4a966068cba0855ac449b82015e34ec376d20758"
"""SHA-256 of ADM's `VIRTUAL_imagenet256_labeled.npz` (2,037,122,530 bytes), which published FIDs are measured against.

Its authors publish no hash. Two copies of others list this one: huggingface.co/WindATree/diffusion-data (7c6013f) and
huggingface.co/xiangzai/reference (bd36c84).
"""
_SAMPLERS = {"sde": "SDE-EM"}
_SPATIAL, _VARIATION = "latent/spatial_variance", "latent/total_variation"


@dataclass(frozen=True)
class Row:
    """A row of the table of generation figures; an empty text was not published or does not apply."""

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
    """The source in a few characters; an arXiv number where it has one."""
    fid: Estimate
    """Of a published row, its one value."""
    inception_score: float | None = None

    @property
    def kind(self) -> str:
        """FIDs of two kinds share no column: neither features nor images are the same."""
        return f"FID ({self.extractor}, {self.data})"


def reference(name: str) -> list[dict[str, str]]:
    """The rows of a file of published results, without its suffix: `generation`, `collapse`."""
    text = files("dsd_lab.report").joinpath("reference", f"{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def published_rows() -> list[Row]:
    """What others have published."""
    return [
        Row(
            method=r["method"],
            parameters=_number(r["params_m"]),
            epochs=_number(r["epochs"]),
            guidance=r["guidance"],
            sampler=r["sampler"],
            images=int(r["images"]) if r["images"] else None,
            extractor=r["extractor"],
            data=r["data"],
            autoencoder_counted=r["autoencoder_counted"],
            pretrained_model=r["pretrained_model"],
            source=r["source"],
            cite=r["cite"],
            fid=Estimate(float(r["fid"]), None, None, None, 1),
            inception_score=_number(r["inception_score"]),
        )
        for r in reference("generation")
    ]


def _number(text: str) -> float | None:
    return float(text) if text else None


def our_rows(groups: list[Group]) -> list[Row]:
    """One row for every group and FID; what its name does not tell comes from the trials' fields."""
    rows = []
    for group in groups:
        for name, value in group.estimates.items():
            found = _EVALUATION.fullmatch(name)
            if not found or not group.described:
                continue
            first = group.described[0]
            fields, data = first.description["fields"], first.description["data"]
            weights = parameters_in(first.folder)
            rows.append(
                Row(
                    method=group.name,
                    parameters=weights / 1e6 if weights else None,
                    epochs=first.step * fields["training"]["batch_size"] / data["train"],
                    guidance=_guidance(found),
                    sampler=f"{_sampler(found)}; {found['rest'].replace('-', ', ')}",
                    images=int(found["images"]),
                    extractor=_extractor(found, data),
                    data=_IMAGENET if _as_published(found) and _is_imagenet(fields, data) else data["name"],
                    autoencoder_counted="yes",
                    pretrained_model=_pretrained_model(fields),
                    source=f"this sweep; statistics {found['reference']}" if found["reference"] else "this sweep",
                    cite="this sweep",
                    fid=value,
                )
            )
    return rows


def _guidance(found: re.Match[str]) -> str:
    """Scale and, where not all times are guided, their interval."""
    if float(found["guidance"]) == 1:
        return "none"
    interval = "" if found["low"] is None else f" in t [{float(found['low']):g}, {float(found['high']):g}]"
    return f"{float(found['guidance']):g}{interval}"


def _sampler(found: re.Match[str]) -> str:
    if found["order"]:
        return f"dopri5 (rtol {float(found['rtol']):g}, atol {float(found['atol']):g})"
    name = found["sampler"]
    return f"{_SAMPLERS.get(name, name.capitalize())} {found['steps']}"


def _extractor(found: re.Match[str], data: dict[str, Any]) -> str:
    """Features and what they are compared with: published statistics are another measure than training images."""
    name = _EXTRACTORS.get(found["extractor"], found["extractor"])
    if _as_published(found):
        return name
    if found["reference"]:
        return f"{name} against statistics {found['reference']}"
    return (
        name
        if name.startswith("in-domain")
        else f"{name} against {min(data['train'], _MOST_TRAINING):,} training images"
    )


def _as_published(found: re.Match[str]) -> bool:
    """Whether FID was measured as in the published rows: on Inception's features, against ADM's own file."""
    return bool(found["extractor"] == "inception" and found["reference"] == ADM_STATISTICS[:8])


def _is_imagenet(fields: dict[str, Any], data: dict[str, Any]) -> bool:
    """Whether a trial's images are of ImageNet's number of classes and at the published rows' size."""
    return data["classes"] == 1000 and fields["network"]["image_size"] == 256


def _pretrained_model(fields: dict[str, Any]) -> str:
    """`yes` where a loss compares with a timm model whose weights were not drawn at random."""
    objective, auxiliary = fields["objective"], fields.get("auxiliary", {})
    perceptual = objective.get("perceptual_weight", 0) > 0 and objective["perceptual_weights"] != "random"
    aligned = auxiliary.get("alignment", 0) > 0 and auxiliary["alignment_to"] != EMA
    return "yes" if perceptual or (aligned and auxiliary["alignment_weights"] != "random") else "no"


def published_table(groups: list[Group], dots: dict[str, str]) -> Table | None:
    """Published generation figures and ours below them; None where we have none."""
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
        "Published rows carry their source; an empty cell was not published or not carried over. Parameters differ in kind: some "
        "count the autoencoder, some leave out 49 to 84 M of it. A column holds one kind of FID: one extractor on one data set; "
        "values in different columns cannot be compared, nor values at different numbers of images. Ours share the published column "
        "where they were measured against ADM's VIRTUAL_imagenet256_labeled.npz, as published ones are, at 1,000 classes and 256 "
        "pixels. Other statistics have a column each: it and the source say which, by the start of the file's SHA-256. SDE-EM: Euler-Maruyama on the "
        "stochastic equation. That DSD uses a pretrained model is a later paper's listing. The CSV file has sources in full."
    )
    colours = {r.method: dots[g.variant] for g in groups for r in ours if r.method == g.name}
    return Table(
        "published",
        "Beside published results",
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
    """What was published of collapse and our latents below it; None where nothing was probed."""
    rows, numbers, colours = [], [], []
    for r in reference("collapse"):
        rows.append([Cell(r["method"]), Cell(r["spatial_variance"]), Cell(r["total_variation"]), Cell(r["setup"]), Cell(r["source"])])  # fmt: skip
        own = {name: _number(r[name]) for name in ("spatial_variance", "total_variation")}
        numbers.append({"method": r["method"], **own, "setup": r["setup"], "source": r["source"]})
        colours.append("transparent")
    published = len(rows)
    for group in groups:
        spatial, variation = (
            estimate(
                [v for r in group.finished if (v := r.last_probes(name, settings.probes)) is not None], within=POSITIVE
            )
            for name in (_SPATIAL, _VARIATION)
        )
        if spatial is None or variation is None or not group.described:
            continue
        setup = _setup(group)
        rows.append([Cell(group.name), estimate_cell(spatial, 4), estimate_cell(variation, 2), Cell(setup), Cell("this sweep")])  # fmt: skip
        means = {"spatial_variance": spatial.mean, "total_variation": variation.mean}
        numbers.append({"method": group.name, **means, "setup": setup, "source": "this sweep"})
        colours.append(dots[group.variant])
    if len(rows) == published:
        return None
    note = (
        "Spatial variance: over the positions of an image, mean over channels and images. Total variation: sum over neighbours, mean "
        "over images; it grows with the number of tokens and channels, so compare rows of one setup only. Rows without them "
        "were published as an effect on FID alone."
    )
    header = ["latents", "spatial variance", "total variation", "setup", "source"]
    return Table("published_collapse", "Beside published results of collapse", header, rows, pd.DataFrame(numbers), note, colours)  # fmt: skip


def _setup(group: Group) -> str:
    first = group.described[0]
    fields, network = first.description["fields"], first.description["fields"]["network"]
    tokens = (network["image_size"] // network["patch_size"]) ** 2
    return (
        f"{first.description['data']['name']}, {tokens} tokens x {network['latent_channels']} channels, "
        f"{fields['latent']['normaliser']}, {first.step:,} steps"
    )
