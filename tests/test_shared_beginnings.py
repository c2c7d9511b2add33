"""A trial that trained like another up to a checkpoint goes on from it, and ends as if it had not."""

import hashlib
import json

import pytest
from power import KINDS, Disk
from sweeping import train_here, write_spec

from dsd_lab.home.home import Home
from dsd_lab.home.trial_records import BeganFrom
from dsd_lab.planning.estimates import timed_seconds
from dsd_lab.planning.shared_steps import beginning_key, shared_steps, takes_over
from dsd_lab.specs.trial import Trial

BASE = {
    "network": {"width": 16, "heads": 2, "encode_blocks": 1, "denoise_blocks": 1, "decode_blocks": 1},
    "training": {"steps": 8, "batch_size": 8},
    "optimiser": {"warmup_steps": 2, "schedule": "constant"},
    "objective": {"target": "live"},
    "probe": {"every": 4, "images": 16, "gradient_images": 0, "scale_images": 0},
    "observation": {"log_every": 2, "checkpoint_every": 4, "images_every": 4, "images": 2},
}
VARIANT = {"dsd": {"why": "The method.", "objective": {"target": "ema", "output": "clean", "loss_space": "clean"}}}


def trial(**changes):
    return Trial.model_validate({name: BASE.get(name, {}) | changes.get(name, {}) for name in {**BASE, **changes}})


def longer(steps, **training):
    return {"training": {"steps": steps, **training}}


WSD = {"optimiser": {"schedule": "wsd", "tail": 0.25}}
LATE = {"phases": [{"start": 6, "objective": {"diffusion_weight": 0.5}}]}


@pytest.mark.parametrize(
    ("one", "other", "steps"),
    [
        ({}, longer(20), 8),
        ({}, longer(20, phases=[{"start": 6, "objective": {"diffusion_weight": 0.5}}]), 6),
        (longer(8, **LATE), longer(20, **LATE), 8),
        (longer(8, **LATE), longer(20, phases=[{"start": 6, "objective": {"diffusion_weight": 0.25}}]), 6),
        ({"optimiser": {"warmup_steps": 2}}, {"optimiser": {"warmup_steps": 4}}, 0),
        ({"optimiser": {"schedule": "cosine"}}, longer(20) | {"optimiser": {"schedule": "cosine"}}, 3),
        (WSD, longer(20) | WSD, 7),
    ],
)
def test_steps_are_shared_until_something_differs(one, other, steps):
    assert shared_steps(trial(**one), trial(**other)) == steps
    assert shared_steps(trial(**other), trial(**one)) == steps


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (longer(20), True),
        ({"optimiser": {"schedule": "cosine"}}, True),
        ({"optimiser": {"lr": 2e-3}}, False),
        ({"probe": {"every": 2}}, False),
        ({"observation": {"checkpoints_kept": 9}}, True),
        (longer(20, phases=[{"start": 6, "objective": {"target": "ema"}}]), False),  # needs the EMA encoder from step 0
    ],
)
def test_what_must_be_equal_is_in_the_key(change, same):
    assert (beginning_key(trial(), 0) == beginning_key(trial(**change), 0)) is same
    assert beginning_key(trial(), 0) != beginning_key(trial(), 1)


def test_a_last_checkpoint_is_taken_over_where_it_would_have_been_made_anyway():
    assert takes_over(trial(**longer(20)), trial(), 8)
    assert not takes_over(trial(**longer(20)), trial(**longer(9)), 9)
    assert not takes_over(trial(**longer(20), probe={"every": 3}), trial(probe={"every": 3}), 8)
    assert takes_over(trial(**longer(20)), trial(**longer(9)), 8)
    assert not takes_over(trial(), trial(**longer(20)), 8)  # ends there, and the other one did not


def spec(folder, variants=VARIANT, **training):
    folder.mkdir(exist_ok=True)
    return write_spec(folder, variants, base=BASE | {"training": BASE["training"] | training}, seeds=[0], evaluate=[])


def only(home, steps):
    """The trial of so many steps."""
    folders = [home.trial(path.name) for path in (home.root / "trials").iterdir()]
    return next(f for f in folders if f.description().trial.training.steps == steps)


def records(folder):
    lines = [json.loads(line) for line in folder.spool.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "seconds", "machine")} for line in lines]


def test_a_longer_trial_ends_with_the_bits_of_one_from_scratch(tmp_path):
    home, scratch = Home(tmp_path / "home"), Home(tmp_path / "scratch")
    train_here(home, spec(tmp_path / "a"))
    train_here(home, spec(tmp_path / "b", steps=14))
    train_here(scratch, spec(tmp_path / "b", steps=14))
    mine, theirs = only(home, 14), only(scratch, 14)
    assert mine.status().began_from == BeganFrom(trial=only(home, 8).id, step=8)
    assert theirs.status().began_from is None
    assert records(mine) == records(theirs)
    name = "checkpoints/step-000000014/tensors.safetensors"
    assert (mine.root / name).read_bytes() == (theirs.root / name).read_bytes()
    pictures = sorted(path.name for path in theirs.images.iterdir())
    assert [path.name for path in sorted(mine.images.iterdir())] == pictures
    assert all((mine.images / p).read_bytes() == (theirs.images / p).read_bytes() for p in pictures)
    assert mine.status().trained_by[0].step == 0
    assert mine.status().own_steps == 6  # what its seconds are of: a plan must not take it for a fast trial
    entries = [entry for entry in home.manifests()["tiny"].trials if entry.id == mine.id]
    (each,) = timed_seconds(home, entries).values()
    assert each == pytest.approx(mine.status().seconds / 6)


def test_an_intervention_begins_where_it_differs(tmp_path):
    home = Home(tmp_path / "home")
    base = {"steps": 8}
    train_here(home, spec(tmp_path / "a", **base))
    train_here(home, spec(tmp_path / "b", **base, phases=[{"start": 4, "objective": {"diffusion_weight": 0.0}}]))
    began = [home.trial(p.name).status().began_from for p in (home.root / "trials").iterdir()]
    assert sorted(str(b and b.step) for b in began) == ["4", "None"]


@pytest.mark.parametrize("damage", ["checkpoint", "spool", "picture"])
def test_a_damaged_beginning_is_left_alone(tmp_path, damage):
    home = Home(tmp_path / "home")
    train_here(home, spec(tmp_path / "a"))
    other = only(home, 8)
    for path in {
        "checkpoint": other.checkpoints.glob("*/tensors.safetensors"),
        "spool": [other.spool],
        "picture": other.images.iterdir(),
    }[damage]:
        path.write_bytes(path.read_bytes()[:50])
    train_here(home, spec(tmp_path / "b", steps=14))
    assert only(home, 14).state() == "done"
    assert only(home, 14).status().began_from is None


def test_what_was_taken_over_is_on_the_disk_before_the_checkpoint_that_stands_on_it(tmp_path):
    home = Home(tmp_path / "disk" / "home")
    home.root.parent.mkdir()
    with Disk(home.root.parent).watched() as disk:
        train_here(home, spec(tmp_path / "a"))
        train_here(home, spec(tmp_path / "b", steps=14))
    mine, other = only(home, 14), only(home, 8)
    lines = [line for line in other.spool.read_bytes().splitlines() if json.loads(line)["kind"] != "finished"]
    place = f"home/trials/{mine.id}"
    for kind in KINDS:
        seen = 0
        for image in disk.images[kind]:
            taken = f"{place}/checkpoints/step-000000008"
            manifest, tensors = (image.get(f"{taken}/{name}") for name in ("manifest.json", "tensors.safetensors"))
            if manifest is None or tensors is None:
                continue  # it is not there yet, or newer ones take its place
            seen += 1
            assert hashlib.sha256(tensors).hexdigest() == json.loads(manifest)["sha256"]
            assert image[f"{place}/spool.jsonl"].splitlines()[: len(lines)] == lines
            for picture in other.images.iterdir():
                assert image[f"{place}/images/{picture.name}"] == picture.read_bytes()
        assert seen


def test_kept_checkpoints_stay(tmp_path):
    home = Home(tmp_path / "home")
    watch = BASE["observation"] | {"keep_every": 8, "checkpoints_kept": 1}
    path = write_spec(
        tmp_path, VARIANT, base=BASE | {"observation": watch, "training": {"steps": 20, "batch_size": 8}}, seeds=[0]
    )
    train_here(home, path)
    assert [p.name[-2:] for p in sorted(only(home, 20).checkpoints.iterdir())] == ["08", "16", "20"]
    with pytest.raises(ValueError, match="no multiple of checkpoint_every"):
        trial(observation={"keep_every": 6})
