"""Bad input as a user meets it at the command line: exit code 2, one line, nothing written; and no number of the catalogue is forgotten."""

import re
from pathlib import Path

import pytest
from test_bad_specs import HEAD, ROWS, Row

from dsd_lab.cli.main import main
from dsd_lab.errors import BAD_INPUT
from dsd_lab.specs.loading import load_sweep


@pytest.mark.integration
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_bad_spec_is_exit_code_2_with_one_line_and_nothing_written(
    row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in row.files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "spec.yaml").write_bytes(row.text if isinstance(row.text, bytes) else row.text.encode())
    before = sorted(tmp_path.rglob("*"))
    profile = [] if row.profile is None else [f"--profile={row.profile}"]
    assert main(["sweep", "spec.yaml", *profile, *(f"--set={text}" for text in row.sets)]) == BAD_INPUT
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert not out and line.startswith(f"dsd-lab: {row.begins}") and "Traceback" not in line
    assert sorted(tmp_path.rglob("*")) == before


def test_b13_minus_zero_is_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ids = []
    for zero in ("0.0", "-0.0"):
        Path("spec.yaml").write_text(f"{HEAD}base: {{optimiser: {{weight_decay: {zero}}}}}\n")
        ids.append([trial.id for trial in load_sweep(Path("spec.yaml")).trials])
    assert ids[0] == ids[1]


def test_every_number_of_the_catalogue_has_a_row_or_a_test() -> None:
    rows = {row.id.split()[0] for row in ROWS if re.match(r"B\d+ ", row.id)}
    text = "\n".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    names = re.findall(r"def test_((?:b\d+_(?:and_)?)+)", text)
    assert rows | {number.upper() for name in names for number in re.findall(r"b\d+", name)} == {
        f"B{number}" for number in range(1, 41)
    }
