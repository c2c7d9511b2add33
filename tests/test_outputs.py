"""Folders that commands write for the user: nothing there is overwritten or deleted that is not provably ours."""

import os
import stat
from pathlib import Path

import nbformat
import pytest
from sweeping import run, train_here, write_spec

from dsd_lab.cli.main import main
from dsd_lab.errors import BAD_INPUT, OK, BadInput
from dsd_lab.evaluation.pretrained import fetch, weights_path
from dsd_lab.home.home import Home
from dsd_lab.home.outputs import Output

MORE, FEWER = {"tiny": 6}, {"tiny": 2}


def write(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def publish(tmp_path):
    """publish(results=..., **files): what a report of these files does to `tmp_path/out`."""
    home, count = Home(tmp_path / "home"), iter(range(100))

    def put(results=None, folder="out", aside=False, **files):
        output = Output(home, tmp_path / folder, f"--out {folder}", aside)
        output.publish(write(tmp_path / f"made-{next(count)}", **files), results or {})
        return tree(tmp_path / folder)

    return put


def test_what_was_written_before_and_is_not_written_again_goes_and_nothing_else_does(publish, tmp_path):
    publish(report_html="1", tables__a_csv="1", figures__a_png="1")
    write(tmp_path / "out", notes_md="mine", figures__mine_png="mine")
    assert publish(report_html="2", tables__b_csv="2") == {
        "report.html": "2",
        "tables/b.csv": "2",
        "notes.md": "mine",
        "figures/mine.png": "mine",
    }
    assert publish(report_html="3") == {"report.html": "3", "notes.md": "mine", "figures/mine.png": "mine"}
    assert not (tmp_path / "out" / "tables").exists()


@pytest.mark.parametrize("name", ["report_html", "tables__a_csv"])
def test_a_file_of_the_user_s_under_a_name_of_ours_is_refused_and_nothing_is_touched(name, publish, tmp_path):
    write(tmp_path / "out", **{name: "mine"}, tables__mine_csv="mine")
    before = tree(tmp_path / "out")
    with pytest.raises(BadInput, match=r"--out out: .* was not written by dsd-lab, or has changed since"):
        publish(report_html="1", tables__a_csv="1")
    assert tree(tmp_path / "out") == before


def test_a_file_that_was_changed_after_we_wrote_it_is_neither_deleted_nor_overwritten(publish, tmp_path):
    publish(report_html="1", report_md="1", tables__a_csv="1")
    write(tmp_path / "out", tables__a_csv="edited")
    assert publish(report_html="2")["tables/a.csv"] == "edited"
    write(tmp_path / "out", report_html="edited")
    with pytest.raises(BadInput, match="changed since"):
        publish(report_html="3")
    assert tree(tmp_path / "out") == {"report.html": "edited", "tables/a.csv": "edited"}


def test_a_list_in_the_folder_has_no_power(publish, tmp_path):
    write(tmp_path / "out", src__main_py="mine", figures__a_png="mine")
    (tmp_path / "out" / ".env").write_text("mine")
    (tmp_path / "out" / ".report-files").write_text("src/main.py\n.env\nfigures/a.png\nreport.html\n")
    before = tree(tmp_path / "out")
    assert publish(report_html="1") == before | {"report.html": "1"}


def test_links_are_followed_neither_for_writing_nor_for_deletion(publish, tmp_path):
    publish(report_html="1", tables__a_csv="1", figures__a_png="1")
    out, disk = tmp_path / "out", write(tmp_path / "disk", a_csv="1", a_png="1", letter_txt="mine")
    (out / "tables" / "a.csv").unlink()
    (out / "tables").rmdir()
    (out / "tables").symlink_to(disk)  # with the very content that we wrote
    (out / "figures" / "a.png").unlink()
    (out / "figures" / "a.png").symlink_to(disk / "a.png")
    before = tree(disk)
    publish(report_html="2")
    assert tree(disk) == before and (out / "figures" / "a.png").is_symlink()
    with pytest.raises(BadInput, match="is a link or a file"):
        publish(tables__b_csv="3")
    (out / "report.html").unlink()
    (out / "report.html").symlink_to(disk / "letter.txt")
    with pytest.raises(BadInput, match="is a link"):
        publish(report_html="3")
    assert tree(disk) == before


@pytest.mark.parametrize(
    "what", ["the folder of a file that is written", "a file that is replaced", "the folder of a file that goes"]
)
def test_a_link_that_appears_after_the_check_is_not_followed(what, publish, tmp_path, monkeypatch):
    publish(report_html="1", tables__a_csv="1", figures__b_png="1")
    out, disk = tmp_path / "out", write(tmp_path / "disk", a_csv="1", b_png="1", letter_txt="mine")
    before, real = tree(disk), Output._write

    def swapped(self, files, results):  # the last thing that happens before files are touched
        real(self, files, results)
        name = {"the folder of a file that is written": "tables", "the folder of a file that goes": "figures"}.get(
            what, "report.html"
        )
        if not (out / name).is_symlink():
            (out / name).rename(tmp_path / "aside")
            (out / name).symlink_to(disk / ("letter.txt" if name == "report.html" else ""))

    with monkeypatch.context() as patch:
        patch.setattr(Output, "_write", swapped)
        if what.endswith("goes"):
            publish(report_html="2", tables__a_csv="2")
        else:
            with pytest.raises(BadInput, match=r"is reached through a link|was just changed"):
                publish(report_html="2", tables__a_csv="2")
    assert tree(disk) == before


def test_a_record_of_names_that_lead_out_of_the_folder_deletes_nothing(publish, tmp_path):
    import hashlib
    import json

    publish(report_html="1")
    victim = write(tmp_path, victim_txt="mine") / "victim.txt"
    (record,) = (tmp_path / "home" / "written").glob("*.json")
    content, digest = json.loads(record.read_text()), hashlib.sha256(b"mine").hexdigest()
    content["files"] |= {"../victim.txt": [digest], str(victim): [digest]}
    record.write_text(json.dumps(content))
    publish(report_html="2")
    assert victim.read_text() == "mine"


def test_files_keep_the_rights_that_the_umask_gives(publish, tmp_path):
    before = os.umask(0o022)
    try:
        publish(report_html="1")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out" / "report.html").stat().st_mode) == 0o644


def test_a_call_that_was_killed_half_way_is_followed_by_one_that_knows_its_files(publish, tmp_path, monkeypatch):
    publish(report_html="1", report_md="1")
    put = Output._put

    def killed(self, source, name, files):
        if name == "report.md":
            raise KeyboardInterrupt
        put(self, source, name, files)

    with monkeypatch.context() as patch:
        patch.setattr(Output, "_put", killed)
        with pytest.raises(KeyboardInterrupt):
            publish(report_html="2", report_md="2")
    assert tree(tmp_path / "out") == {"report.html": "2", "report.md": "1"}
    assert publish(report_html="3", report_md="3") == {"report.html": "3", "report.md": "3"}


def test_fewer_results_never_replace_more_in_silence(publish, tmp_path, capsys):
    publish(MORE, report_html="six")
    with pytest.raises(BadInput, match=r"6 finished trials of sweep 'tiny', and this one has 2"):
        publish(FEWER, report_html="two")
    assert tree(tmp_path / "out") == {"report.html": "six"}
    assert publish({"other": 1}, report_html="other") == {"report.html": "other"}


def test_in_the_home_what_is_in_the_way_is_set_aside_whole(publish, tmp_path, capsys):
    place = "home/reports/tiny"
    write(tmp_path / place, report_html="of an older version", figures__a_png="old")
    assert publish(MORE, place, aside=True, report_html="six") == {"report.html": "six"}
    assert tree(tmp_path / f"{place}.before-1") == {"report.html": "of an older version", "figures/a.png": "old"}
    assert f"{place}.before-1" in capsys.readouterr().err
    assert publish(FEWER, place, aside=True, report_html="two") == {"report.html": "two"}
    assert tree(tmp_path / f"{place}.before-2") == {"report.html": "six"}
    assert "6 finished trials" in capsys.readouterr().err
    assert publish(MORE, place, aside=True, report_html="six again") == {"report.html": "six again"}
    assert not (tmp_path / f"{place}.before-3").exists()


@pytest.mark.integration
def test_report_refuses_a_folder_of_the_user_s_and_writes_its_own_again(tmp_path, capsys):
    home, spec, out = Home(tmp_path / "home"), write_spec(tmp_path), tmp_path / "paper"
    train_here(home, spec)
    write(out, report_html="mine", tables__mine_csv="mine", figures__mine_png="mine")
    before = tree(out)
    assert main(["report", "--home", str(home.root), "--out", str(out)]) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line.startswith(f"dsd-lab: --out {out}: {out}/report.html was not written by dsd-lab") and tree(out) == before
    )
    (out / "report.html").unlink()
    for _ in range(2):
        assert run("report", "--home", home.root, "--out", out)[0] == OK
        assert (out / "tables" / "mine.csv").read_text() == "mine" and (out / "tables" / "verdicts.csv").exists()
    assert not (out / ".report-files").exists()


# -- Other commands ------------------------------------------------------------------------------------


def test_a_file_among_others_replaces_itself_and_no_neighbour(tmp_path):
    home, out = Home(tmp_path / "home"), write(tmp_path / "out", mine_npz="mine")
    for name in ("a.npz", "b.npz", "a.npz"):
        Output(home, out, "--out", file=name).publish(
            write(tmp_path / name / "made", **{name.replace(".", "_"): name}), {}
        )
    assert tree(out) == {"mine.npz": "mine", "a.npz": "a.npz", "b.npz": "b.npz"}
    with pytest.raises(BadInput, match=r"mine\.npz was not written by dsd-lab"):
        Output(home, out, "--out", file="mine.npz").check(["mine.npz"])


def test_latents_and_samples_refuse_a_file_of_the_user_s(tmp_path, capsys):
    home, spec = Home(tmp_path / "home"), write_spec(tmp_path)
    (trial,) = train_here(home, spec).trials
    write(tmp_path, mine_npz="mine")
    (tmp_path / "link.npz").symlink_to(tmp_path / "mine.npz")
    for name in ("mine.npz", "link.npz"):
        assert main(["latents", trial.id, "--home", str(home.root), "--out", str(tmp_path / name)]) == BAD_INPUT
        assert f"--out {tmp_path / name}: " in capsys.readouterr().err
    assert (tmp_path / "mine.npz").read_text() == "mine"
    write(tmp_path / "drawn", grid_png="mine")
    assert (
        main(["sample", trial.id, "--home", str(home.root), "--n", "2", "--out", str(tmp_path / "drawn")]) == BAD_INPUT
    )
    assert "grid.png was not written by dsd-lab" in capsys.readouterr().err and tree(tmp_path / "drawn") == {
        "grid.png": "mine"
    }
    for _ in range(2):
        assert run("latents", trial.id, "--home", home.root, "--out", tmp_path / "new.npz")[0] == OK


def test_a_contact_sheet_refuses_a_file_of_the_user_s_and_replaces_its_own(tmp_path, capsys):
    spec, sheet = write_spec(tmp_path), tmp_path / "sheet.png"
    write(tmp_path, mine_png="mine")
    (tmp_path / "link.png").symlink_to(tmp_path / "mine.png")
    asked = ["data", str(spec), "--home", str(tmp_path / "home"), "--out"]
    for name in ("mine.png", "link.png"):
        assert main([*asked, str(tmp_path / name)]) == BAD_INPUT
        assert f"--out {tmp_path / name}: " in capsys.readouterr().err
    assert (tmp_path / "mine.png").read_text() == "mine"
    assert main([*asked, str(sheet)]) == main([*asked, str(sheet)]) == OK
    sheet.write_text("mine")
    assert main([*asked, str(sheet)]) == BAD_INPUT and sheet.read_text() == "mine"


def test_init_and_fetch_weights_replace_no_link_that_leads_nowhere(tmp_path):
    (tmp_path / "spec.schema.json").symlink_to(tmp_path / "unmounted" / "spec.schema.json")
    assert run("init", tmp_path / "mine.yaml")[1]["schema_written"] is False
    assert (tmp_path / "spec.schema.json").is_symlink()
    path = weights_path("inception", Home(tmp_path))
    path.parent.mkdir()
    path.symlink_to(tmp_path / "unmounted" / "weights.pth")
    with pytest.raises(BadInput, match="is a link that leads nowhere"):
        fetch("inception", path)
    assert path.is_symlink()


def test_a_notebook_that_was_edited_while_it_ran_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "analysis")
    import execute

    notebook = tmp_path / "a.ipynb"
    notebook.write_text("before")
    monkeypatch.setattr(execute, "FOLDER", tmp_path)

    def edited(path, home):
        path.write_text("edited")
        return nbformat.v4.new_notebook()

    monkeypatch.setattr(execute, "execute", edited)
    with pytest.raises(SystemExit, match="was edited while it ran"):
        execute.main(str(tmp_path), "a")
    assert notebook.read_text() == "edited"
    (tmp_path / "link.ipynb").symlink_to(notebook)
    for name in ("link", "../a"):
        with pytest.raises(SystemExit, match="is no notebook of"):
            execute.main(str(tmp_path), name)
