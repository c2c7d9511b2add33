"""`dsd-lab init`: a spec that runs as it is, and no file of the user's is lost."""

import json

import pytest
from sweeping import run

from dsd_lab.cli.main import main
from dsd_lab.cli.schema import spec_schema
from dsd_lab.errors import BAD_INPUT, NO_RESOURCES, OK
from dsd_lab.specs.loading import load_sweep


def test_the_starter_begins_with_the_schema_line_and_plan_accepts_it_in_every_profile(tmp_path):
    path = tmp_path / "new" / "first_look.yaml"
    code, answer = run("init", path)
    assert code == OK and answer["schema_written"]
    assert path.read_text().startswith("# yaml-language-server: $schema=spec.schema.json\n")
    for profile, seeds in (("quick", 3), ("full", 6)):
        code, plan = run("plan", path, "--profile", profile, "--home", tmp_path / "home")
        assert code == OK and plan["sweep"]["name"] == "first_look" and plan["sweep"]["trials"] == 3 * seeds
        assert {t["variant"] for t in plan["trials"]} == {"control", "naive", "dsd"}


def test_the_schema_lies_beside_it_and_one_that_is_there_stays(tmp_path):
    run("init", tmp_path / "a.yaml")
    assert json.loads((tmp_path / "spec.schema.json").read_text()) == spec_schema()
    (tmp_path / "spec.schema.json").write_text("{}")
    assert not run("init", tmp_path / "b.yaml")[1]["schema_written"]
    assert (tmp_path / "spec.schema.json").read_text() == "{}"


def test_without_a_path_it_is_written_to_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == OK
    assert load_sweep(tmp_path / "my_sweep.yaml").key == "my_sweep--quick"


@pytest.mark.parametrize("name", ["2", "1e3", "null", "on"])
def test_a_file_whose_name_yaml_reads_as_something_else_gives_a_sweep_of_that_name(tmp_path, name):
    for arguments in ([], ["--from", "factorial"]):
        folder = tmp_path / "".join(arguments)
        assert run("init", folder / f"{name}.yaml", *arguments)[0] == OK
        assert load_sweep(folder / f"{name}.yaml").spec.name == name


def test_the_grid_that_is_commented_out_works_when_it_is_not(tmp_path):
    run("init", tmp_path / "a.yaml")
    text = (tmp_path / "a.yaml").read_text()
    opened = text.replace("# grid: ", "grid: ").replace("#   latent.normaliser", "  latent.normaliser")
    (tmp_path / "a.yaml").write_text(opened)
    assert len(load_sweep(tmp_path / "a.yaml").trials) == 3 * 3 * 3


@pytest.mark.parametrize("stem", ["With Capitals", "ünï", "--", "a--b", "_x", "x" * 90])
def test_any_file_name_gives_a_name_that_a_sweep_can_have(tmp_path, stem):
    assert main(["init", str(tmp_path / f"{stem}.yaml")]) == OK
    assert load_sweep(tmp_path / f"{stem}.yaml").trials


def test_what_is_there_is_never_overwritten_not_even_through_a_link(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("name: mine")
    (tmp_path / "link.yaml").symlink_to(tmp_path / "nowhere.yaml")
    for name in ("mine.yaml", "link.yaml"):
        assert main(["init", str(tmp_path / name)]) == BAD_INPUT
        assert "already exists and is not overwritten" in capsys.readouterr().err
    assert (tmp_path / "mine.yaml").read_text() == "name: mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.yaml", "mine.yaml"]


@pytest.mark.parametrize(("name", "better"), [("", "my_sweep.yaml"), ("spec", "spec.yaml"), ("spec.json", ".yaml")])
def test_a_path_that_is_no_yaml_file_is_told_which_would_be(tmp_path, capsys, name, better):
    assert main(["init", str(tmp_path / name)]) == BAD_INPUT
    assert better in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_exit_code_4(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["init", str(tmp_path / "file" / "a.yaml")]) == NO_RESOURCES
    assert "cannot be written" in capsys.readouterr().err
