"""Samples of an evaluation: the same for any number of processes, never drawn twice, in the formats of others."""

import contextlib
import tempfile

import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing
from safetensors.torch import load, save
from sweeping import run, train_here, write_spec

from dsd_lab.cli.main import main
from dsd_lab.core.data import load_data
from dsd_lab.core.messages import heard, tell
from dsd_lab.core.peers import ALONE, joined
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.errors import BAD_INPUT, OK
from dsd_lab.evaluation import workspace
from dsd_lab.evaluation.drawing import IMAGES, StoppedDrawing
from dsd_lab.evaluation.evaluate import evaluate_generation
from dsd_lab.evaluation.extractor import load_extractor
from dsd_lab.evaluation.sampling import BLOCK, labels_of, sample_blocks
from dsd_lab.evaluation.workspace import EvaluationCache
from dsd_lab.home.home import Home
from dsd_lab.home.names import extractor_path
from dsd_lab.runs.run_trial import DataShelf, run_trial
from dsd_lab.specs.identity import evaluation_id
from dsd_lab.specs.trial import Data, Generation

CPU = torch.device("cpu")
MANY = 3 * BLOCK + 80
ASKED = Generation(sampler="sde", steps=2, images=MANY, metrics=["fid", "kid", "is", "nearest_train"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_trial, digits):
    """A trained tiny trial, and the checkpoints that it keeps."""
    folder, trial = tmp_path_factory.mktemp("drawing"), tiny_trial()
    list(Trainer(trial, 0, digits, CPU, folder / "checkpoints").run())
    load_extractor(digits, folder, CPU)  # known to the processes that are forked
    return trial, folder / "checkpoints"


def process(rank, size, rendezvous, trial, checkpoints, home, told, until):
    """One of the processes of an evaluation; the first tells what it found, all tell which blocks they drew."""
    torch.set_num_threads(1)
    data, drew = load_data(Data()), []

    def noted(*given):
        for block, images in sample_blocks(*given):
            drew.append(block)
            yield block, images

    workspace.sample_blocks = noted
    group = joined(rendezvous, rank, size, 60.0, CPU) if size > 1 else contextlib.nullcontext(ALONE)
    with group as peers:
        bench = EvaluationCache(
            trial, checkpoints, data, CPU, home, None, peers, lambda: until is not None and len(drew) >= until
        )
        if rank:
            while (asked := heard(peers))["work"] != "end":
                bench.take_part(asked)
        else:
            with contextlib.suppress(StoppedDrawing):
                found = evaluate_generation(ASKED, trial, checkpoints, data, CPU, home.cache, bench)
                torch.save(found, f"{told}-found")
            tell(peers, {"work": "end"})
    torch.save(drew, f"{told}-{rank}")


def evaluated(trained, home, size, until=None):
    """What so many processes find, and the blocks that each drew."""
    with tempfile.TemporaryDirectory() as folder:
        told = f"{folder}/told"
        arguments = (size, f"file:{folder}/meeting", *trained, home, told, until)
        multiprocessing.start_processes(process, arguments, nprocs=size, start_method="fork")
        found = torch.load(f"{told}-found", weights_only=False) if until is None else None
        return found, [torch.load(f"{told}-{rank}") for rank in range(size)]


def test_two_and_three_processes_find_what_one_finds_to_the_bit(trained, tmp_path):
    (metrics, shown), drew = evaluated(trained, Home(tmp_path / "1"), 1)
    assert drew == [[0, 1, 2, 3]] and f"fid/indomain-n{MANY}-cfg1-sde2-balanced-ema0.99" in metrics
    for size, shares in ((2, [[0, 2], [1, 3]]), (3, [[0, 3], [1], [2]])):
        (found, images), drew = evaluated(trained, Home(tmp_path / str(size)), size)
        assert found == metrics and torch.equal(images, shown) and drew == shares


def test_what_was_stopped_goes_on_with_other_processes_and_draws_no_image_twice(trained, tmp_path):
    home = Home(tmp_path)
    _, drew = evaluated(trained, home, 2, until=1)
    assert drew == [[0], [1]]
    (damaged,) = (home.cache / "drawn").glob(f"*/{IMAGES}-000001.*")
    damaged.write_bytes(damaged.read_bytes()[:-1])  # as a power cut leaves it
    (found, _), drew = evaluated(trained, home, 3)
    assert drew == [[1], [2], [3]]
    assert found == evaluated(trained, Home(tmp_path / "whole"), 1)[0][0]


def test_a_process_draws_its_blocks_wherever_the_others_are(trained, digits):
    trial, checkpoints = trained
    bench, y = EvaluationCache(trial, checkpoints, digits, CPU, Home(checkpoints.parent)), labels_of(ASKED, digits)
    network = bench.network(ASKED)
    whole = dict(sample_blocks(network, trial, y, ASKED, 0, CPU))
    assert [len(images) for images in whole.values()] == [BLOCK, BLOCK, BLOCK, 80]
    few = dict(sample_blocks(network, trial, y, ASKED, 0, CPU, [1, 3]))
    assert [*few] == [1, 3] and all(torch.equal(images, whole[block]) for block, images in few.items())


def test_kept_features_belong_to_the_weights_of_their_extractor(trained, digits, tmp_path):
    trial, checkpoints = trained
    home, y = Home(tmp_path), labels_of(ASKED, digits)

    def features():
        return EvaluationCache(trial, checkpoints, digits, CPU, home).features(ASKED, y).features

    first = features()
    path = extractor_path(home.cache, digits.fingerprint)
    kept = path.read_bytes()  # not `load_file`, whose tensors can be a map of the file that is about to change
    weights = load(kept)
    path.write_bytes(save(weights | {"body.0.bias": weights["body.0.bias"] + 1}))
    assert not torch.equal(features(), first)
    path.write_bytes(kept)
    assert torch.equal(features(), first)


def test_bfloat16_is_another_evaluation_with_a_name_of_its_own(trained, digits, tmp_path):
    trial, checkpoints = trained
    given = {"steps": 3, "metrics": ["fid"]}
    made = [Generation(**given, precision=p) for p in ("fp32", "bf16")]
    assert evaluation_id(made[0]) == evaluation_id(Generation(**given)) != evaluation_id(made[1])
    (one, exact), (other, rounded) = (
        evaluate_generation(e, trial, checkpoints, digits, CPU, tmp_path / "cache") for e in made
    )
    assert "fid/indomain-n395-cfg1-heun3-bf16-holdout-ema0.99" in other and not other.keys() & {
        name for name in one if name.startswith("fid/")
    }
    assert not torch.equal(exact, rounded) and float((exact.float() - rounded.float()).abs().mean()) < 16
    assert not [*(tmp_path / "cache" / "drawn").iterdir()]


# -- In a home folder ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A home with a finished trial that kept the checkpoints of steps 4 and 8."""
    folder = tmp_path_factory.mktemp("done")
    home = Home(folder / "home")
    kept = {"observation": {"checkpoint_every": 4, "keep_every": 4, "checkpoints_kept": 1}}
    (trial,) = train_here(home, write_spec(folder, base=kept)).trials
    return home, trial


def test_a_stopped_evaluation_leaves_the_trial_finished_and_goes_on(done):
    home, trial = done
    asked, said = [Generation(sampler="euler", steps=1, images=2 * BLOCK, metrics=["fid"])], []
    stops = iter([False, True])
    progress = list(run_trial(home, trial, asked, DataShelf(), lambda: next(stops), said.append))
    folder = home.trial(trial.id)
    assert [p.state for p in progress] == ["interrupted"] and folder.state() == "done" and not folder.evaluations()
    assert len([*(home.cache / "drawn").glob(f"{trial.id}-*/*")]) == 1
    freeable = [item["why"] for item in run("gc", "--home", home.root)[1]["items"] if "drawn" in item["path"]]
    assert len(freeable) == 1 and "interrupted evaluation" in freeable[0]
    assert [p.state for p in run_trial(home, trial, asked, DataShelf(), on_progress=said.append)] == ["done", "done"]
    assert said[0].startswith("0/512") and said[-1] == "512/512 images" and len(folder.evaluations()) == 1
    assert not [*(home.cache / "drawn").iterdir()]


@pytest.mark.slow
def test_the_processes_of_a_trial_evaluate_it_from_the_command_line(done, capfd):
    home, trial = done
    given = ("evaluate", trial.id, "--sampler", "euler", "--steps", 2, "--images", 2 * BLOCK + 1, "--metrics", "fid,is")
    at = ("--home", home.root, "--no-tracking")
    code, several = run(*given, "--processes", 3, *at)
    assert code == OK and [*several["trials"][0]["new"]]
    (key,) = several["trials"][0]["new"]
    (home.trial(trial.id).root / "evaluations" / f"{key}.json").unlink()
    alone = run(*given, *at)[1]
    assert alone["trials"][0]["evaluations"][key]["metrics"] == several["trials"][0]["evaluations"][key]["metrics"]


def test_an_npz_has_the_images_of_the_pngs_as_adms_evaluator_reads_them(done, tmp_path):
    home, trial = done
    given = ("sample", trial.id, "--n", 3, "--steps", 2, "--seed", 5, "--labels", "random", "--home", home.root)
    code, answer = run(*given, "--npz", "--out", tmp_path / "npz")
    assert code == OK and answer["files"][0].endswith("samples_3x8x8x3.npz")
    run(*given, "--out", tmp_path / "png")
    from PIL import Image

    pngs = [np.asarray(Image.open(p).convert("RGB")) for p in sorted((tmp_path / "png" / "images").glob("*.png"))]
    with np.load(answer["files"][0]) as found:
        assert found["arr_0"].dtype == np.uint8 and np.array_equal(found["arr_0"], np.stack(pngs))
        labels = [int(p.stem.rpartition("class")[2]) for p in sorted((tmp_path / "png" / "images").glob("*.png"))]
        assert found["arr_1"].tolist() == labels
    assert not [*(home.cache / "drawn").iterdir()]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["--protocol", "jit", "--steps", "7"], "--steps 7: protocol jit has 50"),
        (["--protocol", "adm", "--class", "3"], "--class: all images have this class"),
        (["--checkpoint", "5"], "no such checkpoint; there are 4, 8, 12"),
        (["--weights", "ema:0.5"], "keeps no average of decay 0.5"),
        (["--processes", "9"], "a batch of the trial has fewer images"),
    ],
)
def test_sample_refuses_in_one_line_what_does_not_fit_together(done, capsys, given, complaint):
    home, trial = done
    assert main(["sample", trial.id, *given, "--home", str(home.root)]) == BAD_INPUT
    said = capsys.readouterr().err
    assert complaint in said and len(said.splitlines()) == 1
