"""Files that a disk or a stranger has changed: refused in one line or passed over as damaged, and nothing is written elsewhere."""

import hashlib
import json
import math
import shutil
import tempfile
from pathlib import Path

import pytest
from fuzzing import fuzz, timed
from hypothesis import assume, given
from hypothesis import strategies as st
from sweeping import run

from dsd_lab.cli.logs import event_line
from dsd_lab.cli.main import main
from dsd_lab.core.training.checkpoints import list_checkpoints, load_checkpoint, newest_checkpoint
from dsd_lab.errors import BAD_INPUT, OK, CorruptCheckpoint, LabError
from dsd_lab.home.history import history_table
from dsd_lab.home.home import Home
from dsd_lab.home.spool import read_spool

KEPT = Path(__file__).parent / "fixtures" / "home-schema1" / "home"

flips = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=3)
damages = st.tuples(flips, st.just(1.0) | st.floats(0, 1))
"""Which bytes are flipped, and how, and what share of the file is left."""


def damaged(raw, damage):
    """The bytes after a damage that changes them."""
    content = bytearray(raw)
    for place, mask in damage[0]:
        content[int(place * len(raw))] ^= mask
    found = bytes(content[: math.ceil(damage[1] * len(raw))])
    assume(found != raw)
    return found


def refusal_of(read):
    """The refusal that a reader ends with, or None; any other error is a fault of ours."""
    try:
        read()
    except LabError as refusal:
        return refusal
    return None


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A home of an export that is taken into others, and a finished trial of it."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copytree(KEPT, folder / "home")
    home = Home(folder / "home")
    assert run("export", "old", "--home", home.root, "--out", folder / "export", "--weights")[0] == OK
    (done,) = (home.trial(p.name) for p in home.root.glob("trials/*") if home.trial(p.name).evaluations())
    return folder, done


@fuzz(120)
@given(damage=damages, name=st.sampled_from(["tensors.safetensors", "manifest.json"]))
@timed
def test_any_damage_to_a_checkpoint_is_a_damaged_checkpoint(work, damage, name):
    (whole,) = list_checkpoints(work[1].checkpoints)
    with tempfile.TemporaryDirectory(dir=work[0]) as scratch:
        path = Path(scratch) / whole.name
        shutil.copytree(whole, path)
        (path / name).write_bytes(damaged((path / name).read_bytes(), damage))
        refusal = refusal_of(lambda: load_checkpoint(path))
        if isinstance(refusal, CorruptCheckpoint):
            assert newest_checkpoint(Path(scratch)) is None
            assert [p.name for p in Path(scratch).iterdir()] == [f"damaged-{whole.name}"]
        else:
            assert name == "manifest.json"  # a digit of its format, or of its state, is another
            assert refusal is None or "is newer than this program reads" in str(refusal)


@fuzz(200)
@given(damage=damages)
@timed
def test_any_damage_to_a_spool_is_told_by_its_line_or_can_be_read(work, damage):
    path = work[0] / "spool.jsonl"
    path.write_bytes(damaged(work[1].spool.read_bytes(), damage))
    refusal = refusal_of(lambda: list(read_spool(path)))
    if refusal is not None:
        assert str(refusal).startswith(f"{path}:")
    else:
        history_table(path)
        assert all(event_line(line) for line in read_spool(path))


@fuzz(150)
@given(damage=damages)
@timed
def test_any_damage_to_an_evaluation_makes_it_one_that_is_not_finished_or_leaves_numbers(work, damage):
    (path,) = (work[1].root / "evaluations").glob("*.json")
    raw = path.read_bytes()
    path.write_bytes(damaged(raw, damage))
    try:
        for content in work[1].evaluations().values():
            assert all(math.isfinite(value) for value in content.metrics.values())
    finally:
        path.write_bytes(raw)


@pytest.mark.integration
@fuzz(60)
@given(damage=damages, at=st.floats(0, 1, exclude_max=True), mended=st.booleans())
@timed
def test_any_damage_to_an_export_is_refused_or_what_comes_in_can_be_shown(work, damage, at, mended):
    with tempfile.TemporaryDirectory(dir=work[0]) as scratch:
        source, home = Path(scratch) / "export", Path(scratch) / "home"
        shutil.copytree(work[0] / "export", source)
        files = sorted(p for p in source.rglob("*") if p.is_file())
        path = files[int(at * len(files))]
        path.write_bytes(damaged(path.read_bytes(), damage))
        if mended and path.name != "export.json":  # as somebody would who wants it to come in
            index = json.loads((source / "export.json").read_text())
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            index["files"][path.relative_to(source).as_posix()] = {"sha256": digest, "bytes": path.stat().st_size}
            (source / "export.json").write_text(json.dumps(index))
        code = main(["import", str(source), "--home", str(home)])
        assert code in (OK, BAD_INPUT) and (mended or path.name == "export.json" or code == BAD_INPUT)
        assert {p.name for p in Path(scratch).iterdir()} <= {"export", "home"}
        if code == BAD_INPUT:
            assert not list(home.glob("trials/*")) and not list(home.glob("sweeps/*/manifest.json"))
        else:
            for verb in (["status"], ["logs", work[1].id], ["gc"]):
                assert main([*verb, "--home", str(home)]) == OK
