"""Every shipped spec resolves, and every one of its variants takes its first optimiser steps."""

import json
from pathlib import Path

import pytest
import torch

from dsd_lab.cli.main import main
from dsd_lab.core.data import load_data
from dsd_lab.core.training.events import Finished
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.planning.flops import count_shape
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.trial import Data, Trial

SPECS = sorted((Path(__file__).parents[1] / "experiments").glob("*.yaml"))
SMALL = {
    "image_size": 8,
    "patch_size": 4,
    "latent_channels": 4,
    "width": 16,
    "heads": 2,
    "encode_blocks": 1,
    "denoise_blocks": 1,
    "decode_blocks": 1,
    "shared_blocks": 1,
}


def small(fields: Trial) -> Trial:
    """The same method on digits, with narrow layers, small batches and three steps."""
    values = fields.model_dump(exclude_unset=False)
    values["data"] = {"source": "digits"}
    values["network"] |= SMALL
    values["training"] |= {"steps": 3, "batch_size": 8}
    values["optimiser"] |= {"warmup_steps": 0}
    values["resources"] |= {"gpus": 0.0}
    values["probe"] |= {"every": 1000, "images": 16, "t_bins": 2, "gradient_images": 4}
    values["observation"] |= {"images_every": 1000, "images": 2}
    return Trial.model_validate(values)


def variants():
    """One trial of every spec's and profile's variants and grid points, of those that differ when they are small."""
    found, seen = {}, set()
    for path in SPECS:
        for profile in load_sweep(path).spec.profiles or [None]:
            plan = load_sweep(path, profile)
            for trial in (t for t in plan.trials if t.seed == plan.spec.seeds[0]):
                shape = small(trial.fields)
                shape = shape.model_copy(update={"optimiser": shape.optimiser.model_copy(update={"lr": 1e-3})})
                if (key := shape.model_dump_json()) not in seen:
                    seen.add(key)
                    found[f"{path.stem}:{trial.name.removesuffix(f' s{trial.seed}')}"] = trial.fields
    return found


VARIANTS = variants()


@pytest.mark.parametrize("path", SPECS, ids=lambda p: p.stem)
def test_a_spec_says_why_and_has_a_quick_profile(path):
    plan = load_sweep(path)
    assert plan.spec.name == path.stem and plan.spec.why
    assert "quick" in plan.spec.profiles
    assert plan.profile == ("full" if path.stem == "imagenet256" else "quick")  # the paper's table is no plan of digits
    first = path.read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=spec.schema.json"


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_takes_its_first_steps(name):
    trainer = Trainer(small(VARIANTS[name]), 0, load_data(Data()), torch.device("cpu"))
    before = [p.detach().clone() for p in trainer.network.parameters()]
    assert isinstance(list(trainer.run())[-1], Finished)  # with its phases, and probed in the first and the last
    moved = [not torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True)]
    assert any(moved) and all(bool(torch.isfinite(p).all()) for p in trainer.network.parameters())


@pytest.mark.integration
@pytest.mark.parametrize("profile", ["quick", "full"])
@pytest.mark.parametrize(
    ("name", "reference", "others"),
    [
        ("one_network_three_ways", "modular", {"coupled", "separate", "detached", "staged"}),
        ("dsd_recipe", "dsd", {"recipe", "recipe_online", "detached", "detached_recipe", "staged", "staged_recipe"}),
        ("what_dsd_needs", "dsd", {"detached", "staged", "classification", "noise_02"}),
        ("recipe_sizes", "dsd", {"recipe", "detached", "staged"}),
    ],
)
def test_a_spec_that_says_so_compares_equal_weights_and_equal_training_flops(name, profile, reference, others):
    found: dict[int, dict[str, tuple[int, int]]] = {}
    for trial in load_sweep(SPECS[0].parent / f"{name}.yaml", profile).trials:
        width, training = trial.fields.network.width, trial.fields.training
        if trial.variant in {reference, *others} and trial.variant not in found.setdefault(width, {}):
            shape = count_shape(trial.fields, 1, 10)
            flops = shape["flops_per_image"] * training.batch_size * training.steps
            found[width][trial.variant] = shape["params"]["total"], flops
    for width, variants in found.items():
        assert others <= variants.keys()
        for variant, counts in variants.items():
            assert counts == pytest.approx(variants[reference], rel=0.02), (width, variant)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "profile", "reference", "points"),
    [
        ("regime_map", "quick", "dsd", [{"network.latent_channels": c, "training.steps": 400} for c in (4, 128)]),
        ("regime_map", "mnist", "dsd", [{"network.latent_channels": c, "training.steps": 4800} for c in (12, 392)]),
        ("paper_mini", "full", "recipe", [{"network.width": width} for width in (104, 176, 232)]),
    ],
)
def test_a_factor_on_the_steps_makes_training_flops_equal_at_the_ends_of_the_grid(name, profile, reference, points):
    plan, weights = load_sweep(SPECS[0].parent / f"{name}.yaml", profile), []
    for point in points:
        counts = {}
        for trial in plan.trials:
            if trial.point == point and trial.variant not in {"control", *counts}:
                shape, steps = count_shape(trial.fields, 1, 10), trial.fields.training.steps
                counts[trial.variant] = shape["params"]["total"], shape["flops_per_image"] * steps
        weights.append(counts[reference][0])
        assert len(counts) >= 3 and set(counts) == set(plan.spec.variants) - {"control"}
        assert all(found == pytest.approx(counts[reference], rel=0.02) for found in counts.values()), (point, counts)
    if name == "paper_mini":  # sizes as 42 : 118 : 205
        assert [w / weights[0] for w in weights] == pytest.approx([1, 118 / 42, 205 / 42], rel=0.02)


@pytest.mark.parametrize(
    ("conditions", "found"),
    [
        (["variant=dsd,naive"], {("dsd", 0), ("dsd", 1), ("dsd", 2), ("naive", 0), ("naive", 1), ("naive", 2)}),
        (["variant=dsd", "variant=naive", "seed=1"], {("dsd", 1), ("naive", 1)}),
        (["seed=0", "variant=control", "seed=2"], {("control", 0), ("control", 2)}),
    ],
)
def test_trials_are_chosen_by_variant_and_seed_and_conditions_on_one_key_add_up(conditions, found):
    plan = load_sweep(SPECS[0].parent / "collapse_ablation.yaml").only(conditions)
    assert {(t.variant, t.seed) for t in plan.trials} == found


def test_interventions_are_their_plain_variants_until_the_middle():
    trials = {t.variant: t.fields for t in load_sweep(SPECS[0].parent / "interventions.yaml").trials}
    pairs = [(trials[name.split("_then_")[0]], fields) for name, fields in trials.items() if "_then_" in name]
    assert len(pairs) == 10
    for plain, switched in pairs:
        stages = switched.stages()
        assert [s.start for s in stages] == [0, switched.training.steps // 2]
        assert stages[0].trial.objective == plain.objective != stages[1].trial.objective
        training = switched.training.model_copy(update={"phases": []})
        assert switched.model_copy(update={"training": training}) == plain


def test_the_papers_table_is_planned_on_a_machine_without_imagenet_and_without_a_gpu(tmp_path, capsys):
    spec = SPECS[0].parent / "imagenet256.yaml"
    arguments = ["plan", str(spec), "--set", f"base.data.path={tmp_path / 'nothing'}"]
    assert main([*arguments, "--gpu", "h200", "--home", str(tmp_path / "home"), "--json"]) == 0
    told = capsys.readouterr()
    assert f"no such folder {tmp_path / 'nothing'}" in told.err and "fetch-weights inception" in told.err
    trials = {t["variant"]: t for t in json.loads(told.out)["trials"]}
    assert set(trials) == {"small", "middle", "base"}
    for name, published in (("small", 42e6), ("middle", 118e6), ("base", 205e6)):
        trial = trials[name]
        assert trial["params"]["total"] == pytest.approx(published, rel=0.02)
        assert trial["gpus"] == 1 and "VIRTUAL_imagenet256_labeled.npz" in told.err
        assert trial["seconds_source"] == "from FLOPs, h200" and 3600 < trial["seconds"] < 100 * 3600
        assert min(trial["flops_by_role"].values()) > 1e9 and trial["memory_bytes"] > 1e9
    images = trials["base"]["flops_total"] / trials["base"]["flops_per_image"]
    assert images / 1_281_167 == pytest.approx(50, rel=0.01), "epochs of ImageNet's training images"
