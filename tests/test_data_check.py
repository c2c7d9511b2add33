"""What is said of a plan's images before anything runs, and what is refused; and data without classes."""

import json

import numpy as np
import pytest
import torch
from picturing import encoded, pictures, write_folder
from sweeping import run, train_here, write_spec
from test_report import result

from dsd_lab.cli.main import main
from dsd_lab.cli.sample import class_number
from dsd_lab.cli.sweep import _unfinished
from dsd_lab.core.data import Images, load_data
from dsd_lab.core.data.dataset import data_set
from dsd_lab.core.model.network import Network
from dsd_lab.core.randomness import generator
from dsd_lab.errors import BAD_INPUT, OK, BadInput
from dsd_lab.evaluation.extractor import load_extractor, turning_losses
from dsd_lab.home.data_facts import facts_at_hand, known_facts, known_images
from dsd_lab.home.home import Home
from dsd_lab.report.groups import columns_of
from dsd_lab.runs.data_shelf import DataShelf
from dsd_lab.runs.run_trial import run_trial
from dsd_lab.specs.evaluation import of_no_classes, without_classes
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.trial import Data, Generation, Trial
from dsd_lab.store.mlflow_store import Store

KEYS = ["train", "holdout", "holdout_from", "classes", "class_names", "train_by_class", "holdout_by_class", "channels", "image_size", "fingerprint"]  # fmt: skip
LINE = "data: 18 training and 6 held-out images of 8 x 8, 3 classes: cat, dog, owl; held out: valid/"


@pytest.fixture
def photos(tmp_path):
    names = ["cat", "dog", "owl"]
    write_folder(tmp_path / "photos", pictures(18), [0, 1, 2] * 6, names, "train")
    write_folder(tmp_path / "photos", pictures(6, seed=1), [0, 1, 2] * 2, names, "valid")
    return tmp_path / "photos"


def spec_of(tmp_path, **data):
    return write_spec(tmp_path, base={"data": {"source": "folder", "path": "photos", **data}})


@pytest.mark.parametrize(
    "left", ["", "{}", "[1]", "[" * 100_000, '{"train": 1}', {"classes": "three"}, {"shape": [3, 8]}, {"train": -1}]
)
def test_facts_whose_file_is_damaged_are_unknown_and_the_images_are_read_anew(tmp_path, photos, left):
    home, data = Home(tmp_path / "home"), Data(source="folder", path=str(photos))
    home.prepare()
    shelf = DataShelf()
    shelf.load(data, home)
    known, at_hand, images = known_facts(home, data), facts_at_hand(home, data), known_images(home, data)
    assert known.fingerprint is None and at_hand.fingerprint == images.fingerprint
    files = [*(home.cache / "data").glob("facts-*.json"), *(home.cache / "data").glob("images-*.json")]
    assert len(files) == 2
    for path in files:
        path.write_text(left if isinstance(left, str) else json.dumps(json.loads(path.read_text()) | left))
    assert known_facts(home, data) is facts_at_hand(home, data) is known_images(home, data) is None
    assert DataShelf().images(data, home) == images and facts_at_hand(home, data) == at_hand


# -- The verb ----------------------------------------------------------------------------------------


def test_data_answers_in_the_documented_json_for_a_folder_and_for_a_spec(tmp_path, photos):
    code, answer = run("data", photos, "--home", tmp_path / "home")
    assert code == OK and list(answer) == KEYS and not (tmp_path / "home").exists()
    assert [answer[key] for key in KEYS[:-1]] == [18, 6, "valid/", 3, ["cat", "dog", "owl"], [6] * 3, [2] * 3, 3, 8]
    assert run("data", spec_of(tmp_path), "--home", tmp_path / "home")[1] == answer
    smaller = run("data", photos, "--set", "data.size=4", "--home", tmp_path / "home")[1]
    assert smaller["image_size"] == 4 and smaller["fingerprint"] != answer["fingerprint"]


def test_data_prints_every_class_and_a_contact_sheet(tmp_path, photos, capsys):
    assert main(["data", str(photos), "--out", str(tmp_path / "sheet.png"), "--home", str(tmp_path / "home")]) == OK
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == LINE and (tmp_path / "sheet.png").stat().st_size > 100
    assert [line.split() for line in printed if " owl " in line] == [["2", "owl", "6", "2"]]


def test_data_refuses_what_cannot_be_read_in_one_line(tmp_path, photos, capsys):
    (photos / "train" / "cat" / "x.png").write_bytes(b"no image")
    assert main(["data", str(photos)]) == BAD_INPUT
    assert "x.png: damaged image" in capsys.readouterr().err


# -- plan, sweep, train ------------------------------------------------------------------------------


def test_plan_says_what_is_read_and_opens_files_again_only_when_they_change(tmp_path, photos, capsys, monkeypatch):
    spec, home = spec_of(tmp_path), Home(tmp_path / "home")
    home.prepare()
    assert main(["plan", str(spec), "--home", str(home.root)]) == OK
    assert capsys.readouterr().out.splitlines()[0] == LINE
    with monkeypatch.context() as patch:
        patch.setattr("dsd_lab.core.data.load_data", None)
        assert main(["plan", str(spec), "--home", str(home.root)]) == OK
    assert capsys.readouterr().out.splitlines()[0] == LINE
    (photos / "train" / "cat" / "00000.png").write_bytes(b"no image")
    assert main(["plan", str(spec), "--home", str(home.root)]) == BAD_INPUT


def test_what_a_sweep_has_read_a_plan_need_not_read_again_wherever_it_lies(tmp_path, photos, capsys, monkeypatch):
    """One listing and one record of files serve every verb."""
    home = Home(tmp_path / "home")
    home.prepare()
    DataShelf().load(load_sweep(spec_of(tmp_path)).trials[0].fields.data, home)
    monkeypatch.setattr("dsd_lab.core.data.load_data", None)
    assert main(["plan", str(spec_of(tmp_path)), "--home", str(home.root)]) == OK
    assert capsys.readouterr().out.splitlines()[0] == LINE
    assert not list((home.root / "cache" / "data").glob("read-*"))


WRONG = {
    "another size": (lambda root: None, {"size": 16}, {}, "write `network.image_size: 16`, or `data.size: 8`"),
    "not square": (lambda root: [p.write_bytes(encoded(pictures(1, size=8)[0][:, :6])) for p in root.rglob("*.png")], {}, {}, "`data.crop: centre`"),
    "different sizes": (lambda root: (root / "train/cat/00000.png").write_bytes(encoded(pictures(1, size=9)[0])), {}, {}, "`data.size` with `data.crop: centre`"),
}  # fmt: skip


@pytest.mark.parametrize("verb", ["plan", "sweep", "train"])
@pytest.mark.parametrize("wrong", WRONG)
def test_bad_data_are_refused_before_anything_runs_with_the_remedy(tmp_path, photos, capsys, monkeypatch, verb, wrong):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    monkeypatch.setattr("dsd_lab.cli.sweep._check_packages", lambda tracking: None)
    change, data, _, remedy = WRONG[wrong]
    change(photos)
    more = ["--variant", "dsd"] if verb == "train" else []
    assert main([verb, str(spec_of(tmp_path, **data)), *more, "--home", str(tmp_path / "home")]) == BAD_INPUT
    (complaint,) = capsys.readouterr().err.splitlines()
    assert remedy in complaint


def test_an_archive_is_told_from_a_folder_that_is_not_there(tmp_path, capsys):
    (tmp_path / "photos").write_bytes(b"PK")
    assert main(["sweep", str(spec_of(tmp_path)), "--home", str(tmp_path / "home")]) == BAD_INPUT
    assert "is a file; unpack it" in capsys.readouterr().err


def test_a_trial_that_failed_for_its_data_goes_on_with_the_next_sweep(tmp_path, photos):
    spec, home = spec_of(tmp_path), Home(tmp_path / "home")
    home.prepare()
    plan = load_sweep(spec)
    broken = photos / "train" / "cat" / "00000.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"no image")
    *_, last = run_trial(home, plan.trials[0], [], DataShelf())
    assert last.state == "failed" and _unfinished(home, plan, retry_failed=False, stopping=False) == plan.trials
    broken.write_bytes(whole)
    *_, last = run_trial(home, plan.trials[0], [], DataShelf())
    assert last.state == "done"


# -- Data without classes ------------------------------------------------------------------------------


def faces(count=60, size=16):
    """Bright squares off the middle on noise: their quarter turns can be told apart."""
    source = np.random.default_rng(0)
    found = np.full((count, size, size, 3), 90, dtype=np.uint8) + source.integers(
        0, 20, (count, size, size, 3), np.uint8
    )
    found[:, 2:7, 5:11] += 100
    found[:, 11:13, 3:13] += 60
    return found


def one_class():
    pixels = torch.from_numpy(faces().transpose(0, 3, 1, 2).copy())
    parts = [Images(p, torch.zeros(len(p), dtype=torch.int64)) for p in (pixels[:48], pixels[48:])]
    return data_set(*parts, ("all",))


def test_one_class_trains_without_a_class_embedding_and_its_labels_change_nothing():
    trial = Trial.model_validate({"network": {"size": "nano8", "width": 16, "heads": 2}})
    network = Network(trial, 3, 1)
    assert network.condition.label is None and Network(trial, 3, 2).condition.label is not None
    z, t = torch.randn(2, network.tokens, network.latent_channels), torch.tensor([0.2, 0.7])
    assert torch.equal(network.denoise(z, t, torch.tensor([0, 0])), network.denoise(z, t, torch.tensor([1, 1])))


@pytest.mark.integration
def test_features_of_one_class_come_from_a_task_that_was_learned(tmp_path):
    data = one_class()
    network = load_extractor(data, tmp_path, torch.device("cpu"))
    x, _ = data.holdout.at(torch.arange(len(data.holdout)), torch.device("cpu"))
    with torch.no_grad():
        learned = [float(loss) for loss in turning_losses(network, x, 0)]
        turns = torch.randint(4, (len(x),), generator=generator(0, "turns", 0))
        turned = torch.stack([image.rot90(int(k), (1, 2)) for image, k in zip(x, turns, strict=True)])
        accuracy = float((network(turned)[1][:, :4].argmax(1) == turns).double().mean())
    assert accuracy >= 0.9  # chance is 0.25
    spread = float(torch.nn.functional.adaptive_avg_pool2d(turned, 8).var(0).mean())
    assert learned[0] < 0.5 * np.log(4) and learned[1] < 0.5 * spread


def test_metrics_and_guidance_that_need_classes_are_left_out_or_refused_where_there_are_none():
    assert set(of_no_classes(Generation()).measured) == {"fid", "kid", "precision", "recall", "nearest_train", "rfid", "psnr", "ssim"}  # fmt: skip
    assert "is" in of_no_classes(Generation(extractor="inception")).measured
    assert without_classes(Generation()) == ""
    assert "nothing to guide towards" in without_classes(Generation(guidance=2))
    assert "label_accuracy have no meaning" in without_classes(Generation(metrics=["fid", "label_accuracy"]))


def test_a_sweep_of_one_class_that_needs_classes_is_refused(tmp_path, capsys):
    write_folder(tmp_path / "photos", pictures(20), [0] * 20, ["all"])
    for more, complaint in (
        (["--set", "auxiliary.classification=0.1"], "has no classes"),
        (["--set", "evaluate=[{guidance: 2, steps: 1}]"], "nothing to guide towards"),
    ):
        assert main(["plan", str(spec_of(tmp_path)), *more, "--home", str(tmp_path / "home")]) == BAD_INPUT
        assert complaint in capsys.readouterr().err


def test_a_dropped_label_makes_no_second_trial_where_there_is_nothing_to_drop(tmp_path, capsys):
    """The id knows no data, so that on one class another `labels.drop` would be another trial of the same bits."""
    write_folder(tmp_path / "photos", pictures(20), [0] * 20, ["all"])
    spec, home, drops = spec_of(tmp_path), Home(tmp_path / "home"), ["--set", "base.labels.drop=0.3"]
    command = ["plan", str(spec), *drops, "--home", str(home.root)]
    assert main(command) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert "labels.drop: 0.3 has no effect on the data 'photos', which has no classes; remove labels.drop" in line
    train_here(home, spec, "base.labels.drop=0.3")  # as an earlier version did
    assert main(command) == OK


@pytest.mark.integration
def test_one_class_is_trained_evaluated_and_sampled(tmp_path):
    write_folder(tmp_path / "photos", faces(40, 8), [0] * 40, ["all"])
    home = Home(tmp_path / "home")
    plan = train_here(home, spec_of(tmp_path), "evaluate=[{steps: 2}]")
    (found,) = home.trial(plan.trials[0].id).evaluations().values()
    assert not any(name.startswith(("is", "label_accuracy", "probe")) for name in found.metrics)
    named = {name for name in found.metrics if name.split("/")[0].removesuffix("_floor") in ("fid", "kid", "rfid", "precision", "recall")}  # fmt: skip
    assert len(named) > 6 and all("/turns-" in name for name in named), "the task that made the features"
    Store(home).sync(home.manifests()["tiny"])
    (stored,) = Store(home).client.search_runs(["1"], "tags.`dsd.kind` = 'trial'")
    assert named <= stored.data.metrics.keys()
    columns = {c.name: c.note for c in columns_of([result("dsd", metrics=found.metrics)])}
    (fid,) = (note for name, note in columns.items() if name.startswith("fid/"))
    assert "predict rotations" in fid and "classifier" not in fid


# -- sample --class ------------------------------------------------------------------------------------


def test_a_class_is_meant_by_its_name_before_its_number():
    names = ("cat", "2", "owl")
    assert [class_number(text, 3, names) for text in ("cat", "2", "0", "owl")] == [0, 1, 0, 2]
    with pytest.raises(BadInput, match=r"--class cta: the data has classes 0 to 2.*did you mean 'cat'"):
        class_number("cta", 3, names)
    with pytest.raises(BadInput, match="has no classes"):
        class_number("0", 1, ())


def test_the_digits_are_named(digits):
    assert digits.class_names == tuple("0123456789") and digits.holdout_from == "22 % of every class"
    assert json.dumps(load_data(Data()).facts)
