"""Compiled blocks: the same training, through code that torch made."""

import pytest
import torch
from golden import trial_of
from torch._dynamo.testing import CompileCounterWithBackend

from dsd_lab.core.data import load_data
from dsd_lab.core.model.blocks import TanhGELU
from dsd_lab.core.training.events import Finished, Logged, Probed
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.planning.estimates import shape_key
from dsd_lab.specs.identity import canonical_fields, trial_id
from dsd_lab.specs.trial import Trial

CHANGES = {"training": {"compile": True}, "probe": {"every": 4}}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compiled_steps_give_the_losses_of_eager_ones_and_resume(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    data, torch_threads = load_data(Trial().data), torch.get_num_threads()
    torch.set_num_threads(1)
    eager, compiled = (
        list(Trainer(trial_of("dsd", "fp32", changes), 0, data, torch.device("cpu"), tmp_path / name).run())
        for name, changes in (("eager", {"probe": {"every": 4}}), ("compiled", CHANGES))
    )
    torch.set_num_threads(torch_threads)
    for kind in (Logged, Probed):
        ours, theirs = ([e.metrics for e in events if isinstance(e, kind)] for events in (compiled, eager))
        assert len(ours) == len(theirs) > 0
        for one, other in zip(ours, theirs, strict=True):
            assert one == pytest.approx(other, rel=1e-3, abs=1e-3)
    assert any((tmp_path / "cache").rglob("*.so")), "nothing was compiled"
    resumed = Trainer(trial_of("dsd", "fp32", CHANGES), 0, data, torch.device("cpu"), tmp_path / "compiled")
    assert resumed.resume()
    assert isinstance(list(resumed.run())[-1], Finished)
    plain = Trainer(trial_of("dsd", "fp32"), 0, data, torch.device("cpu"), tmp_path / "compiled")
    assert plain.resume(), "weights have the names that eager ones have"


def test_compiling_is_another_trial_and_another_time():
    plain, compiled = trial_of("dsd", "fp32"), trial_of("dsd", "fp32", CHANGES)
    assert trial_id(plain, 0) != trial_id(compiled, 0), "rounding differs"
    assert shape_key(canonical_fields(plain)) != shape_key(canonical_fields(compiled))


@pytest.mark.integration
def test_a_process_that_meets_many_shapes_compiles_the_last_as_it_did_the_first(monkeypatch):
    torch._dynamo.reset()
    network = Trainer(trial_of("dsd", "fp32"), 0, load_data(Trial().data), torch.device("cpu")).network
    count, block = CompileCounterWithBackend("eager"), network.blocks[0]
    given = {}
    monkeypatch.setattr(type(block), "compile", lambda self, **settings: given.update(settings))
    network.compile_blocks()
    monkeypatch.undo()
    block.compile(**given, backend=count)  # counts what torch would compile
    assert torch._dynamo.config.recompile_limit < 20, "no setting of the whole process"
    width = network.position.shape[1]
    for images in range(1, 21):
        block(torch.randn(images, 4, width), torch.randn(images, width))
    assert count.frame_count == 20
    torch._dynamo.reset()


def test_gelu_is_the_same_function_compiled(monkeypatch):
    x = torch.linspace(-12, 12, 4801, dtype=torch.float64, requires_grad=True)
    found = []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        y = TanhGELU()(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        found.append((y.detach(), slope))
    for eager, compiled in zip(*found, strict=True):
        assert torch.allclose(eager, compiled, rtol=1e-9, atol=1e-12)
    assert not torch.equal(found[0][0], found[1][0]), "the two forms round alike: is the second one run?"
