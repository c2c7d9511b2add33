"""`dsd-lab fetch-data`: a folder that is complete and as pinned, or none; what a spec says whose images are missing."""

import contextlib
import gzip
import hashlib
import http.server
import io
import socketserver
import struct
import tarfile
import threading

import numpy as np
import pytest
import scipy.io
from picturing import encoded, pictures
from sweeping import run, write_spec

from dsd_lab.cli.main import main
from dsd_lab.core.data import load_data, source_of
from dsd_lab.core.preparing import fetch
from dsd_lab.errors import BAD_INPUT, NO_RESOURCES, OK, BadInput, NoResources
from dsd_lab.files import download
from dsd_lab.specs.known_data import DATA_SETS, Download, KnownSet
from dsd_lab.specs.trial import Data
from dsd_lab.specs.yaml_document import parse_scalar


def tarred(entries):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return raw.getvalue()


def mat(**arrays):
    raw = io.BytesIO()
    scipy.io.savemat(raw, arrays)
    return raw.getvalue()


CIFAR = np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32)).astype(np.uint8)


def cifar_rows(numbers):
    return b"".join(bytes([n % 2]) + CIFAR[n].tobytes() for n in numbers)


def idx(array):
    return gzip.compress(bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


def flower(i):
    return encoded(pictures(1, seed=i)[0], "JPEG")


CONTENT = {
    "mnist": {
        "train-images-idx3-ubyte.gz": idx(pictures(6, False)),
        "train-labels-idx1-ubyte.gz": idx(np.arange(6, dtype=np.uint8) % 3),
        "t10k-images-idx3-ubyte.gz": idx(pictures(3, False, seed=1)),
        "t10k-labels-idx1-ubyte.gz": idx(np.arange(3, dtype=np.uint8)),
    },
    "cifar10": {
        "cifar-10-binary.tar.gz": tarred(
            {f"cifar-10-batches-bin/data_batch_{n}.bin": cifar_rows([2 * n - 2, 2 * n - 1]) for n in range(1, 6)}
            | {"cifar-10-batches-bin/test_batch.bin": cifar_rows([10, 11])}
            | {"cifar-10-batches-bin/batches.meta.txt": b"airplane\nautomobile\n\n"}
        )
    },
    "flowers": {
        "flower_photos.tgz": tarred(
            {f"flower_photos/{'roses' if i % 2 else 'tulips'}/{i}.jpg": flower(i) for i in range(10)}
            | {"flower_photos/LICENSE.txt": b"CC BY 2.0"}
        )
    },
    "flowers102": {
        "102flowers.tgz": tarred({f"jpg/image_{i:05}.jpg": flower(i) for i in range(1, 9)}),
        "imagelabels.mat": mat(labels=np.array([[2, 1, 2, 1, 2, 1, 2, 1]])),
        "setid.mat": mat(trnid=np.array([[1, 2, 3, 4]]), valid=np.array([[5, 6]]), tstid=np.array([[7, 8]])),
    },
}
"""Small files in the layout of the real ones."""


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server on this machine that has the small files, whose hashes are pinned; what it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            _, name, file = self.path.split("/")
            asked.append(file)
            content = CONTENT.get(name, {}).get(file)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_):
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    for name, files in CONTENT.items():
        rows = [
            Download(file, hashlib.sha256(raw).hexdigest(), len(raw), (f"http://127.0.0.1:{served.server_port}/gone/{file}", f"http://127.0.0.1:{served.server_port}/{name}/{file}"))
            for file, raw in files.items()
        ]  # fmt: skip
        real = DATA_SETS[name]
        assert [row.file for row in rows] == [file.file for file in real.downloads]
        made = KnownSet(real.title, real.licence, real.link, tuple(rows), real.fields, real.unpacks)
        monkeypatch.setitem(DATA_SETS, name, made)
    monkeypatch.chdir(tmp_path)
    yield asked
    served.shutdown()
    served.server_close()


@pytest.mark.parametrize("name", CONTENT)
def test_a_set_that_was_fetched_is_read_and_is_not_fetched_again(server, tmp_path, name):
    code, answer = run("fetch-data", name)
    assert code == OK and answer["data"][name]["fetched"] and answer["data"][name]["licence"]
    place = tmp_path / "data" / name
    data = load_data(Data(source=source_of(place), path=str(place)))
    assert DATA_SETS[name].fields["source"] == source_of(place)
    counts, names = {
        "mnist": ((6, 3), ("0", "1", "2")),
        "cifar10": ((10, 2), ("airplane", "automobile")),
        "flowers": ((8, 2), ("roses", "tulips")),
        "flowers102": ((4, 2), ("1", "2")),
    }[name]
    assert ((len(data.train), len(data.holdout)), data.class_names) == (counts, names)
    if name == "cifar10":
        assert data.train.pixels.numpy().tolist() == CIFAR[:10].tolist() and data.train.labels.tolist() == [0, 1] * 5
    if name == "flowers102":
        assert data.train.labels.tolist() == [0, 0, 1, 1] and data.notes == ("not used: test/",)
    asked = len(server)
    assert run("fetch-data", name)[1]["data"][name]["fetched"] is False and len(server) == asked
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [f".{name}.lock", name]


def test_a_download_that_is_not_what_was_pinned_is_not_kept_and_what_was_right_is(
    server, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(CONTENT["mnist"], "t10k-labels-idx1-ubyte.gz", b"something else")
    assert main(["fetch-data", "mnist", "--json"]) == NO_RESOURCES
    said = capsys.readouterr().err
    assert "t10k-labels-idx1-ubyte.gz: cannot be downloaded (HTTP 404, another SHA-256 than the pinned one)" in said
    part = tmp_path / "data" / ".mnist.part"
    assert not (tmp_path / "data" / "mnist").exists() and len(said.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in part.iterdir()} == {
        name: raw for name, raw in CONTENT["mnist"].items() if name != "t10k-labels-idx1-ubyte.gz"
    }


def test_the_line_to_train_on_a_fetched_set_is_yaml_for_any_folder(server, tmp_path, capsys):
    place = tmp_path / "mine, yes: #1"
    assert main(["fetch-data", "mnist", "--out", str(place)]) == OK
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("train on it: ")]
    told = parse_scalar(line.removeprefix("train on it: "))
    assert told == {"data": {"source": "idx", "path": str(place)}}


def test_a_fetch_that_was_broken_off_downloads_only_what_is_missing(server, tmp_path, monkeypatch):
    part = tmp_path / "data" / ".mnist.part"
    part.mkdir(parents=True)
    files = list(CONTENT["mnist"].items())
    (part / files[0][0]).write_bytes(files[0][1])
    (part / files[1][0]).write_bytes(b"half")
    (part / "laid").mkdir()
    (part / "laid" / "left.png").touch()
    assert run("fetch-data", "mnist")[0] == OK and files[0][0] not in server
    assert sorted(path.name for path in (tmp_path / "data" / "mnist").iterdir()) == sorted(
        ["SOURCE.json", *dict(files)]
    )


def test_a_fetch_that_ends_while_files_are_laid_out_downloads_nothing_again(server, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(fetch, "write_json", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fetch.fetch_data("mnist", tmp_path / "data" / "mnist")
    asked = len(server)
    assert fetch.fetch_data("mnist", tmp_path / "data" / "mnist") and len(server) == asked


def test_of_two_that_fetch_the_second_waits_for_nothing_and_finds_what_the_first_made(server, tmp_path, monkeypatch):
    """The second looks before the first is done, and takes the lock after it: it must not write into its place."""
    out, inner = tmp_path / "data" / "mnist", fetch.locked
    with inner(out.with_name(".mnist.lock")), pytest.raises(BadInput, match="another `dsd-lab fetch-data` writes"):
        fetch.fetch_data("mnist", out)

    @contextlib.contextmanager
    def late(path, wait):
        monkeypatch.setattr(fetch, "locked", inner)
        assert fetch.fetch_data("mnist", out)
        with inner(path, wait=wait) as mine:
            yield mine

    monkeypatch.setattr(fetch, "locked", late)
    assert fetch.fetch_data("mnist", out) is False
    assert sorted(path.name for path in out.parent.iterdir()) == [".mnist.lock", "mnist"]


def test_nothing_of_an_archive_is_written_outside_of_its_folder(tmp_path):
    """The filter of `tarfile`: without it, the file is written beside the folder."""
    (tmp_path / "evil.tgz").write_bytes(tarred({"flower_photos/a/1.jpg": b"x", "../outside.jpg": b"x"}))
    with pytest.raises(tarfile.OutsideDestinationError):
        fetch._extract(tmp_path / "evil.tgz", tmp_path / "in" / "unpacked")
    assert not (tmp_path / "in" / "outside.jpg").exists()


ANSWERS = {
    "no HTTP": (b"nonsense\r\n\r\n", "a damaged answer, BadStatusLine"),
    "cut short": (b"HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\nabc", "ended after 3 of 100 bytes"),
    "too long": (b"HTTP/1.0 200 OK\r\n\r\n" + bytes(1001), "more than 1,000 bytes"),
    "a chunk cut short": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nabc", "IncompleteRead"),
    "another": (b"HTTP/1.0 200 OK\r\n\r\nabc", "has another SHA-256 than the pinned one"),
}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_that_is_damaged_or_too_long_is_told_as_what_it_is(tmp_path, monkeypatch, answer, known):
    raw, complaint = ANSWERS[answer]

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            while self.rfile.readline().strip():
                pass
            self.wfile.write(raw)

    monkeypatch.setattr(download, "MAX_BYTES", 1000)
    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{served.server_address[1]}/x"
        with pytest.raises(NoResources, match=complaint):
            download.download("x", [address], tmp_path / "x", "0" * 64, 1000 if known else None)
        served.shutdown()
    assert not list(tmp_path.iterdir())


def test_a_fault_of_the_program_is_not_told_as_another_hash(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("urllib.request.urlopen", broken)
    with pytest.raises(RuntimeError, match="new thread"):
        download.download("x", ["http://127.0.0.1/x"], tmp_path / "x", "0" * 64)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_the_users_is_not_replaced_and_names_are_checked(server, tmp_path, capsys):
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    for words, complaint in (
        (["mnist"], "is there already, and was not fetched as mnist"),
        (["mnits"], "no such data set; did you mean 'mnist'?"),
        (["mnist", "cifar10", "--out", "x"], "--out: is the folder of one data set"),
    ):
        assert main(["fetch-data", *words]) == BAD_INPUT
        assert complaint in capsys.readouterr().err
    assert server == [] and main(["fetch-data"]) == OK
    listed = capsys.readouterr().out
    assert all(f"{name}: " in listed and known.licence in listed for name, known in DATA_SETS.items())


def test_a_spec_whose_images_are_missing_says_the_verb_the_address_and_the_layout(tmp_path, capsys):
    place = tmp_path / "cifar10"
    data = {"source": "parquet", "path": str(place)}
    spec = write_spec(tmp_path, base={"data": data}, data_from="https://example.org/cifar")
    assert main(["sweep", str(spec), "--home", str(tmp_path / "home"), "--no-tracking"]) == BAD_INPUT
    said = capsys.readouterr().err
    assert (
        f"no such folder {place}; run `dsd-lab fetch-data cifar10 --out {place}` or get the images from https" in said
    )
    assert "; parquet reads train*.parquet and" in said
