"""Paper tables: what is carried over, and that two kinds of FID never share a column."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sweeping import described
from test_report import SETTINGS, result

from dsd_lab.evaluation.metric_names import extractor_name, sampling_name, weights_name
from dsd_lab.home.history import History
from dsd_lab.report.groups import groups_of
from dsd_lab.report.tables.published import (
    ADM_STATISTICS,
    _pretrained_model,
    collapse_table,
    our_rows,
    published_rows,
    published_table,
    reference,
)
from dsd_lab.report.tables.rendering import latex
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.trial import Generation, Trial

ROOT = Path(__file__).resolve().parents[1]
OURS = "fid/indomain-n395-cfg1-heun25-holdout-ema0.99"
GUIDED = "fid/indomain-n395-cfg2.5-euler10-balanced-ema0.99"
INCEPTION = "fid/inception-n5000-cfg1-heun25-balanced-ema0.99"


SETTINGS_OF = {
    OURS: Generation(),
    GUIDED: Generation(guidance=2.5, sampler="euler", steps=10, images=395),
    INCEPTION: Generation(extractor="inception", images=5000),
}


def grouped(settings=SETTINGS_OF, **metrics):
    """Three seeds with these values; names that `settings` has are of evaluations."""

    def one(seed):
        values = {name: value + seed for name, value in metrics.items()}
        evaluations = [(settings[name], {name: value}) for name, value in values.items() if name in settings]
        return result("dsd", seed, metrics=values, evaluations=evaluations)

    return groups_of([one(seed) for seed in range(3)], SETTINGS)


def table(groups):
    return published_table(groups, dict.fromkeys((g.variant for g in groups), "#000000"))


def test_every_published_row_has_a_source_a_value_and_known_columns():
    rows = published_rows()
    assert len(rows) == 32
    for row in rows:
        assert row.source and row.cite and row.fid.mean > 1 and row.parameters > 40 and row.guidance in ("none", "yes")
        assert (row.images, row.extractor, row.data) == (50_000, "Inception", "ImageNet 256")
        assert row.autoencoder_counted in ("yes", "no", "has none (pixels)", "")
    assert len({(r.method, r.epochs, r.guidance) for r in rows}) == len(rows)


def test_the_paper_s_own_rows_are_the_published_ones():
    own = {(r.parameters, r.guidance): r.fid.mean for r in published_rows() if r.method.startswith("DSD")}
    assert own == {(42, "none"): 13.44, (118, "none"): 6.38, (205, "none"): 4.25, (205, "yes"): 3.35}
    rows = reference("collapse")
    measured = {r["method"]: (float(r["spatial_variance"]), float(r["total_variation"])) for r in rows[:3]}
    assert measured == {
        "frozen VAE": (17.06, 6627),
        "end to end with the REPA loss": (18.02, 5516),
        "end to end with the diffusion loss": (0.02, 89.8),
    }
    fids = {r["method"]: re.search(r"FID ([0-9.]+)", r["setup"])[1] for r in rows[3:]}
    assert fids["REPA-E without its stop-gradient"] == "444.1" and fids["SpeeDiff's baseline, end to end"] == "33.95"
    assert fids["SpeeDiff with TPR, end to end"] == "5.79"
    for row in rows:
        assert row["source"] and row["data"] == "ImageNet 256"
        assert (row["spatial_variance"] == "") == (row["total_variation"] == "") == ("FID" in row["setup"])


def test_our_rows_stand_under_the_published_ones_with_what_their_name_tells():
    made = table(grouped(**{OURS: 2.0, GUIDED: 1.0}))
    assert made.folded and len(made.rows) == 34 and [r[0].text for r in made.rows[-2:]] == ["dsd", "dsd"]
    shown = [dict(zip(made.header, (c.text for c in row), strict=True)) for row in made.rows[-2:]]
    guided, plain = sorted(shown, key=lambda r: r["guidance"])
    assert (plain["guidance"], plain["sampler"], plain["images"]) == ("none", "Heun 25", "395")
    assert (guided["guidance"], guided["sampler"]) == ("2.5", "Euler 10")
    assert plain["epochs"] == "1.37"  # 30 steps of 64 of 1,402 images
    assert list(made.frame.extractor[-2:]) == ["in-domain"] * 2 and "extractor" not in made.header, (
        "the FID's column tells"
    )
    assert plain["FID (in-domain, digits)"] == "3.00" and plain["FID (Inception, ImageNet 256)"] == ""


def test_two_kinds_of_fid_share_no_column_even_where_the_extractor_is_the_same():
    made = table(grouped(**{OURS: 2.0, INCEPTION: 40.0}))
    kinds = [h for h in made.header if h.startswith("FID")]
    own = "FID (Inception against 1,402 training images, digits)"
    assert kinds == ["FID (Inception, ImageNet 256)", own, "FID (in-domain, digits)"]
    for row in made.frame[kinds].notna().to_numpy():
        assert row.sum() == 1
    sources = {k: set(made.frame.loc[made.frame[k].notna(), "source"]) for k in kinds}
    assert all(sources[k] == {"this sweep"} for k in kinds[1:]) and "this sweep" not in sources[kinds[0]]


@pytest.mark.parametrize(
    ("settings", "guidance", "sampler", "kind"),
    [
        ({"sampler": "dopri5"}, "none", "dopri5 (rtol 1e-05, atol 1e-05)", "FID (in-domain, digits)"),
        ({"sampler": "dopri5", "rtol": 0.1, "atol": 1e-12}, "none", "dopri5 (rtol 0.1, atol 1e-12)", None),
        ({"guidance": 2.0, "guidance_interval": [0.1, 0.9]}, "2 in t [0.1, 0.9]", "Heun 25", None),
        (
            {"guidance": 1.25, "guidance_interval": [0.0, 1e-05], "sampler": "dopri5"},
            "1.25 in t [0, 1e-05]",
            None,
            None,
        ),
        ({"guidance_interval": [0.1, 0.9]}, "none", "Heun 25", None),
        ({"guidance": 1e-05, "sampler": "sde", "steps": 250}, "1e-05", "SDE-EM 250", None),
        ({"extractor": "inception"}, "none", None, "FID (Inception against 1,402 training images, digits)"),
        (
            {"extractor": "inception", "reference": "a.npz"},
            "none",
            None,
            "FID (Inception against statistics 0a1b2c3d, digits)",
        ),
        ({"reference": "a.npz"}, "none", None, "FID (in-domain against statistics 0a1b2c3d, digits)"),
        ({"images": 50_000, "labels": "random", "weights": "ema:0.95", "sampler": "euler"}, "none", "Euler 25", None),
    ],
)
def test_every_evaluation_that_can_be_asked_for_has_a_row(settings, guidance, sampler, kind):
    evaluation = Generation(**settings)
    if evaluation.reference:
        evaluation = evaluation.model_copy(update={"reference_sha256": "0a1b2c3d" * 8})
    name = f"fid/{extractor_name(evaluation)}-n395-{sampling_name(evaluation)}-{weights_name(evaluation, Trial())}"
    (row,) = our_rows(grouped({name: evaluation}, **{name: 2.0}))
    assert (row.guidance, row.images) == (guidance, 395 if evaluation.images == "holdout" else evaluation.images)
    assert row.sampler.endswith(weights_name(evaluation, Trial()))
    assert sampler is None or row.sampler.partition(";")[0] == sampler
    assert kind is None or row.kind == kind
    assert ("0a1b2c3d" in row.source) == (evaluation.reference is not None)


def test_only_imagenet_against_adms_own_statistics_shares_the_published_column():
    """Two files of statistics never share a column: a repacked or other one has its own, named after its hash."""
    name = f"fid/inception-ref{ADM_STATISTICS[:8]}-n50000-cfg1-heun50-balanced-ema0.9999"
    other, plain = name.replace(ADM_STATISTICS[:8], "0a1b2c3d"), name.replace(f"-ref{ADM_STATISTICS[:8]}", "")
    published = Generation(extractor="inception", images=50_000, steps=50, reference="a.npz")
    settings = {
        name: published.model_copy(update={"reference_sha256": ADM_STATISTICS}),
        other: published.model_copy(update={"reference_sha256": "0a1b2c3d" * 8}),
        plain: published.model_copy(update={"reference": None}),
    }
    (group,) = grouped(settings, **{name: 4.0, other: 3.0, plain: 5.0})
    for r in group.results:
        fields = r.record.fields | {"network": r.record.fields["network"] | {"image_size": 256}}
        object.__setattr__(r, "description", described(fields, classes=1000, name="imagenet", train=1_281_167))
    kinds = {row.kind: row.fid.mean for row in our_rows([group])}
    assert kinds == {
        "FID (Inception, ImageNet 256)": 5.0,
        "FID (Inception against statistics 0a1b2c3d, imagenet)": 4.0,
        "FID (Inception against 100,000 training images, imagenet)": 6.0,
    }
    assert {row.source for row in our_rows([group])} == {
        "this sweep",
        "this sweep; statistics 0a1b2c3d",
        f"this sweep; statistics {ADM_STATISTICS[:8]}",
    }


def test_the_shipped_spec_names_adms_file_by_its_hash():
    plan = load_sweep(ROOT / "experiments" / "imagenet256.yaml", profile="full")
    assert {e.reference_sha256 for e in plan.spec.evaluate if e.reference} == {ADM_STATISTICS}


def test_without_a_fid_of_ours_there_is_no_table_and_one_whose_settings_are_lost_is_left_out():
    assert table(grouped()) is None
    assert our_rows(grouped(**{"fid/digits-n9-cfg1": 1.0})) == []


def test_the_collapse_table_has_our_latents_below_the_published_ones():
    extra = [(s, n, -1, v) for s in (0, 10, 20, 30) for n, v in (("latent/spatial_variance", 0.5), ("latent/total_variation", 9.0))]  # fmt: skip
    trial = result("dsd")
    names = ("latent/variance", "latent/effective_rank/token", "latent/effective_rank/image", "latent/capacity_bits/token", "latent/probe_images")  # fmt: skip
    rows = [(int(s), n, -1, float(v)) for n in names for s, v in zip(*trial.history.series(n), strict=True)] + extra
    at, kind, index, values = (np.array(c, dtype=t) for c, t in zip(zip(*rows, strict=True), (int, object, int, float), strict=True))  # fmt: skip
    object.__setattr__(trial, "history", History(at, kind, index, values))
    groups = groups_of([trial], SETTINGS)
    made = collapse_table(groups, SETTINGS, {"dsd": "#000000"})
    assert [c.text for c in made.rows[-1]] == ["dsd", "0.5000", "9.00", "digits, 4 tokens x 8 channels, layernorm, 30 steps", "this sweep"]  # fmt: skip
    assert len(made.rows) == 15 and "REPA-E" in made.rows[0][4].text
    assert collapse_table(grouped(), SETTINGS, {"dsd": "#000000"}) is None


def test_the_table_is_latex_without_a_character_that_its_fonts_lack():
    assert "[U+" not in latex(table(grouped(**{OURS: 2.0})))


@pytest.mark.slow
def test_an_installed_wheel_carries_the_published_rows(tmp_path):
    """The files lie in `analysis/reference`; the package holds a link to them, which a wheel replaces by copies."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("dsd_lab", "analysis/reference"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "-q", "--target"]
    done = subprocess.run([*pip, str(tmp_path / "site"), str(source)], capture_output=True, text=True)
    if re.search("No module named 'setuptools'|Cannot import 'setuptools", done.stderr):
        pytest.skip("setuptools is not installed here, and a build may not download it")
    assert done.returncode == 0, done.stderr
    program = "from dsd_lab.report.tables import published as p; print(p.__file__, len(p.published_rows()), len(p.reference('collapse')))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert told.stdout.split()[1:] == ["32", "14"] and str(tmp_path / "site") in told.stdout


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({}, "no"),
        ({"auxiliary": {"alignment": 1.0}}, "no"),
        (
            {"auxiliary": {"alignment": 1.0, "alignment_to": "vit_tiny_patch16_224", "alignment_weights": "random"}},
            "no",
        ),
        (
            {"auxiliary": {"alignment": 1.0, "alignment_to": "vit_tiny_patch16_224", "alignment_weights": "a.pth"}},
            "yes",
        ),
        (
            {"objective": {"perceptual_weight": 1.0, "perceptual_backbone": "vgg16", "perceptual_weights": "random"}},
            "no",
        ),
        (
            {
                "objective": {
                    "perceptual_weight": 1.0,
                    "perceptual_backbone": "vgg16",
                    "perceptual_weights": "pretrained",
                }
            },
            "yes",
        ),
    ],
)
def test_a_trial_says_whether_a_pretrained_model_helped_it(sections, told):
    assert _pretrained_model(Trial.model_validate(sections)) == told
