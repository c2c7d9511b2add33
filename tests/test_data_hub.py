"""Data sets through the `datasets` library: what its absence says, and a local set where it is there."""

import json
import resource
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from picturing import changed, encoded, pictures, write_folder, write_parquet

from dsd_lab.core.data import hub, load_data
from dsd_lab.errors import BadInput
from dsd_lab.files.atomic import size_of
from dsd_lab.home.data_facts import facts_at_hand, known_images
from dsd_lab.home.home import Home
from dsd_lab.runs.data_shelf import DataShelf
from dsd_lab.specs.trial import Data

HUB = Data(source="datasets", hub="owner/set")


def test_the_extra_is_named_where_the_library_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadInput, match=r"pip install 'dsd-lab\[datasets\]'") as caught:
        load_data(HUB)
    assert str(caught.value).isprintable()


@pytest.fixture
def library(tmp_path, monkeypatch):
    """The library without a network, in an empty folder whose sub-folders it takes for names."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    found = pytest.importorskip("datasets", reason="the extra dsd-lab[datasets] is not installed")
    monkeypatch.setattr(found.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return found


def test_a_name_that_is_not_cached_is_refused_without_a_network(library):
    with pytest.raises(BadInput, match=r"data\.hub: 'owner/set'") as caught:
        load_data(HUB)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("memory", ["resident", "stream"])
def test_a_set_of_the_library_is_the_one_of_its_files(library, tmp_path, memory):
    place = tmp_path / "here" / "owner" / "set"
    write_parquet(place / "test.parquet", pictures(4, seed=1), [0, 1, 2, 0])
    metadata = {
        "huggingface": '{"info": {"features": {"image": {"_type": "Image"}, "label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}}}'
    }
    files = write_parquet(place / "train.parquet", pictures(12), [0, 1, 2] * 4, metadata=metadata)
    write_parquet(place / "test.parquet", pictures(4, seed=1), [0, 1, 2, 0], metadata=metadata)
    data, theirs = load_data(changed(HUB, memory=memory), tmp_path / "ours"), load_data(files)
    assert data.fingerprint == theirs.fingerprint and data.class_names == theirs.class_names == ("a", "b", "c")
    assert torch.equal(next(data.train.batches(20))[0], theirs.train.pixels)
    with pytest.raises(BadInput, match=r"no column 'img' \(it has image, label\)"):
        load_data(changed(HUB, image_column="img"))
    with pytest.raises(BadInput, match=r"'label' of 'owner/set' holds no images"):
        load_data(changed(HUB, image_column="label"))


def test_images_of_the_hub_are_known_without_decoding_until_the_librarys_files_change(library, tmp_path, monkeypatch):
    home, place = Home(tmp_path / "home"), tmp_path / "here" / "owner" / "set"
    home.prepare()
    metadata = {"huggingface": '{"info": {"features": {"image": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}}}'}  # fmt: skip
    write_parquet(place / "train.parquet", pictures(12), [0, 1, 2] * 4, metadata=metadata)
    made = DataShelf().load(HUB, home)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "datasets", None)
        known = known_images(home, HUB)
        assert known.fingerprint == made.fingerprint and (known.train, known.place) == (len(made.train), "owner/set")
        assert facts_at_hand(home, HUB).model_dump() == made.facts | {"fingerprint": made.fingerprint}
    assert known_images(home, changed(HUB, hub="owner/other")) is None
    write_parquet(place / "train.parquet", 255 - pictures(12), [0, 1, 2] * 4, metadata=metadata)  # another revision
    other = DataShelf().load(HUB, Home(tmp_path / "elsewhere"))
    assert other.fingerprint != made.fingerprint and known_images(home, HUB) is None
    assert DataShelf().load(HUB, home).fingerprint == known_images(home, HUB).fingerprint == other.fingerprint


def test_a_set_that_unpacks_without_end_is_refused_and_this_process_takes_none_of_it(library, tmp_path, monkeypatch):
    """A file of a few kilobytes whose images repeat: 1.5 GiB once the library has unpacked it."""
    place = tmp_path / "here" / "owner" / "set"
    place.mkdir(parents=True)
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), pa.array([bytes(16 * 2**20)]))
    image = pa.StructArray.from_arrays([repeated, pa.array(["a.png"] * 100)], ["bytes", "path"])
    found = pa.table({"image": image, "label": [0, 1] * 50})
    pq.write_table(found, place / "train.parquet", compression="zstd", store_schema=False)
    assert (place / "train.parquet").stat().st_size < 2**20
    monkeypatch.setattr(hub, "_MAX_MEMORY", 2**30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadInput, match=r"data\.hub: 'owner/set' cannot be loaded") as caught:
        load_data(HUB)
    assert str(caught.value).isprintable()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 2**10  # kilobytes


def test_a_set_that_fills_the_disk_is_stopped_and_leaves_nothing(library, tmp_path, monkeypatch):
    """13 kB become 512 MiB in 64 images: no file, no image and no row group is too large."""
    place = tmp_path / "here" / "owner" / "set"
    place.mkdir(parents=True)
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 64, pa.int32()), pa.array([bytes(8 * 2**20)]))
    image = pa.StructArray.from_arrays([repeated, pa.array(["a.png"] * 64)], ["bytes", "path"])
    found = pa.table({"image": image, "label": [0, 1] * 32})
    pq.write_table(found, place / "train.parquet", compression="zstd", store_schema=False, row_group_size=4)
    assert (place / "train.parquet").stat().st_size < 2**15
    with pytest.raises(
        BadInput, match=r"data\.hub: 'owner/set' is stopped: its files have .* kB, and it wrote more than 20 times that"
    ):
        load_data(HUB)
    assert size_of(tmp_path / "cache") < 2**20
    program = "import sys; from dsd_lab.files import hub_child as c; c._listed = lambda *_: 2**60; c.main('owner/set', str(2**33), str(2**34), '20', '0')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "bytes, " in (said := json.loads(done.stdout.splitlines()[-1])["refused"]) and "are free in" in said


def test_a_row_that_names_a_file_outside_of_the_set_is_damaged(library, tmp_path):
    """A table of others can name any image of the user's."""
    place = tmp_path / "here" / "owner" / "set"
    (tmp_path / "mine.png").write_bytes(encoded(pictures(1)[0]))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [
        {"bytes": None, "path": str(tmp_path / "mine.png")},
        *({"bytes": encoded(p), "path": "a"} for p in pictures(3)),
    ]
    table = pa.table({"image": pa.array(rows, kind), "label": [0, 1, 0, 1]}).replace_schema_metadata(
        {
            "huggingface": '{"info": {"features": {"image": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}}}'
        }
    )
    place.mkdir(parents=True)
    pq.write_table(table, place / "train.parquet")
    with pytest.raises(BadInput, match=r"train row 0: damaged image: the row names a file that is not of the set"):
        load_data(HUB)


def test_a_damaged_row_of_the_library_is_named(library, tmp_path):
    place = tmp_path / "here" / "owner" / "set"
    metadata = {"huggingface": '{"info": {"features": {"image": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}}}'}  # fmt: skip
    write_parquet(place / "train.parquet", [*pictures(3), b"no", None], [0, 0, 4, 4, 4], metadata=metadata)
    with pytest.raises(BadInput, match="owner/set: train row 3: damaged image"):
        load_data(HUB)
    data = load_data(changed(HUB, damaged="skip"))
    assert len(data.damaged) == 2 and data.class_names == ("0", "4")


def test_a_folder_that_the_library_reads_keeps_its_class_names(library, tmp_path):
    write_folder(tmp_path / "here" / "owner" / "set", pictures(8), [0, 1] * 4, ["cat", "dog"], "train")
    data = load_data(HUB)
    assert data.class_names == ("cat", "dog") and len(data.train) == 6


def test_the_librarys_splits_are_named_as_files_are_and_a_test_without_labels_is_not_used(library, tmp_path):
    place = tmp_path / "here" / "owner" / "set"
    metadata = {
        "huggingface": '{"info": {"features": {"image": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}}}'
    }
    write_parquet(place / "train.parquet", pictures(10), [0, 1] * 5, metadata=metadata)
    write_parquet(place / "test.parquet", pictures(3), [-1] * 3, metadata=metadata)
    data = load_data(HUB)
    assert data.notes == ("not used: test (it has no labels)",) and data.holdout_from == "22 % of every class"
    assert not load_data(changed(HUB, label_column=None)).conditional
    write_parquet(place / "validation.parquet", pictures(4), [0, 1, 0, 5], metadata=metadata)
    with pytest.raises(BadInput, match="class 5 has no training image but 1 held-out"):
        load_data(HUB)
