"""What others do not promise and this package uses: each is held here, so that a new version says which broke."""

import os
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from dsd_lab.core.training.finiteness import Finiteness
from dsd_lab.core.training.optimiser import Optimisers
from dsd_lab.report.page.frames import _by_step
from dsd_lab.report.results import Result


def of(library: str) -> str:
    return f"{library} {version(library)} no longer does what dsd-lab needs of it"


def test_fused_optimisers_of_torch_take_no_step_where_found_inf_is_one():
    weight = torch.nn.Parameter(torch.ones(3))
    optimiser = Optimisers(torch.optim.AdamW([weight], lr=0.1, fused=True))
    finiteness = Finiteness(torch.device("cpu"), optimiser, delay=1)
    for loss, moved in ((1.0, True), (float("nan"), False), (1.0, False)):
        before, weight.grad = weight.detach().clone(), torch.ones(3)
        finiteness.watch(0, torch.tensor(loss), torch.tensor(1.0))
        optimiser.step()
        assert torch.equal(before, weight) != moved, f"{of('torch')}: `found_inf` of fused AdamW"


def test_fake_tensors_of_torch_have_shapes_and_no_data():
    try:
        from torch._subclasses.fake_tensor import FakeTensorMode
    except ImportError:
        pytest.fail(f"{of('torch')}: torch._subclasses.fake_tensor.FakeTensorMode")
    kept = []
    with FakeTensorMode(), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        torch.zeros(2**40, 2, requires_grad=True).exp()
    assert kept[0].untyped_storage().nbytes() == 2**43, f"{of('torch')}: storages of fake tensors"


def test_in_place_arithmetic_on_lists_of_tensors_is_that_of_each():
    ours, theirs = [torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 6.0])]
    torch._foreach_lerp_(ours, theirs, 0.5)
    torch._foreach_mul_(ours, torch.tensor(2.0))
    assert ours[0].tolist() == [4.0, 8.0], f"{of('torch')}: torch._foreach_lerp_ and torch._foreach_mul_"


def test_pictures_in_a_store_of_mlflow_have_names_that_say_kind_and_step(tmp_path):
    client = MlflowClient(f"sqlite:///{tmp_path / 'store.db'}")
    experiment = client.create_experiment("a", artifact_location=(tmp_path / "artifacts").as_uri())
    run = client.create_run(experiment)
    client.log_image(run.info.run_id, Image.new("L", (4, 4)), key="samples", step=30, timestamp=1, synchronous=True)
    folder = tmp_path / "artifacts" / run.info.run_id / "artifacts"
    result = Result("a", "dsd", {}, 0, "nano8", "done", 30, 30, 1.0, None, {}, folder=folder)
    assert list(_by_step(result, "samples")) == [30], f"{of('mlflow')}: names of the files of log_image"


@pytest.mark.integration
@pytest.mark.parametrize("module", ["dsd_lab.report.notebook", "dsd_lab.parts"])
def test_an_import_changes_no_time_out_of_mlflow_and_no_setting_of_the_compiler(module):
    program = (
        f"import os, torch; before = torch._dynamo.config.get_config_copy(); import {module}; "
        "print([k for k in os.environ if 'MLFLOW_HTTP' in k], before == torch._dynamo.config.get_config_copy())"
    )
    environment = {k: v for k, v in os.environ.items() if "MLFLOW" not in k}
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert told.stdout.split() == ["[]", "True"], told.stderr
