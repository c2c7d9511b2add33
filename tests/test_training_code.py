"""What the hash of the training code counts, and what it does not."""

import shutil
from pathlib import Path

import pytest

from dsd_lab import training_code as module
from dsd_lab.home.home import Home
from dsd_lab.runs.continuity import code_of
from dsd_lab.training_code import SAME_RESULTS, is_current, same_results, training_code

SOURCE = Path(module.__file__).parent
HASH = training_code()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package whose code is hashed anew at every call."""
    shutil.copytree(SOURCE, tmp_path / "dsd_lab", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(module, "_PACKAGE", tmp_path / "dsd_lab")
    return tmp_path / "dsd_lab"


def hashed():
    return training_code.__wrapped__()


def find(package, name):
    """The file that defines something."""
    (path,) = (p for p in package.rglob("*.py") if f"\ndef {name}(" in p.read_text())
    return path


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_changed_objective_or_resolution_of_phases_is_other_code(package):
    assert hashed() == HASH
    path = find(package, "losses")
    replace(path, "def losses(", "X = 1\n\n\ndef losses(")
    changed = hashed()
    replace(find(package, "resolved_phases"), "def resolved_phases(", "def resolved_phases(\n    more: int,")
    assert len({HASH, changed, hashed()}) == 3


@pytest.mark.parametrize("name", ["singular_values", "sample_latents", "draw_pictures"])
def test_latent_metrics_samplers_and_pictures_change_no_result(package, name):
    path = find(package, name)
    path.write_text(path.read_text() + "\n\nLATER = 1\n")
    assert hashed() == HASH


def test_comments_docstrings_imports_and_places_do_not_count(package):
    path = find(package, "losses")
    text = path.read_text().replace("def losses(", "# A comment.\ndef losses(")
    path.write_text('"""Another docstring."""\n\nimport os\n' + text)
    assert hashed() == HASH
    other = find(package, "indices_of")
    source, last = path.read_text(), other.read_text()
    at = source.rindex("\n\n\ndef ")
    path.write_text(source[:at] + "\n")  # the last definition moves to another listed file
    other.write_text(last + source[at:])
    assert hashed() == HASH


def test_a_hash_of_code_with_the_same_results_is_known():
    assert all(len(code) == 12 for row in SAME_RESULTS.items() for code in row)
    assert is_current(HASH) and not is_current("0" * 12) and not is_current(None)
    first = next(iter(SAME_RESULTS))
    assert same_results(first) not in SAME_RESULTS and same_results("0" * 12) == "0" * 12


def test_a_trial_of_code_with_the_same_results_is_not_stale(tmp_path, monkeypatch):
    folder = Home(tmp_path).trial("0123456789ab")
    folder.root.mkdir(parents=True)
    folder.write_status(state="done", code="c" * 12)
    assert folder.state(HASH) == "stale" and code_of(folder) == HASH
    monkeypatch.setitem(SAME_RESULTS, "c" * 12, HASH)
    assert folder.state(HASH) == "done" and code_of(folder) == "c" * 12
