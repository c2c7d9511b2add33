"""No file is ever unpickled: a pickle that makes a folder lies in every place that a file is read from, and every verb runs."""

import argparse
import os
import pickle
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from sweeping import EVALUATION, VARIANTS, free_port, run, train_here, write_spec

from dsd_lab.cli.main import main
from dsd_lab.cli.parser import build_parser
from dsd_lab.errors import BAD_INPUT, NO_RESOURCES, OK, UNEXPECTED
from dsd_lab.evaluation.pretrained import weights_path
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import manifest_of
from dsd_lab.specs.loading import load_sweep
from dsd_lab.store.mlflow_store import Store

pytestmark = pytest.mark.integration


class Malice:
    """Unpickling this makes a folder."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return os.mkdir, (self.canary,)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A home with a finished and evaluated trial and one that goes on, everything that verbs keep and read, and an export."""
    folder = tmp_path_factory.mktemp("trained")
    home = Home(folder / "home")
    spec = write_spec(folder, {"dsd": {}, "naive": VARIANTS["naive"]}, evaluate=[EVALUATION])
    ids = {t.variant: t.id for t in train_here(home, spec).trials}
    assert run("export", "tiny", "--home", home.root, "--out", folder / "exported", "--weights")[0] == OK
    other = load_sweep(write_spec(folder / "second", {"dsd": {}}, evaluate=[EVALUATION], name="second"))
    home.write_manifest(manifest_of(other))
    home.trial(ids["naive"]).write_status(state="interrupted")
    counted = ("--set", "objective.balance=gradient_norm")  # by no formula
    assert run("plan", spec, "--home", home.root, *counted)[0] == OK
    np.savez(folder / "reference.npz", mu=np.zeros(64), sigma=np.eye(64))
    weights_path("inception", home).parent.mkdir()
    weights_path("inception", home).write_bytes(b"of others")
    for name in ("forecast.json", "cache/benchmarks.json"):
        (home.root / name).write_text("{}")
    Store(home)  # its tables
    return folder, ids


PLACES = {
    "checkpoints": "trials/*/checkpoints/*/tensors.safetensors",
    "manifests of checkpoints": "trials/*/checkpoints/*/manifest.json",
    "descriptions": "trials/*/trial.json",
    "states": "trials/*/status.json",
    "spools": "trials/*/spool.jsonl",
    "pictures": "trials/*/images/*.png",
    "evaluations": "trials/*/evaluations/*.json",
    "manifests of sweeps": "sweeps/*/manifest.json",
    "counts": "cache/shapes.json",
    "extractors": "cache/extractors/*.safetensors",
    "statistics": "cache/statistics/*.safetensors",
    "numbers of real images": "cache/statistics/*.json",
    "facts of data": "cache/data/*.json",
    "benchmarks": "cache/benchmarks.json",
    "the forecast": "forecast.json",
    "Inception's weights": "weights/*.pth",
    "reference statistics": "../reference.npz",
    "the index of an export": "../exported/export.json",
    "files of an export": "../exported/trials/*/*.json*",
    "weights of an export": "../exported/trials/*/checkpoints/*/*",
    "the spec": "../spec.yaml",
}
VERBS = (
    ["plan", "SPEC"],
    ["sweep", "SPEC", "--no-tracking", "--address", "NOWHERE"],
    ["sweep", "SPEC", "--no-tracking", "--address", "NOWHERE", "--stop-collapsed", "0.9"],
    ["train", "SPEC", "--variant", "naive", "--no-tracking"],
    ["train", "SPEC", "--variant", "dsd", "--no-tracking"],
    ["status"],
    ["logs", "ID"],
    ["doctor", "--tracking-uri", "sqlite:///:memory:"],
    ["sample", "ID", "--n", "1", "--steps", "1"],
    ["latents", "ID"],
    ["evaluate", "ID", "--images", "12", "--steps", "1", "--metrics", "fid", "--reference", "NPZ", "--no-tracking"],
    ["evaluate", "ID", "--images", "12", "--extractor", "inception", "--no-tracking"],
    ["fetch-weights"],
    ["export", "tiny", "--out", "OUT", "--weights"],
    ["import", "EXPORTED"],
    ["gc", "--yes"],
    ["rm", "tiny"],
)
STORING = (["report"], ["compare", "tiny", "second"], ["forecast"])
"""Verbs that bring the store up to the trials' files before they read it."""
BENCH = ["bench", "SPEC", "--variant", "dsd", "--repeats", "1", "--steps", "1"]
READING_NOTHING = {
    "init": "writes a spec and reads none",
    "schema": "prints what the program knows",
    "completion": "prints what the program knows",
    "specs": "lists the package's own specs, and opens no file of a home",
    "parts": "lists what the program and given plug-ins define",
    "fetch-data": "downloads, and opens no file of a home",
    "prepare": "reads images, as `plan` does, and no file of a home",
    "data": "reads images, as `plan` does, and no file of a home but its cache of what was read",
    "reproduce": "reads a trial's description as `evaluate` does and trains anew",
    "ui": "gives MLflow's server the address of its own database, and opens no file",
}


def plant(place, folder, canary):
    """Put a pickle in the place of every file of a kind; an `.npz` may hold one inside, where NumPy looks for it."""
    targets = list((folder / "home").glob(PLACES[place]))
    assert targets, place
    for path in targets:
        if path.suffix == ".npz":
            np.savez(path, mu=np.array([Malice(canary)], dtype=object), sigma=np.eye(64))
        else:
            path.write_bytes(pickle.dumps(Malice(canary)))


def survives(verb, places, trained, tmp_path, capsys):
    """A verb on a copy with pickles in it opens none, and ends as it should or with lines that say what is wrong."""
    # A folder for each, since MLflow keeps a database of the same path open.
    folder, canary = Path(tempfile.mkdtemp(dir=tmp_path)), tmp_path / "canary"
    shutil.copytree(trained[0], folder, dirs_exist_ok=True)
    for place in places:
        plant(place, folder, canary)
    words = {"SPEC": folder / "spec.yaml", "ID": trained[1]["dsd"], "OUT": folder / "out"}
    words |= {"NPZ": folder / "reference.npz", "EXPORTED": folder / "exported", "NOWHERE": f"127.0.0.1:{free_port()}"}
    home = folder / ("other" if verb[0] == "import" else "home")
    code = main([*(str(words.get(word, word)) for word in verb), "--home", str(home)])
    said = capsys.readouterr().err
    assert not canary.exists(), (verb, places)
    assert "Traceback" not in said and (code != UNEXPECTED or said.startswith("dsd-lab: ")), (verb, places, said)
    shutil.rmtree(folder)
    return code


def test_every_verb_either_meets_the_canary_or_reads_nothing():
    (verbs,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    met = {verb[0] for verb in (*VERBS, *STORING, BENCH)}
    assert met | READING_NOTHING.keys() == set(verbs.choices) and not met & READING_NOTHING.keys()


def test_without_pickles_the_verbs_come_as_far_as_they_can(trained, tmp_path, capsys):
    refused = {"sweep": {NO_RESOURCES, BAD_INPUT}, "fetch-weights": {BAD_INPUT}}
    for verb in VERBS:
        expected = {BAD_INPUT} if "inception" in verb else refused.get(verb[0], {OK})
        assert survives(verb, [], trained, tmp_path, capsys) in expected, verb


@pytest.mark.parametrize("place", PLACES)
def test_a_pickle_in_place_of_any_file_is_never_opened_as_one_whatever_verb_reads_it(place, trained, tmp_path, capsys):
    for verb in VERBS:
        survives(verb, [place], trained, tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("place", [None, "checkpoints", "pictures", "spools", "evaluations", "descriptions", "states"])
def test_a_pickle_is_not_opened_on_the_way_into_the_store_and_the_report(place, trained, tmp_path, capsys):
    for verb in STORING:
        code = survives(verb, [place] if place else [], trained, tmp_path, capsys)
        assert place or code == OK, verb


@pytest.mark.slow
def test_a_pickle_among_what_bench_finds_is_not_opened(trained, tmp_path, capsys):
    survives(
        BENCH, ["counts", "facts of data", "benchmarks", "manifests of sweeps", "states"], trained, tmp_path, capsys
    )
