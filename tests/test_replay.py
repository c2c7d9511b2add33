"""Steps replayed from a recording are the steps: on the CPU by a tape that repeats operations in the same memory, as a CUDA graph does."""

import copy

import pytest
import torch
from benchmarks.parts import Stopwatch, timed_parts
from pydantic import ValidationError
from sweeping import run, write_spec
from test_pretended_gpu import MORE, covering, trial_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dsd_lab.bench.clock import Clock
from dsd_lab.bench.machine import tensor_bytes
from dsd_lab.bench.measure import Block
from dsd_lab.core.data import load_data
from dsd_lab.core.training.cuda_graphs import WARM_UP, Replay
from dsd_lab.core.training.events import Logged
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.errors import BAD_INPUT
from dsd_lab.planning.estimates import shape_key
from dsd_lab.specs.identity import canonical_fields, trial_id
from dsd_lab.specs.trial import Data, Trial

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")


class Tape(TorchDispatchMode):
    """Records operations with their very tensors, and repeats them: results go where the first ones lie.

    Unlike a CUDA graph it computes while it records; `undo` is called when it is done.
    """

    def __init__(self, module):
        super().__init__()
        self.module, self.operations, self.recorded = module, [], 0

    def warm(self, compute):
        return compute()

    def record(self, compute):
        self.operations, before = [], copy.deepcopy(list(self.module.buffers()))
        with self:
            found = compute()
        for buffer, was in zip(self.module.buffers(), before, strict=True):
            buffer.copy_(was)
        self.recorded += 1
        return found, self.again

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out

    def again(self):
        for func, args, kwargs, out in self.operations:
            if func.is_view:
                continue
            with torch.no_grad():
                new = func(*args, **kwargs)
                for place, value in zip(tree_leaves(out), tree_leaves(new), strict=True):
                    if isinstance(place, torch.Tensor) and place is not value:
                        place.copy_(value)


def replaying(trial, data):
    """A trainer that replays, and its tape."""
    trainer = Trainer(trial, 0, data, torch.device("cpu"))
    tape, enter = Tape(trainer.trained), trainer._enter

    def entered(stage):
        enter(stage)
        trainer.replay = Replay(tape)

    trainer._enter = entered
    entered(trainer.stage)
    return trainer, tape


def longer(trial, steps=12):
    values = trial.model_dump()
    values["training"] |= {"steps": steps}
    values["observation"] |= {"log_every": 4}
    return Trial.model_validate(values)


@pytest.mark.parametrize("name", [*covering(), *MORE])
def test_replayed_steps_are_those_that_are_computed_anew(name):
    trial, data = longer(trial_of(name)), load_data(Data())
    plain, (replayed, tape) = Trainer(trial, 0, data, torch.device("cpu")), replaying(trial, data)
    told = [[event.metrics for event in trainer.run() if isinstance(event, Logged)] for trainer in (plain, replayed)]
    assert tape.recorded == len(trial.stages()) and len(tape.operations) > 100
    assert told[0] == told[1] and len(told[0]) == 3
    for ours, theirs in zip(replayed.kept.values(), plain.kept.values(), strict=True):
        for (key, value), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert torch.equal(value, other), key


def test_parts_are_timed_kernel_by_kernel_and_steps_recorded_anew_after_them(tiny_trial, digits):
    trial = tiny_trial(training={"steps": 40})
    plain, (replayed, tape) = Trainer(trial, 0, digits, torch.device("cpu")), replaying(trial, digits)
    watch = Stopwatch(Clock(torch.device("cpu")))
    for _ in range(2):
        for trainer in (plain, replayed):
            for _ in range(WARM_UP + 2):
                trainer.train_step()
        before, losses = tape.recorded, watch.seconds["objective"]
        with timed_parts(replayed, watch):
            replayed.train_step()
        assert watch.seconds["objective"] > losses and tape.recorded == before
        plain.train_step()
        assert tensor_bytes(replayed) == tensor_bytes(plain)
    assert tape.recorded == 2
    assert all(
        torch.equal(a, b) for a, b in zip(plain.network.parameters(), replayed.network.parameters(), strict=True)
    )
    block = Block(replayed, Clock(torch.device("cpu")))
    block.enter(replayed.stage)
    assert tape.recorded == 3, "steps are timed from the first that is replayed"


def test_the_first_steps_are_computed_one_kernel_after_the_other(tiny_trial, digits):
    trainer, tape = replaying(tiny_trial(training={"steps": WARM_UP + 2}), digits)
    for step in range(WARM_UP + 2):
        trainer.train_step()
        assert tape.recorded == (step >= WARM_UP)


def test_graphs_need_a_gpu_and_are_another_trial(tmp_path, capsys):
    spec = write_spec(tmp_path, {"dsd": {"training": {"cuda_graphs": True}}})
    assert run("plan", spec, "--home", tmp_path / "home")[0] == BAD_INPUT
    with pytest.raises(ValidationError, match="determinant"):
        Trial.model_validate(
            {"training": {"cuda_graphs": True}, "resources": {"gpus": 1.0}, "latent": {"entropy_weight": 0.1}}
        )
    on_gpu = {"resources": {"gpus": 1.0}}
    plain, graphed = (Trial.model_validate(on_gpu | {"training": {"cuda_graphs": graphs}}) for graphs in (False, True))
    assert trial_id(plain, 0) != trial_id(graphed, 0)
    assert shape_key(canonical_fields(plain)) != shape_key(canonical_fields(graphed)), "another time a step"


@NO_GPU
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_graph_s_steps_are_those_of_its_kernels_on_a_gpu(tiny_trial, digits, precision):
    found = []
    for graphs in (False, True):
        training = {"steps": 10, "precision": precision, "cuda_graphs": graphs}
        trial = tiny_trial(training=training, resources={"gpus": 1.0})
        trainer = Trainer(trial, 0, digits, torch.device("cuda"))
        list(trainer.run())
        found.append([value.cpu() for value in trainer.network.state_dict().values()])
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
