"""Interpolation paths: the general formulas against the linear path's own, a plug-in's path, and what holds for the linear one alone."""

import math
import re
from pathlib import Path as File

import pytest
import torch
from sweeping import write_spec
from test_parts import EXAMPLE, HEAD, complaint, forget, plugin
from test_parts import no_plugins_stay as no_plugins_stay

from dsd_lab.core.diffusion.objectives import diffusion_loss, output_of
from dsd_lab.core.diffusion.paths import PATHS, Linear, Path, path_of
from dsd_lab.core.diffusion.samplers import SAMPLERS, Solver
from dsd_lab.core.randomness import Draws
from dsd_lab.report.statistics.theory import has_closed_form
from dsd_lab.specs.identity import canonical_fields, trial_id
from dsd_lab.specs.plugins import load_plugins
from dsd_lab.specs.trial import Objective, Trial

OTHER = {"objective": {"path": "trigonometric"}}


class Spelled(Path):
    """The linear path by its two functions and their slopes alone."""

    alpha, sigma = Linear.alpha, Linear.sigma
    alpha_slope, sigma_slope = Linear.alpha_slope, Linear.sigma_slope


@pytest.fixture
def trigonometric():
    load_plugins([str(EXAMPLE)])
    return PATHS["trigonometric"]()


def drawn(count=32):
    source = torch.Generator().manual_seed(0)
    z, e = (torch.randn(count, 4, 3, generator=source, dtype=torch.float64) for _ in range(2))
    return z, e, torch.linspace(0.01, 0.97, count, dtype=torch.float64)


def test_the_general_formulas_give_what_the_linear_path_has_of_its_own():
    (z, e, t), spelled, own = drawn(), Spelled(), Linear()
    for name, arguments in {
        "noised": (z, e, t),
        "velocity": (z, e, t),
        "to_clean": (e, z, t),
        "to_velocity": (e, z, t, 0.05),
        "velocity_weight": (t, 0.05),
        "drift": (e, z, t),
    }.items():
        assert torch.allclose(getattr(spelled, name)(*arguments), getattr(own, name)(*arguments), rtol=1e-9), name


def test_a_path_s_conversions_undo_each_other(trigonometric):
    z, e, t = drawn()
    z_t, v = trigonometric.noised(z, e, t), trigonometric.velocity(z, e, t)
    h = 1e-6
    slope = (trigonometric.noised(z, e, t + h) - trigonometric.noised(z, e, t - h)) / (2 * h)
    assert torch.allclose(v, slope, atol=1e-8)
    assert torch.allclose(trigonometric.to_clean(v, z_t, t), z)
    assert torch.allclose(trigonometric.to_velocity(z, z_t, t, 1e-9), v)
    assert torch.allclose(trigonometric.drift(v, z_t, t), v - e)
    weighted = trigonometric.velocity_weight(t, 1e-9)[:, None, None] * (z - e).square()
    off = trigonometric.to_velocity(z, z_t, t, 1e-9) - trigonometric.to_velocity(e, z_t, t, 1e-9)
    assert torch.allclose(weighted, off.square())


@pytest.mark.parametrize("output", ["clean", "velocity", "noise"])
@pytest.mark.parametrize("space", [{"loss_space": "velocity"}, {"loss_space": "clean", "weighting": "velocity"}])
def test_every_output_and_space_compares_on_the_trial_s_own_path(trigonometric, output, space):
    """A network that knows data and noise has no loss; one that errs by 1 in the data has that of the error."""
    z, e, t = drawn()
    spec = Objective(path="trigonometric", output=output, clamp=1e-6, **space)
    draws = Draws(t, e, torch.zeros(len(z), dtype=torch.long))

    def loss(wrong):
        guess = z + wrong
        z_t = trigonometric.noised(z, e, t)
        noise = (z_t - trigonometric.alpha(t)[:, None, None] * guess) / trigonometric.sigma(t)[:, None, None]
        out = {"clean": guess, "velocity": trigonometric.velocity(guess, noise, t), "noise": noise}[output]
        out.float = lambda: out  # the loss is in float64 here
        return float(diffusion_loss(lambda *_: out, z, z, draws, spec))

    assert loss(0.0) == pytest.approx(0, abs=1e-12)
    expected = (torch.pi / 2 / torch.cos(torch.pi / 2 * t)).square().mean()  # D is pi / 2
    assert loss(1.0) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dopri5", "sde"])
def test_samplers_end_at_the_data_of_another_path(trigonometric, sampler):
    """Data N(0, 0.6^2): the velocity of the posterior mean is known, and the flow multiplies noise by 0.6."""
    s, noise = 0.6, drawn(400)[1]

    def velocity(z, t, rows=None):
        a, b, da, db = (f(t.double())[:, None, None] for f in (trigonometric.alpha, trigonometric.sigma, trigonometric.alpha_slope, trigonometric.sigma_slope))  # fmt: skip
        return (da * a * s**2 + db * b) / (a**2 * s**2 + b**2) * z

    found = SAMPLERS[sampler](velocity, noise.clone(), Solver(steps=200, path=trigonometric))
    if sampler == "sde":
        assert float(found.std()) == pytest.approx(s, rel=0.04)
    else:
        assert torch.allclose(found, s * noise, atol=0.02)


def test_another_path_is_another_trial_and_the_linear_one_is_no_new_one(trigonometric):
    plain, other = Trial(), Trial.model_validate(OTHER)
    assert "path" not in canonical_fields(plain)["objective"] and "block" not in canonical_fields(plain)["network"]
    assert trial_id(other, 0) != trial_id(plain, 0)
    assert set(canonical_fields(other)["plugins"]) == {"path/trigonometric"}
    control = {"diffusion_weight": 0.0}
    unused = Trial.model_validate({"objective": control | OTHER["objective"]})
    assert trial_id(unused, 0) == trial_id(Trial.model_validate({"objective": control}), 0)


def test_the_closed_forms_are_about_the_linear_path_alone(trigonometric):
    assert has_closed_form(Trial().model_dump()) and not has_closed_form(Trial.model_validate(OTHER).model_dump())
    earlier = Trial().model_dump()
    del earlier["objective"]["path"]
    assert has_closed_form(earlier)  # records of before there was a choice


def test_a_part_that_does_not_ask_for_the_path_is_refused_beside_another(tmp_path, capsys):
    spec = write_spec(tmp_path, {"dsd": {"objective": OTHER["objective"] | {"loss_space": "l1_clean"}}})
    said = complaint(capsys, "plan", spec, "--plugin", EXAMPLE)
    assert "trigonometric does not go with the loss space 'l1_clean'" in said and "my_parts.py:" in said
    forget()
    forgotten = "@OUTPUTS.add('old')\ndef old(out, z_t, t, clamp): return out, out\n"
    path = plugin(tmp_path / "p", File(EXAMPLE).read_text() + HEAD + forgotten, "my_parts")
    spec = write_spec(tmp_path, {"dsd": {"objective": OTHER["objective"] | {"output": "old"}}})
    assert "does not go with the output 'old'" in complaint(capsys, "plan", spec, "--plugin", path)


BODY = """@PATHS.add("own")
class Own(Path):
    def alpha(self, t): return {alpha}
    def sigma(self, t): return {sigma}
    def alpha_slope(self, t): return {alpha_slope}
    def sigma_slope(self, t): return {sigma_slope}
"""
GOOD = {"alpha": "t**2", "sigma": "1 - t", "alpha_slope": "2 * t", "sigma_slope": "-torch.ones_like(t)"}
WRONG = {
    "a wrong slope": ({"alpha_slope": "t"}, r"alpha_slope\(0\.1\) is 0\.1, but alpha rises by 0\.2"),
    "times the other way": ({"alpha": "1 - t"}, r"alpha\(0\) is 1, not 0; t = 0 is noise and t = 1 is clean"),
    "noise at the end": ({"sigma": "1 - t / 2", "sigma_slope": "t * 0 - 0.5"}, r"sigma\(1\) is 0\.5, not 0"),
    "a number": ({"sigma_slope": "-1.0"}, "sigma_slope gives a float, not a tensor"),
    "a wrong shape": ({"sigma": "(1 - t)[:, None]"}, r"sigma gives a tensor of shape \[7, 1\]"),
    "an error": ({"alpha": "t.no_such()"}, "alpha fails: AttributeError"),
    "a ratio that falls": (
        {"alpha": "t + 2 * torch.sin(6 * torch.pi * t)", "alpha_slope": "1 + 12 * torch.pi * torch.cos(6 * torch.pi * t)"},
        "alpha / sigma does not grow",
    ),
}  # fmt: skip


def test_a_path_that_lacks_a_function_says_which(tmp_path, capsys):
    path = plugin(tmp_path / "p", HEAD + BODY.format(**GOOD).replace("def sigma_slope", "def slope_of_sigma"))
    said = complaint(capsys, "plan", write_spec(tmp_path, {"dsd": {"objective": {"path": "own"}}}), "--plugin", path)
    assert re.search(r"path 'own' \(\S+own_parts\.py:\d+\): does not define sigma_slope, which every path needs", said)


@pytest.mark.parametrize("case", [None, *WRONG])
def test_a_path_is_checked_when_it_is_loaded(case, tmp_path, capsys):
    changed, expected = WRONG.get(case, ({}, None))
    path = plugin(tmp_path / "p", HEAD + BODY.format(**GOOD | changed))
    spec = write_spec(tmp_path, {"dsd": {"objective": {"path": "own"}}})
    if expected is None:
        load_plugins([str(path)])
        objective = Trial.model_validate({"objective": {"path": "own"}}).objective
        assert float(path_of(objective).alpha(torch.tensor(0.5))) == 0.25
        assert math.isfinite(float(output_of(objective)(*torch.zeros(2, 1, 1, 1), torch.tensor([0.5]), 0.1)[1].sum()))
    else:
        said = complaint(capsys, "plan", spec, "--plugin", path)
        assert re.search(rf"path 'own' \(\S+own_parts\.py:3\): {expected}", said), said
