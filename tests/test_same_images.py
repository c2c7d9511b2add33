"""A trial belongs to its images: nothing is trained, measured or put into one table across two sets of them."""

import os
import shutil

import pytest
from picturing import pictures, write_folder
from sweeping import described, run, train_here, write_spec

from dsd_lab.errors import BAD_INPUT, OK, BadInput
from dsd_lab.files import index as file_index
from dsd_lab.files.atomic import write_json
from dsd_lab.files.index import content_digest, known_digest, listing_of
from dsd_lab.home.data_facts import Images, known_images, other_images
from dsd_lab.home.home import Home
from dsd_lab.home.trial_folder import OTHER_IMAGES
from dsd_lab.runs.data_shelf import DataShelf, refuse_other_images
from dsd_lab.specs.loading import load_sweep

LABELS = [i % 3 for i in range(24)]


def spec_on(folder, place, **data):
    """A spec of one tiny trial with three seeds on a folder of images."""
    return write_spec(folder, base={"data": {"source": "folder", "path": str(place)} | data}, seeds=[0, 1, 2])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A home with trials of two seeds that were trained on `a/raw`; `b/raw` has the same last name and other images."""
    folder = tmp_path_factory.mktemp("images")
    write_folder(folder / "a" / "raw", pictures(24), LABELS)
    write_folder(folder / "b" / "raw", 255 - pictures(24), LABELS)
    plan = train_here(Home(folder / "home"), spec_on(folder, folder / "a" / "raw"), "seeds=[0,1]")
    assert [Home(folder / "home").trial(t.id).state() for t in plan.trials] == ["done", "done"]
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    """The same in a folder of its own, which may be changed; the place of the images is another."""
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("verb", [("sweep",), ("train", "--variant", "dsd", "--seed", 2)])
def test_other_images_of_the_same_declared_name_are_refused(copy, verb, capsys):
    before = sorted(p for p in (copy / "home").rglob("*") if "cache" not in p.parts)
    spec = spec_on(copy, copy / "b" / "raw")
    assert run(verb[0], spec, *verb[1:], "--home", copy / "home", "--no-tracking")[0] == BAD_INPUT
    line = capsys.readouterr().err.strip()
    assert "\n" not in line and line.count("(18 training and 6 held-out images)") == 2
    assert f"{copy / 'b' / 'raw'} (" in line and "/a/raw (" in line and "data.name or data.revision" in line
    assert sorted(p for p in (copy / "home").rglob("*") if "cache" not in p.parts) == before


def test_the_same_images_elsewhere_touched_or_under_an_own_name_go_on(copy, monkeypatch):
    home, place = Home(copy / "home"), copy / "a" / "raw"
    trials = load_sweep(spec_on(copy, place)).trials
    for path in place.rglob("*.png"):
        os.utime(path, (1, 1))
    monkeypatch.setattr("dsd_lab.core.data.load_data", None)  # nothing is decoded
    refuse_other_images(home, trials, DataShelf())
    monkeypatch.undo()
    refuse_other_images(home, load_sweep(spec_on(copy, copy / "b" / "raw", revision="2")).trials, DataShelf())
    with pytest.raises(BadInput, match=r"has other images than .*a/raw .18 training.*, on which trial [0-9a-f]{12}"):
        refuse_other_images(home, load_sweep(spec_on(copy, copy / "b" / "raw")).trials, DataShelf())


def test_a_trial_that_failed_before_its_first_checkpoint_binds_nobody(copy):
    home = Home(copy / "home")
    trials = load_sweep(spec_on(copy, copy / "b" / "raw")).trials
    for trial in trials[:2]:
        home.trial(trial.id).write_status(state="failed")
        with pytest.raises(BadInput):  # it has checkpoints
            refuse_other_images(home, trials, DataShelf())
        shutil.rmtree(home.trial(trial.id).checkpoints)
    refuse_other_images(home, trials, DataShelf())


def test_the_index_reads_only_what_changed_and_knows_content_not_time(tmp_path, monkeypatch):
    root, cache = tmp_path / "set", tmp_path / "cache"
    write_folder(root, pictures(6), [0, 0, 1, 1, 2, 2])
    cache.mkdir()
    read = []
    hashed = file_index._hashed
    monkeypatch.setattr(file_index, "_hashed", lambda path: read.append(os.path.basename(path)) or hashed(path))
    first = content_digest(listing_of(root), cache)
    assert len(read) == 6 and known_digest(listing_of(root), cache) == first
    os.utime(root / "class000" / "00000.png", (1, 1))
    assert known_digest(listing_of(root), cache) is None
    assert content_digest(listing_of(root), cache) == first and read[6:] == [b"00000.png"]
    (root / "class001" / "00002.png").write_bytes((root / "class000" / "00000.png").read_bytes())
    assert content_digest(listing_of(root), cache) != first and read[7:] == [b"00002.png"]
    shutil.copytree(root, tmp_path / "there")
    assert content_digest(listing_of(tmp_path / "there"), cache) == content_digest(listing_of(root), cache)
    (root / "class001" / "00002.png").rename(root / "class001" / "00009.png")  # its path is part of what it is
    assert content_digest(listing_of(root), cache) != content_digest(listing_of(tmp_path / "there"), cache)
    (cache / next(p.name for p in cache.glob("*.index"))).write_bytes(b"torn")
    os.utime(root / "class002" / "00004.png", (1, 1))
    content_digest(listing_of(root), cache)  # a damaged index is read anew


def test_files_that_were_hashed_before_a_kill_are_not_hashed_again(tmp_path, monkeypatch):
    root, cache, read = tmp_path / "set", tmp_path / "cache", []
    write_folder(root, pictures(6), [0, 0, 1, 1, 2, 2])
    monkeypatch.setattr(file_index, "_CHUNK", 2)
    hashed = file_index._hashed
    monkeypatch.setattr(file_index, "_hashed", lambda path: read.append(path) or hashed(path))

    def killed(done, of):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        content_digest(listing_of(root), cache, killed)
    assert len(read) == 4
    whole = content_digest(listing_of(root), cache)
    assert len(read) == 6 and not list(cache.glob("*.part"))
    assert whole == content_digest(listing_of(root), tmp_path / "other")


def test_links_are_listed_once(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"x")
    (tmp_path / "a" / "circle").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "nothing.png").symlink_to("nowhere")
    (tmp_path / ".hidden").write_bytes(b"h")
    os.mkfifo(tmp_path / "pipe")
    assert [path for path, _ in listing_of(tmp_path).rows] == [b"a/x.png", b"b/x.png", b"nothing.png", b"pipe"]
    cache = tmp_path / ".cache"
    cache.mkdir()
    assert content_digest(listing_of(tmp_path), cache) == known_digest(listing_of(tmp_path), cache)


def test_another_order_of_the_same_classes_is_another_set():
    here = Images("f", "here", 2, 1, ("cat", "dog"))
    assert here.is_of(Images("f", "there", 2, 1, ("cat", "dog"))) and here.is_of(Images("f", "there", 2, 1))
    assert here.is_of(Images("f", "there", 2, 1, ("cat", "hound")))  # the second class has another name
    assert not here.is_of(Images("f", "there", 2, 1, ("dog", "cat"))) and not here.is_of(Images("g", "there", 2, 1))


@pytest.mark.parametrize("verb", ["evaluate", "sample", "latents"])
def test_a_trial_is_not_measured_on_other_images(copy, verb, capsys):
    plan = load_sweep(spec_on(copy, copy / "a" / "raw"))
    trial = Home(copy / "home").trial(plan.trials[0].id)
    more = {"evaluate": ("--metrics", "psnr", "--no-tracking"), "sample": ("--n", 1, "--steps", 1), "latents": ()}[verb]
    record = trial.description().model_dump(exclude_unset=True)
    record["fields"]["data"]["path"] = str(copy / "b" / "raw")  # as if the images in its place had changed
    write_json(trial.root / "trial.json", record)
    assert run(verb, trial.id, *more, "--home", copy / "home")[0] == BAD_INPUT
    line = capsys.readouterr().err
    assert (
        f"{copy / 'b' / 'raw'} (18 training and 6 held-out images) has other images than when trial {trial.id}" in line
    )
    assert "(18 and 6 then)" in line
    record["fields"]["data"]["path"] = str(copy / "a" / "raw")
    names = record["data"]["class_names"]
    write_json(trial.root / "trial.json", record | {"data": record["data"] | {"class_names": names[::-1]}})
    assert run(verb, trial.id, *more, "--home", copy / "home")[0] == BAD_INPUT
    assert "has another order of classes than when trial" in capsys.readouterr().err
    write_json(trial.root / "trial.json", record)
    assert run(verb, trial.id, *more, "--home", copy / "home")[0] == OK


def test_plan_says_that_a_sweep_would_be_refused(copy, capsys):
    code, shown = run("plan", spec_on(copy, copy / "b" / "raw"), "--home", copy / "home")
    assert code == OK and [t["status"] for t in shown["trials"]] == [OTHER_IMAGES, OTHER_IMAGES, "pending"]
    assert "has other images than" in (line := capsys.readouterr().err) and "`sweep` will refuse" in line
    shown = run("plan", spec_on(copy, copy / "a" / "raw"), "--home", copy / "home")[1]
    assert [t["status"] for t in shown["trials"]] == ["done", "done", "pending"] and not capsys.readouterr().err


@pytest.fixture
def mixed(copy):
    """A home in which one sweep has a trial of other images, as it could be made once."""
    home = Home(copy / "home")
    (manifest,) = home.manifests().values()
    odd = home.trial(manifest.trials[1].id)
    record = odd.description().model_dump(exclude_unset=True)
    write_json(odd.root / "trial.json", record | {"data": record["data"] | {"fingerprint": "f" * 64}})
    return home, manifest.key, odd.id


@pytest.mark.integration
def test_a_table_has_one_set_of_images(mixed, tmp_path, capsys):
    home, key, odd = mixed
    content = run("report", key, "--home", home.root, "--out", tmp_path / "report")[1]
    (line,) = [text for text in content["notices"] if odd in text]
    assert "was trained on other images and is in no table" in line and "fingerprint ffffffffffff" in line
    assert [s["state"] for s in content["variants"][0]["seeds"]] == ["done", OTHER_IMAGES]
    assert all(len(e["seeds"]) == 1 for e in content["variants"][0]["metrics"].values() if "seeds" in e)
    assert {e["n"] for e in content["variants"][0]["metrics"].values()} == {1}
    (sweep,) = run("status", "--home", home.root)[1]["sweeps"]
    assert sweep["states"] == {"done": 1, OTHER_IMAGES: 1}
    assert run("export", key, "--home", home.root, "--out", tmp_path / "out")[0] == BAD_INPUT
    assert f"trial {odd} was trained on different images" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_what_is_imported_has_the_images_of_the_home(copy, mixed, trained, tmp_path, capsys):
    home, key, odd = mixed
    run("export", key, "--home", trained / "home", "--out", tmp_path / "out")
    shutil.rmtree(home.root / "sweeps")
    for trial in [p.name for p in (home.root / "trials").iterdir() if p.name != odd]:
        shutil.rmtree(home.root / "trials" / trial)
    (home.root / "trials" / odd).rename(home.root / "trials" / "0123456789ab")  # such as another variant's
    capsys.readouterr()
    assert run("import", tmp_path / "out", "--home", home.root)[0] == BAD_INPUT
    line = capsys.readouterr().err
    assert "trial 0123456789ab" in line and "import into another --home" in line and "\n" not in line.strip()
    assert not list(home.root.glob("sweeps/*/manifest.json")) and len(list((home.root / "trials").iterdir())) == 1


def trained_on(fingerprint, revision="1"):
    record = described({"data": {"path": fingerprint}}, name="raw", fingerprint=fingerprint, train=2, holdout=1)
    return record.changed(canonical={"data": {"name": "raw", "revision": revision}})


def test_of_two_sets_of_images_under_one_name_those_of_most_trials_stay():
    trials = {"t0": trained_on("a" * 64), "t1": trained_on("b" * 64), "t2": trained_on("b" * 64)}
    assert list(other_images(trials)) == ["t0"] and "a" * 12 in other_images(trials)["t0"]
    assert other_images({"t0": trained_on("a" * 64), "t1": trained_on("b" * 64, revision="2")}) == {}
    assert list(other_images({"t0": trained_on("a" * 64), "t1": trained_on("b" * 64)})) == ["t1"]


def test_images_of_other_reading_are_not_known(copy):
    home, data = Home(copy / "home"), load_sweep(spec_on(copy, copy / "a" / "raw")).trials[0].fields.data
    known = known_images(home, data, reads=True)
    assert known is not None and (known.train, known.holdout, known.class_names[0]) == (18, 6, "class000")
    assert known_images(home, data.model_copy(update={"size": 4}), reads=True) is None
    assert known_images(home, data.model_copy(update={"memory": "stream", "name": "x"}), reads=True) == known
