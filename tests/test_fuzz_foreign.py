"""Data folders, stores and forged imports: whatever they hold is refused in one line or can be used."""

import gzip
import io
import json
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import fuzz, timed
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sweeping import run, write_idx
from test_fuzz_files import KEPT, damaged, damages
from test_imported import mend

from dsd_lab.cli.main import main
from dsd_lab.core.data import load_data
from dsd_lab.core.data.decoding import decoded
from dsd_lab.errors import BAD_INPUT, OK, BadInput
from dsd_lab.files.image_files import FORMATS, MAX_PIXELS, DamagedImage
from dsd_lab.files.printable import printable
from dsd_lab.home.history import write_history
from dsd_lab.home.home import Home
from dsd_lab.home.sweep_records import Entry
from dsd_lab.report.results import result_of
from dsd_lab.specs.trial import Data
from dsd_lab.store.own_runs import invalid_tag
from dsd_lab.store.reading import damage

EVIL = st.sampled_from(
    [None, True, -1, 0, 2**63, 2**70, 1e300, -1e300, 0.5, "", "\0", "\x1b[2J", "\u202e", "../../etc", "a" * 20_000, "NaN", [], {}, [[]], {"a": {}}]
)  # fmt: skip
TEXT = st.text(max_size=40) | st.sampled_from(["done", "0" * 12, "../../etc", "12", "1e999", "-3", "²", "a" * 300])


def encoded(name):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 7, 3), np.uint8)).save(buffer, name)
    return buffer.getvalue()


ENTRY = Entry(id="0" * 12, name="a s0", variant="a", point={}, seed=0, size="a", steps=1, overrides={}, canonical={}, has_denoiser=True)  # fmt: skip
IMAGES = {name: encoded(name) for name in FORMATS}


def in_one_line(error):
    assert str(error) and str(error).isprintable(), str(error)


@fuzz(150)
@given(name=st.sampled_from(FORMATS), damage=damages)
@timed
def test_any_damage_to_an_image_is_a_damaged_image_or_leaves_pixels(name, damage):
    raw = damaged(IMAGES[name], damage)
    try:
        pixels = decoded(lambda: raw, "a", Data())
    except DamagedImage as error:
        in_one_line(error)
    else:
        assert pixels.dtype == np.uint8 and pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS


@fuzz(40)
@given(raw=st.binary(max_size=400), head=st.sampled_from([b"", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG\r\n\x1a\n", b"II*\0", b"RIFF", b"GIF89a", b"P6 "]))  # fmt: skip
@timed
def test_bytes_that_begin_as_an_image_are_a_damaged_image_or_leave_pixels(raw, head):
    try:
        decoded(lambda: head + raw, "a", Data())
    except DamagedImage as error:
        in_one_line(error)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """An idx folder, packed in turn, and a parquet file."""
    folder = tmp_path_factory.mktemp("sets")
    (folder / "idx").mkdir()
    write_idx(folder / "idx", 6)
    for path in list((folder / "idx").glob("t10k*")):
        path.with_suffix(".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    (folder / "parquet").mkdir()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": IMAGES["PNG"], "path": f"{i}.png"} for i in range(6)], type=kind)
    pq.write_table(pa.table({"image": rows, "label": [i % 2 for i in range(6)]}), folder / "parquet" / "train.parquet")
    return folder


@fuzz(60)
@given(source=st.sampled_from(["idx", "parquet"]), at=st.floats(0, 1, exclude_max=True), damage=damages)
@timed
def test_any_damage_to_a_data_set_is_refused_in_one_line_or_leaves_images(sets, source, at, damage):
    with tempfile.TemporaryDirectory(dir=sets) as scratch:
        shutil.copytree(sets / source, Path(scratch) / "set")
        files = sorted((Path(scratch) / "set").iterdir())
        path = files[int(at * len(files))]
        path.write_bytes(damaged(path.read_bytes(), damage))
        try:
            data = load_data(Data(source=source, path=str(Path(scratch) / "set")))
        except BadInput as error:
            in_one_line(error)
        else:
            assert len(data.train) > 0


@fuzz(100)
@given(tags=st.dictionaries(st.sampled_from(["dsd.trial", "dsd.sweep", "dsd.code", "dsd.state", "dsd.step", "dsd.seconds", "dsd.lines", "dsd.error", "dsd.imported"]), TEXT))  # fmt: skip
@timed
def test_any_tags_of_a_run_are_refused_or_make_a_result(tags):
    reason = invalid_tag(SimpleNamespace(data=SimpleNamespace(tags=tags)))
    if reason is None:
        assert result_of(ENTRY, tags.get("dsd.state", "pending"), tags, {}, None).seconds >= -1e308
    else:
        assert printable(reason).isprintable()


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """The files of a trial as a store keeps them."""
    folder, home = tmp_path_factory.mktemp("artifacts"), Home(KEPT)
    (done,) = (home.trial(p.name) for p in home.root.glob("trials/*") if home.trial(p.name).state() == "done")
    (folder / "whole").mkdir()
    shutil.copyfile(done.root / "trial.json", folder / "whole" / "trial.json")
    write_history(done.spool, folder / "whole" / "history.parquet")
    return folder


@fuzz(60)
@given(name=st.sampled_from(["history.parquet", "trial.json"]), how=damages)
@timed
def test_any_damage_to_artifacts_is_seen_or_leaves_a_history(artifacts, name, how):
    with tempfile.TemporaryDirectory(dir=artifacts) as scratch:
        shutil.copytree(artifacts / "whole", Path(scratch) / "run")
        path = Path(scratch) / "run" / name
        path.write_bytes(damaged(path.read_bytes(), how))
        if damage(path.parent) is None:
            result_of(ENTRY, "done", {}, {}, path.parent).last_probes("latent/std", 3)


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forged")
    shutil.copytree(KEPT, folder / "home")
    assert run("export", "old", "--home", folder / "home", "--out", folder / "export")[0] == OK
    return folder


def places(value, at=()):
    """The key paths of everything in a JSON value."""
    yield at
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inside:
        yield from places(part, (*at, key))


def forged(content, at, value):
    for key in at[:-1]:
        content = content[key]
    content[at[-1]] = value


@pytest.mark.integration
@fuzz(40)
@given(file=st.floats(0, 1, exclude_max=True), place=st.floats(0, 1, exclude_max=True), value=EVIL)
@timed
def test_any_forged_value_of_an_export_is_refused_or_can_be_shown(export, file, place, value):
    with tempfile.TemporaryDirectory(dir=export) as scratch:
        source, home = Path(scratch) / "export", Path(scratch) / "home"
        shutil.copytree(export / "export", source)
        files = sorted(p for p in source.rglob("*.json") if p.name != "export.json")
        path = files[int(file * len(files))]
        content = json.loads(path.read_text())
        every = list(places(content))[1:]
        forged(content, every[int(place * len(every))], value)
        path.write_text(json.dumps(content))
        mend(source)
        code = main(["import", str(source), "--home", str(home)])
        assert code in (OK, BAD_INPUT) and {p.name for p in Path(scratch).iterdir()} <= {"export", "home"}
        if code == BAD_INPUT:
            assert not list(home.glob("trials/*")) and not list(home.glob("sweeps/*/manifest.json"))
        else:
            trial = next(p.name for p in home.glob("trials/*"))
            for verb in (["status"], ["logs", trial], ["gc"], ["export", "old", "--out", f"{scratch}/again"]):
                assert main([*verb, "--home", str(home)]) == OK
