"""Fixtures of all tests: one thread, tiny trials, the digits, and where the shared data sets lie."""

import functools
import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import settings
from sweeping import LONG, VARIANTS, outcome, train_here, write_spec

from dsd_lab.core.data import load_data
from dsd_lab.evaluation import extractor
from dsd_lab.home.home import Home
from dsd_lab.specs.trial import Data, Trial
from dsd_lab.store import SHORT_TIMEOUTS

torch.set_num_threads(1)
for _name, _seconds in SHORT_TIMEOUTS.items():  # as the command line does
    os.environ.setdefault(_name, _seconds)
settings.register_profile("lab", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("lab")

TINY = {
    "network": {
        "width": 16,
        "heads": 2,
        "encode_blocks": 1,
        "denoise_blocks": 1,
        "decode_blocks": 1,
        "shared_blocks": 1,
    },
    "training": {"steps": 6, "batch_size": 8},
    "probe": {"every": 3, "images": 16, "t_bins": 2, "gradient_images": 4},
    "observation": {"log_every": 2, "checkpoint_every": 3, "images_every": 3, "images": 2},
}


@pytest.fixture
def home(tmp_path):
    """An empty home folder, made."""
    home = Home(tmp_path / "home")
    home.prepare()
    return home


@pytest.fixture(scope="session")
def tiny_trial():
    """tiny_trial(objective={"target": "live"}): a trial of few steps and narrow layers, sections overridden key by key."""

    def build(**sections):
        return Trial.model_validate({k: TINY.get(k, {}) | sections.get(k, {}) for k in {**TINY, **sections}})

    return build


@pytest.fixture(scope="session")
def digits():
    return load_data(Data())


@pytest.fixture(scope="session", autouse=True)
def extractor_of_digits():
    """Trains the extractor of the digits once a process of the tests: it takes seconds, and every fresh home needs it.

    Other data, other devices and another number of steps are trained as they are asked for.
    """
    train, steps, trained = extractor._train, extractor._MAX_STEPS, []
    known_data = functools.cache(lambda: load_data(Data()))

    def once(data, device):
        known = (data.fingerprint, len(data.train)) == (known_data().fingerprint, len(known_data().train))
        if not known or device.type != "cpu" or steps != extractor._MAX_STEPS:
            return train(data, device)
        if not trained:
            trained.append(train(data, device))
        return trained[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extractor, "_train", once)
        yield


@pytest.fixture(scope="session")
def shared_data():
    """The folder of the data sets that lie beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DSD_LAB_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip(
            f"no test data at {folder}; set DSD_LAB_TEST_DATA to the folder that holds mnist, cifar10, flowers64"
        )
    return folder


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """A spec of a long and a short trial, and what they come to where nothing disturbs them."""
    folder = tmp_path_factory.mktemp("undisturbed")
    spec = write_spec(folder, {"dsd": LONG, "naive": VARIANTS["naive"]})
    plan = train_here(Home(folder / "home"), spec)
    return SimpleNamespace(
        spec=spec, plan=plan, outcomes={t.id: outcome(Home(folder / "home"), t.id) for t in plan.trials}
    )


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A spec of one trial and what it comes to where nothing disturbs it."""
    folder = tmp_path_factory.mktemp("whole")
    spec = write_spec(folder)
    plan = train_here(Home(folder / "home"), spec)
    return SimpleNamespace(spec=spec, trial=plan.trials[0], outcome=outcome(Home(folder / "home"), plan.trials[0].id))


@pytest.fixture
def short_tmp(monkeypatch):
    """A folder of our own for temporary files, with a path short enough for Ray's sockets."""
    folder = tempfile.mkdtemp(prefix="t", dir="/tmp")
    monkeypatch.setenv("TMPDIR", folder)
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield Path(folder)
    tempfile.tempdir = None
    shutil.rmtree(folder, ignore_errors=True)
