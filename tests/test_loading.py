"""A trained trial outside the lab: `load_trial`, `export_latents` and the verb `latents`."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from sweeping import run, train_here, write_spec

import dsd_lab
from dsd_lab.cli.main import main
from dsd_lab.core.data import load_data
from dsd_lab.core.training.checkpoints import list_checkpoints, load_checkpoint
from dsd_lab.errors import BAD_INPUT, OK, BadInput, CorruptCheckpoint
from dsd_lab.home.home import Home
from dsd_lab.specs.trial import Data


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loading")
    home = Home(folder / "home")
    plan = train_here(home, write_spec(folder, {"dsd": {}, "wild": {"optimiser": {"lr": 10.0, "weight_decay": 10.0, "clip": 1e6, "schedule": "constant"}}}, seeds=[4]))  # fmt: skip
    return home, {t.variant: t for t in plan.trials}


def test_a_loaded_trial_has_the_averaged_weights_the_fields_and_the_seed(trained):
    home, trials = trained
    trial = trials["dsd"]
    loaded = dsd_lab.load_trial(str(home.root), trial.id[:6])
    assert (loaded.id, loaded.seed, loaded.fields) == (trial.id, 4, trial.fields)
    tensors, _ = load_checkpoint(list_checkpoints(home.trial(trial.id).checkpoints)[0])
    for name, value in loaded.network.state_dict().items():
        assert torch.equal(value, tensors[f"average.{name}"])
    assert not torch.equal(tensors["average.patch_in.weight"], tensors["network.patch_in.weight"])
    assert not loaded.network.training and not any(p.requires_grad for p in loaded.network.parameters())
    assert loaded.network.decode(loaded.network.encode(torch.zeros(2, 1, 8, 8))).shape == (2, 1, 8, 8)


def test_trials_without_a_result_or_without_weights_are_refused(trained, tmp_path):
    home, trials = trained
    with pytest.raises(BadInput, match="diverged"):
        dsd_lab.load_trial(home.root, trials["wild"].id)
    with pytest.raises(BadInput, match="no such trial"):
        dsd_lab.load_trial(home.root, "ffffffffffff")
    assert run("export", "tiny", "--out", tmp_path / "out", "--home", home.root)[0] == OK
    assert run("import", tmp_path / "out", "--home", tmp_path / "other")[0] == OK
    with pytest.raises(CorruptCheckpoint, match="no checkpoint"):
        dsd_lab.load_trial(tmp_path / "other", trials["dsd"].id)


def test_latents_and_spectra_are_read_without_pickle_and_are_those_of_the_network(trained, tmp_path):
    home, trials = trained
    path = tmp_path / "deep" / "latents.npz"
    code, answer = run("latents", trials["dsd"].id, "--out", path, "--home", home.root)
    assert code == OK and answer["file"] == str(path)
    data, loaded = load_data(Data()), dsd_lab.load_trial(home.root, trials["dsd"].id)
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    assert {name: list(a.shape) for name, a in arrays.items()} == answer["arrays"]
    assert arrays["z"].shape == (len(data.holdout), 4, 8) and arrays["z"].dtype == np.float32
    x, y = data.holdout.at(torch.arange(3), torch.device("cpu"))
    assert np.allclose(arrays["z"][:3], loaded.network.encode(x).numpy(), atol=1e-5)
    assert arrays["y"][:3].tolist() == y.tolist()
    assert arrays["spectrum/token/step"].tolist() == [0, 6, 12]
    assert arrays["spectrum/token"].shape == (3, 8) and np.all(np.diff(arrays["spectrum/token"]) <= 0)
    assert run("latents", trials["dsd"].id, "--split", "train", "--out", path, "--home", home.root)[1]["arrays"]["y"] == [len(data.train)]  # fmt: skip


def test_the_verb_says_what_it_cannot_load(trained, tmp_path, capsys):
    home, trials = trained
    assert main(["latents", trials["wild"].id, "--home", str(home.root)]) == BAD_INPUT
    assert main(["latents", trials["dsd"].id, "--out", str(tmp_path), "--home", str(home.root)]) == BAD_INPUT
    assert "is a folder; give a file" in capsys.readouterr().err


def test_importing_the_package_imports_nothing_heavy_and_unknown_names_are_attribute_errors():
    program = "import sys, dsd_lab; print(' '.join(sys.modules)); assert callable(dsd_lab.load_trial)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "pandas", "ray", "mlflow"} & set(done.stdout.split())
    with pytest.raises(AttributeError, match="no attribute 'load_tiral'"):
        _ = dsd_lab.load_tiral
