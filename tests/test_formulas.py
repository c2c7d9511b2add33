"""What a plan says without torch: formulas equal the counts of the code that trains, and cover the shipped specs."""

import subprocess
import sys
from pathlib import Path

import pytest
from test_phases import LATENT_MODEL

from dsd_lab.core.data import load_data
from dsd_lab.planning.data_check import digits_facts
from dsd_lab.planning.flops import count_bytes, count_shape
from dsd_lab.planning.formulas import bytes_by_formula, covers, shape_by_formula
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.trial import Data

STAGED = {
    "objective": {"diffusion_weight": 0.0},
    "training": {"steps": 100, "phases": [LATENT_MODEL | {"start": 0.3}]},
}
CASES = {
    "dsd": {},
    "control": {"objective": {"diffusion_weight": 0.0}},
    "live target": {"objective": {"target": "live", "output": "velocity", "loss_space": "velocity"}},
    "detached": {"objective": {"target": "stop_gradient", "noised": "detached"}},
    "coupled": {"network": {"layout": "coupled", "shared_blocks": 2}},
    "separate": {"network": {"layout": "separate", "denoise_blocks": 2, "heads": 4, "width": 24}},
    "kl": {"latent": {"normaliser": "kl"}},
    "affine": {"latent": {"normaliser": "layernorm_affine", "decoder_noise": 0.2}},
    "batchnorm": {"latent": {"normaliser": "batchnorm", "decoded": "raw"}},
    "draws": {"training": {"noise_draws": 3, "extra_ema_decays": [0.9]}},
    "auxiliaries": {
        "auxiliary": {"alignment": 0.5, "representation": 0.1, "classification": 0.1},
        "objective": {"target": "live"},
    },
    "classification of tokens": {"auxiliary": {"classification": 0.1, "classification_from": "encode"}},
    "masked": {"augmentation": {"mask": 0.2}, "network": {"patch_size": 2}},
    "anchor": {"objective": {"target": "live", "output": "velocity", "loss_space": "velocity", "anchor_weight": 1.0}},
    "anchor of draws, detached": {
        "objective": {"target": "stop_gradient", "noised": "detached", "anchor_weight": 1.0},
        "training": {"noise_draws": 2},
    },
    "a share of the gradient": {"objective": {"target": "live", "encoder_gradient": 0.1}},
    "a share that grows": {"objective": {"target": "live", "encoder_gradient": 0.5, "encoder_gradient_warmup": 10}},
    "regularised": {"latent": {"regularisers": {"variance_expansion": 0.1, "vicreg_variance": 1.0}}},
    "none of the gradient": {"objective": {"target": "stop_gradient", "encoder_gradient": 0.0}},
    "staged": STAGED,
    "staged, three networks": STAGED | {"network": {"layout": "separate"}},
    "a phase": {"training": {"phases": [{"start": 0.5, "objective": {"target": "live"}}]}},
    "bf16": {"training": {"precision": "bf16"}},
    "bf16 on a gpu": {"training": {"precision": "bf16"}, "resources": {"gpus": 1.0}},
}


@pytest.mark.parametrize("case", CASES)
def test_formulas_equal_the_counts(case, tiny_trial):
    trial = tiny_trial(**CASES[case])
    for channels, classes in ((1, 10),) if "auxiliary" in CASES[case] else ((1, 10), (3, 1)):
        assert shape_by_formula(trial, channels, classes) == count_shape(trial, channels, classes)
        counted = count_bytes(trial, channels, classes)
        assert bytes_by_formula(trial, channels, classes) == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize(
    "other",
    [
        {"objective": {"balance": "gradient_norm"}},
        {"training": {"activation_checkpointing": True}},
        {"training": {"phases": [{"start": 0.5, "frozen": ["encode"]}]}},
        {"latent": {"regularisers": {"vicreg_covariance": 0.1}}},
        {"latent": {"entropy_weight": 0.1}},
        {"optimiser": {"kind": "muon"}},
        {"auxiliary": {"alignment": 0.5, "alignment_from": "denoise"}},
    ],
)
def test_what_the_formulas_do_not_cover_is_counted(other, tiny_trial):
    trial = tiny_trial(**other)
    assert not covers(trial) and shape_by_formula(trial, 1, 10) is None and bytes_by_formula(trial, 1, 10) is None


def test_the_paper_s_sizes_and_the_first_sweep_are_covered():
    experiments = Path(__file__).parents[1] / "experiments"
    for name in ("imagenet256--full", "collapse_ablation--quick", "component_ablation--quick", "regime_map--quick"):
        name, profile = name.split("--")
        assert all(covers(trial.fields) for trial in load_sweep(experiments / f"{name}.yaml", profile, []).trials)


@pytest.mark.parametrize("more", [{}, {"holdout": 0.5}, {"size": 16, "crop": "centre"}, {"holdout": 0.001}])
def test_what_is_said_of_the_digits_without_reading_them_is_what_is_read(more):
    spec = Data(**more)
    read, said = load_data(spec).facts, digits_facts(spec).model_dump(exclude_unset=True)
    assert said == {key: read[key] for key in said}


@pytest.mark.integration
def test_a_plan_of_a_spec_that_was_never_seen_imports_no_torch(tmp_path):
    asked = [
        str(Path(__file__).parents[1] / "experiments" / "collapse_ablation.yaml"),
        "--home",
        str(tmp_path / "home"),
    ]
    code = f"import sys; from dsd_lab.cli.main import main; main(['plan', *{asked!r}]); print([m for m in ('torch', 'timm', 'sklearn', 'pandas', 'scipy') if m in sys.modules])"
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]" and "1,402 training and 395 held-out images" in done.stdout
