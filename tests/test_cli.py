"""The command line as later work and users' scripts rely on it: verbs, options, JSON, exit codes, and what is imported.

A verb or an option that is added, renamed or removed has to be changed here too, deliberately.
"""

import argparse
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sweeping import LONG, VARIANTS, command, imported, run, running, start, train_here, wait_until, write_spec

from dsd_lab.cli.main import main
from dsd_lab.cli.parser import build_parser
from dsd_lab.cli.schema import spec_schema
from dsd_lab.cli.ui import listening
from dsd_lab.core.diffusion.samplers import SAMPLERS
from dsd_lab.errors import BAD_INPUT, OK
from dsd_lab.home.home import Home
from dsd_lab.home.lookup import manifest_of
from dsd_lab.home.trial_folder import STATES, TrialFolder
from dsd_lab.specs.loading import load_sweep

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted((ROOT / "experiments").glob("*.yaml"))
SPEC_OPTIONS = {"SPEC", "--profile", "--set", "--plugin"}
SURFACE = {
    "plan": SPEC_OPTIONS | {"--only", "--gpu", "--json"},
    "data": {"SPEC|FOLDER", "--plugin", "--profile", "--set", "--out", "--json"},
    "prepare": {"SPEC|FOLDER", "--plugin", "--profile", "--set", "--out", "--size", "--jpeg", "--workers", "--json"},
    "sweep": SPEC_OPTIONS
    | {
        "--only",
        "--json",
        "--address",
        "--max-concurrent",
        "--retry-failed",
        "--allow-code-change",
        "--fail-fast",
        "--stop-collapsed",
        "--no-tracking",
        "--tracking-uri",
    },
    "train": SPEC_OPTIONS | {"--variant", "--seed", "--allow-code-change", "--no-tracking", "--tracking-uri", "--json"},
    "bench": {
        "SPEC|SIZE",
        "--plugin",
        "--profile",
        "--set",
        "--variant",
        "--repeats",
        "--steps",
        "--processes",
        "--random-images",
        "--data",
        "--json",
    },
    "report": {"SPEC|SWEEP", "--plugin", "--profile", "--x", "--out", "--tracking-uri", "--json"},
    "sample": {
        "trial",
        "--plugin",
        "--n",
        "--class",
        "--labels",
        "--guidance",
        "--sampler",
        "--steps",
        "--weights",
        "--checkpoint",
        "--precision",
        "--protocol",
        "--seed",
        "--processes",
        "--npz",
        "--out",
        "--json",
    },
    "evaluate": {
        "TRIAL",
        "--plugin",
        "--spec",
        "--profile",
        "--protocol",
        "--guidance",
        "--sampler",
        "--steps",
        "--images",
        "--labels",
        "--weights",
        "--checkpoint",
        "--precision",
        "--processes",
        "--extractor",
        "--reference",
        "--metrics",
        "--no-tracking",
        "--tracking-uri",
        "--json",
    },
    "fetch-data": {"NAME", "--out", "--json"},
    "fetch-weights": {"NAME", "--json"},
    "forecast": {"HOME", "--json"},
    "reproduce": {"trial", "--plugin", "--from", "--data", "--json"},
    "latents": {"trial", "--plugin", "--split", "--out", "--json"},
    "status": {"SPEC|SWEEP", "--json"},
    "logs": {"trial", "--lines", "--follow", "--json"},
    "doctor": {"--dry-run", "--tracking-uri", "--json"},
    "gc": {"--yes", "--json"},
    "rm": {"SWEEP", "--yes", "--json"},
    "compare": {"A", "B", "--tracking-uri", "--json"},
    "export": {"SWEEP", "--out", "--weights", "--anonymous", "--no-pictures", "--json"},
    "import": {"DIR", "--json"},
    "ui": {"--port", "--tracking-uri", "--json"},
    "specs": {"--json"},
    "init": {"PATH", "--from", "--json"},
    "schema": {"--plugin", "--json"},
    "parts": {"KIND", "--plugin", "--json"},
    "completion": {"shell", "--json"},
}
"""Verb -> its options beside `--home` and `--help`, which all have."""


def verbs() -> dict[str, argparse.ArgumentParser]:
    actions = build_parser()._actions
    return next(a.choices for a in actions if isinstance(a, argparse._SubParsersAction))


def options(parser: argparse.ArgumentParser) -> set[str]:
    return {name for a in parser._actions for name in (a.option_strings or [a.metavar or a.dest])} - {"-h"}


# -- The surface -------------------------------------------------------------------------------------


def test_the_verbs_and_their_options_are_the_documented_ones():
    found = {verb: options(parser) for verb, parser in verbs().items()}
    assert found == {verb: given | {"--home", "--help"} for verb, given in SURFACE.items()}


@pytest.mark.parametrize("verb", SURFACE)
def test_every_verb_explains_itself_with_an_example_that_it_accepts(verb):
    shown = verbs()[verb].format_help()
    example = " ".join(shown.partition("example: ")[2].split()).partition(" > ")[0].partition(" && ")[0]
    assert example.startswith(f"dsd-lab {verb}")
    assert build_parser().parse_args(example.split()[1:]).verb == verb


def test_every_verb_answers_in_json():
    assert {verb for verb, given in SURFACE.items() if "--json" in given} == set(SURFACE)


def completed(*words):
    """What bash would offer for the last of these words."""
    script = subprocess.run(command("completion", "bash"), capture_output=True, text=True, check=True).stdout
    line = (
        "COMP_WORDS=(" + " ".join(f"'{w}'" for w in ("dsd-lab", *words)) + f"); COMP_CWORD={len(words)}; _shtab_dsd_lab"
    )
    asked = f"{script}\n{line}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not done.stderr
    return set(done.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("",), set(SURFACE)),
        (("s",), {"sweep", "sample", "status", "schema", "specs"}),
        (("-",), {"-h", "--help", "--version"}),
        (("sweep", "--re"), {"--retry-failed"}),
        (("report", "--"), {"--home", "--help", "--plugin", "--profile", "--out", "--tracking-uri", "--json", "--x"}),
        (("sample", "3d", "--sampler", ""), set()),  # a plug-in may have more
        (("completion", "f"), {"fish"}),
        (("sweep", "experiments/coll"), {"experiments/collapse_ablation.yaml"}),
        (("plan", "experiments/mnist.yaml", "--profile", "q"), {"quick"}),
        (("train", "experiments/collapse_ablation.yaml", "--variant", "nai"), {"naive"}),
        (("train", "none.yaml", "--variant", ""), set()),
        (("sweep", "x.yaml", "--set", "training.ste"), {"training.steps="}),
        (("report", "--out", "exp"), {"experiments"}),
    ],
)
def test_bash_completes_verbs_options_and_their_values(words, offered):
    assert completed(*words) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_knows_every_verb_and_option_and_its_shell_reads_it(shell, tmp_path):
    code, answer = run("completion", shell)
    script = answer["script"]
    assert code == OK and answer["shell"] == shell
    for verb, given in SURFACE.items():
        assert verb in script
        for option in (o for o in given if o.startswith("--")):
            assert (f"-l {option[2:]} " if shell == "fish" else option) in script
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} on this machine: its names were checked, not its syntax")
    (tmp_path / "script").write_text(script)
    done = subprocess.run([shell, "-n", str(tmp_path / "script")], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr


def test_the_module_is_the_command_and_tells_its_version():
    done = subprocess.run(command("--version"), capture_output=True, text=True)
    assert done.returncode == OK and done.stdout.startswith("dsd-lab 0.")


@pytest.mark.parametrize("arguments", [["--help"], ["sweep", "--help"], ["schema"], ["completion", "zsh"]])
def test_help_schema_and_completion_import_nothing_heavy(arguments):
    modules, code, _, _ = imported(*arguments)
    assert code == OK
    assert not modules & {"torch", "ray", "mlflow", "pandas", "matplotlib", "timm", "scipy", "sklearn"}
    assert "--help" not in arguments or not modules & {"pydantic", "yaml", "numpy"}


def test_a_bad_spec_is_one_line_and_exit_code_2_before_anything_heavy_is_imported(tmp_path):
    spec = write_spec(tmp_path, base={"training": {"stpes": 5}})
    modules, code, printed, complaint = imported("sweep", str(spec), "--home", str(tmp_path / "home"))
    assert code == BAD_INPUT and not printed
    assert len(complaint.splitlines()) == 1 and "did you mean 'training.steps'?" in complaint
    assert f"{spec}:" in complaint
    assert not modules & {"torch", "ray", "mlflow", "pandas"}
    assert not (tmp_path / "home").exists()


@pytest.mark.integration
def test_the_driver_of_a_sweep_leaves_torch_to_the_workers_and_mlflow_to_the_uploader():
    program = "import dsd_lab.runs.ray_engine, dsd_lab.cli.sweep, dsd_lab.store.uploader, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "ray" in modules and not modules & {"torch", "timm", "mlflow"}


@pytest.mark.parametrize("arguments", [["plan"], ["plan", "a.yaml", "--no-such"], ["fly"], ["sample", "x", "--n", "0"]])
def test_a_wrong_command_line_is_exit_code_2(arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == BAD_INPUT


# -- Specs that are shipped ----------------------------------------------------------------------------


def test_the_schema_beside_the_specs_is_the_one_that_the_program_prints():
    assert json.loads((ROOT / "experiments" / "spec.schema.json").read_text()) == spec_schema()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_a_shipped_spec_resolves_in_every_profile_and_says_why(path):
    names = load_sweep(path).spec.profiles
    for profile in (None, *names):
        plan = load_sweep(path, profile)
        assert plan.trials and len(plan.spec.why) > 40
        assert len({t.id for t in plan.trials}) == len(plan.trials)
    assert path.read_text().startswith("# yaml-language-server: $schema=spec.schema.json\n")


def test_the_collapse_ablation_has_seven_variants_three_seeds_and_compressed_normalised_latents():
    plan = load_sweep(ROOT / "experiments" / "collapse_ablation.yaml")
    variants = {t.variant for t in plan.trials}
    assert variants == {"control", "naive", "decoupled", "clean_joint", "dsd_online", "dsd", "detached"}
    assert plan.profile == "quick" and {t.seed for t in plan.trials} == {0, 1, 2} and len(plan.trials) == 21
    for trial in plan.trials:
        network, latent = trial.fields.network, trial.fields.latent
        numbers = (network.image_size // network.patch_size) ** 2 * network.latent_channels
        assert numbers < network.image_size**2
        assert latent.normaliser == "layernorm" and latent.decoder_noise == 0
    full = load_sweep(ROOT / "experiments" / "collapse_ablation.yaml", "full")
    assert len({t.seed for t in full.trials}) >= 6


# -- plan and train --------------------------------------------------------------------------------------


def test_plan_needs_neither_ray_nor_mlflow_and_answers_in_the_documented_json(tmp_path):
    spec = write_spec(tmp_path, {k: VARIANTS[k] for k in ("dsd", "control")}, seeds=[0, 1])
    modules, code, printed, _ = imported("plan", str(spec), "--json", "--home", str(tmp_path / "home"))
    assert code == OK and not modules & {"ray", "mlflow"}  # scikit-learn, which has the digits, imports pandas
    answer = json.loads(printed)
    assert answer["sweep"]["name"] == "tiny" and answer["sweep"]["trials"] == 4
    for trial in answer["trials"]:
        assert {"id", "variant", "point", "seed", "params", "status", "overrides"} <= trial.keys()
        params = trial["params"]
        assert set(params) == {"total", "encode", "denoise", "decode", "heads", "shared"}
        assert params["total"] == sum(params.values()) - params["total"] > 0
        assert trial["status"] == "pending" and trial["flops_per_image"] > 0 and trial["seconds"] > 0
    copies = {t["variant"]: set(t["copies"]) for t in answer["trials"]}
    assert copies == {"dsd": {"average", "target"}, "control": {"average"}}


def test_plan_tells_what_is_done_and_times_it_from_what_was_measured(tmp_path):
    spec, home = write_spec(tmp_path, seeds=[0, 1]), Home(tmp_path / "home")
    train_here(home, spec, "seeds=[0]")
    _, answer = run("plan", spec, "--home", home.root)
    assert {t["seed"]: t["status"] for t in answer["trials"]} == {0: "done", 1: "pending"}
    assert {t["seconds_source"] for t in answer["trials"]} == {"timed here"}
    assert {t["status"] for t in answer["trials"]} <= set(STATES)


@pytest.mark.integration
def test_plan_counts_and_measures_once_and_a_later_one_loads_no_torch(tmp_path):
    spec, home = write_spec(tmp_path, seeds=[0, 1]), Home(tmp_path / "home")
    home.prepare()
    balanced = ["plan", str(spec), "--json", "--home", str(home.root), "--set", "objective.balance=gradient_norm"]
    first, _, printed, _ = imported(*balanced)  # which no formula covers
    later, code, again, _ = imported(*balanced)
    assert "torch" in first and "torch" not in later and code == OK
    assert json.loads(again) == json.loads(printed), "the speed of this machine is measured once for a home folder"


def test_a_plan_of_very_many_trials_has_a_line_for_every_point(tmp_path, capsys):
    spec, home = write_spec(tmp_path, {"dsd": VARIANTS["dsd"]}, seeds=list(range(1001))), Home(tmp_path / "home")
    train_here(home, write_spec(tmp_path / "few", {"dsd": VARIANTS["dsd"]}), "seeds=[0]")
    assert main(["plan", str(spec), "--home", str(home.root)]) == OK
    (line,) = [text for text in capsys.readouterr().out.splitlines() if "1001 seeds" in text]
    assert "and 1000 more" in line and "1 done, 1000 pending" in line


def test_data_that_are_not_there_are_a_warning_in_plan_and_an_error_in_sweep(tmp_path, capsys):
    spec = write_spec(tmp_path, base={"data": {"source": "idx", "path": "nowhere"}})
    assert run("plan", spec, "--home", tmp_path / "home")[0] == OK
    assert "no such folder" in capsys.readouterr().err
    assert main(["sweep", str(spec), "--home", str(tmp_path / "home")]) == BAD_INPUT
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.integration
def test_train_needs_neither_ray_nor_mlflow_nor_pandas(tmp_path):
    spec, home = write_spec(tmp_path, seeds=[3]), tmp_path / "home"
    arguments = ["train", str(spec), "--variant", "dsd", "--seed", "3", "--no-tracking", "--json", "--home", str(home)]
    modules, code, printed, _ = imported(*arguments, blocked=("ray", "mlflow", "pandas", "matplotlib", "pyarrow"))
    answer = json.loads(printed)
    assert code == OK and answer["state"] == "done" and not modules & {"ray", "mlflow"}
    assert Home(home).trial(answer["id"]).state() == "done" and not (home / "mlflow.db").exists()


@pytest.mark.parametrize(("more", "complaint"), [(["--variant", "dsb"], "did you mean 'dsd'?"), (["--variant", "dsd", "--seed", "9"], "known: 0")])  # fmt: skip
def test_train_names_variants_and_seeds_that_are_not_there(tmp_path, capsys, more, complaint):
    assert main(["train", str(write_spec(tmp_path)), "--home", str(tmp_path / "home"), *more]) == BAD_INPUT
    assert complaint in capsys.readouterr().err


# -- What is asked about a home folder ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    home = Home(folder / "home")
    plan = train_here(home, write_spec(folder, {k: VARIANTS[k] for k in ("dsd", "control")}))
    return home, {t.variant: t.id for t in plan.trials}


def test_status_lists_every_sweep_with_the_states_of_its_trials(trained):
    home, ids = trained
    code, answer = run("status", "--home", home.root)
    assert code == OK and [s["sweep"] for s in answer["sweeps"]] == ["tiny"]
    assert answer["sweeps"][0]["states"] == {"done": 2}
    assert {t["id"]: (t["step"], t["steps"]) for t in answer["sweeps"][0]["trials"]} == dict.fromkeys(
        ids.values(), (12, 12)
    )


def shown_by_status(home, capsys, *spec):
    """The answer in JSON, and the printed lines."""
    code, answer = run("status", *spec, "--home", home.root)
    capsys.readouterr()
    assert code == OK and main(["status", *map(str, spec), "--home", str(home.root)]) == OK
    (sweep,) = answer["sweeps"]
    return sweep, capsys.readouterr().out.splitlines()


def test_status_shows_a_trial_of_train_with_its_settings_before_and_after_its_sweep_is_recorded(tmp_path, capsys):
    home, spec = Home(tmp_path / "home"), write_spec(tmp_path, {k: VARIANTS[k] for k in ("dsd", "control")})
    words = ("train", spec, "--variant", "dsd", "--no-tracking", "--home", home.root, "--set", "training.steps=2")
    code, trained = run(*words)
    assert code == OK
    for arguments in ((), (spec,)):
        sweep, lines = shown_by_status(home, capsys, *arguments)
        (row,) = [t for t in sweep["trials"] if t["id"] == trained["id"]]
        assert (row["name"], row["state"], row["step"], row["steps"]) == ("dsd s0", "done", 2, 2)
        assert sweep["set"] == ["training.steps=2"] and lines[0].startswith("tiny (--set training.steps=2): ")
    home.write_manifest(manifest_of(load_sweep(spec)))  # as `sweep` records it
    for arguments in ((), (spec,)):
        sweep, lines = shown_by_status(home, capsys, *arguments)
        (row,) = [t for t in sweep["trials"] if t["id"] == trained["id"]]
        assert len(sweep["trials"]) == 3 and sweep["set"] == [] and lines[0].startswith("tiny: ")
        assert row["settings"] == {"training.steps": 2} and row["steps"] == 2
        assert row["name"] == "dsd s0 (trained singly, training.steps=2)"
        assert any(trained["id"] in line and row["name"] in line for line in lines)


@pytest.mark.slow
def test_a_killed_train_is_interrupted_at_once_and_status_still_shows_its_settings(tmp_path, capsys):
    home, spec = Home(tmp_path / "home"), write_spec(tmp_path, base=LONG)
    home.prepare()
    home.write_manifest(manifest_of(load_sweep(spec)))
    at = ("--no-tracking", "--home", home.root, "--set", "optimiser.lr=2e-3")
    process = start("train", spec, "--variant", "dsd", *at)

    def of_train():
        rows = shown_by_status(home, capsys)[0]["trials"]
        return next((row for row in rows if row.get("settings") == {"optimiser.lr": 2e-3}), None)

    row = wait_until(lambda: (found := of_train()) and running(home, found["id"], 10) and found, "it trains", process)
    assert of_train()["state"] == "running"
    process.kill()
    process.wait()
    wait_until(lambda: of_train()["state"] != "running", "the kernel frees its lock")
    sweep, lines = shown_by_status(home, capsys)
    assert sweep["states"] == {"pending": 1, "interrupted": 1}
    (line,) = [line for line in lines if row["id"] in line]
    assert "optimiser.lr=0.002" in line and "interrupted" in line and "running" not in line
    answer = run("logs", row["id"], "--home", home.root)[1]
    assert answer["state"] == "interrupted"


@pytest.mark.parametrize("verb", ["plan", "status"])
def test_a_row_is_a_line_in_a_file_however_long_it_is(verb, tmp_path, capsys):
    name = "a_variant_whose_name_alone_is_nearly_as_wide_as_a_terminal"
    changes = {"objective": {"target": "live", "output": "velocity", "loss_space": "velocity", "reconstruction": "l1"}}
    changes |= {"auxiliary": {"alignment": 0.5, "representation": 0.1, "classification": 0.1}, "labels": {"drop": 0.2}}
    plan = load_sweep(spec := write_spec(tmp_path, {name: changes | {"training": {"weight_ema": 0.9}}}))
    home = Home(tmp_path / "home")
    home.prepare()
    home.write_manifest(manifest_of(plan))
    assert main([verb, *([str(spec)] if verb == "plan" else []), "--home", str(home.root)]) == OK
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if plan.trials[0].id in line]
    assert name in row and "pending" in row and (verb == "plan" or row.endswith("0/12"))
    assert verb == "status" or any("weight_ema=0.9" in line for line in lines)
    assert verb == "status" or all(len(line) <= 100 for line in lines if line not in (row, lines[lines.index(row) - 1]))


def test_logs_reads_files_only_and_imports_nothing_heavy(trained):
    home, ids = trained
    modules, code, printed, _ = imported("logs", ids["dsd"], "--json", "--home", str(home.root))
    assert code == OK and json.loads(printed)["name"] == "dsd s0"
    assert not modules & {"torch", "ray", "mlflow", "pandas"}


def test_sample_writes_the_asked_number_of_images_of_the_asked_class_and_a_grid(trained, tmp_path):
    home, ids = trained
    code, answer = run(
        "sample", ids["dsd"][:6], "--n", 3, "--class", 4, "--steps", 2, "--out", tmp_path, "--home", home.root
    )
    assert code == OK and answer
    assert sorted(pictures(tmp_path)) == [*(f"{i:05d}-class4.png" for i in range(3)), "grid.png"]
    assert [p.name for p in tmp_path.glob("*.png")] == ["grid.png"]  # apart from the samples


def test_sample_leaves_no_earlier_samples_among_new_ones_and_touches_no_pictures_of_others(trained, tmp_path, capsys):
    home, ids = trained
    out = tmp_path / "out"
    given = ("sample", ids["dsd"], "--steps", 1, "--out", out, "--home", home.root)
    for more in (("--n", 3), ("--n", 2, "--class", 4)):
        assert run(*given, *more)[0] == OK
    assert sorted(pictures(out)) == ["00000-class4.png", "00001-class4.png", "grid.png"]
    (out / "images" / "mine.png").write_text("mine")
    before = pictures(out)
    assert main([*map(str, given), "--n", "1"]) == BAD_INPUT
    assert "images/mine.png would lie among the new files" in capsys.readouterr().err and pictures(out) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is on this machine")
def test_a_trial_of_a_gpu_is_sampled_on_the_cpu_where_there_is_none_and_says_so(trained, tmp_path, monkeypatch, capsys):
    home, ids = trained
    described = TrialFolder.description

    def on_gpu(folder):
        found = described(folder)
        return found.changed(fields=found.fields | {"resources": {"gpus": 1.0}})

    monkeypatch.setattr(TrialFolder, "description", on_gpu)
    assert run("sample", ids["dsd"], "--n", 1, "--steps", 1, "--out", tmp_path, "--home", home.root)[0] == OK
    assert capsys.readouterr().err == "dsd-lab: no GPU is visible: sampling on the CPU\n"
    assert (tmp_path / "grid.png").exists()


def pictures(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*.png")}


@pytest.mark.integration
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sample_draws_with_every_sampler_and_each_option_changes_the_pictures(trained, tmp_path, sampler):
    home, ids = trained

    def drawn(name, *more):
        given = ("sample", ids["dsd"], "--n", 2, "--out", tmp_path / name, "--home", home.root, "--sampler", sampler)
        assert run(*given, "--steps", 3, *more)[0] == OK
        return pictures(tmp_path / name)

    plain = drawn("plain")
    assert set(plain) == {"00000-class0.png", "00001-class1.png", "grid.png"} and plain == drawn("again")
    assert plain["grid.png"] != drawn("guided", "--guidance", 40)["grid.png"]
    assert plain["grid.png"] != drawn("reseeded", "--seed", 1)["grid.png"]
    assert plain["grid.png"] != drawn("labelled", "--class", 7)["grid.png"]


@pytest.mark.parametrize(
    ("which", "more", "complaint"),
    [
        ("control", [], "no denoiser"),
        ("dsd", ["--class", "10"], "classes 0 to 9"),
        ("nothing", [], "no such trial"),
    ],
)
def test_sample_says_what_it_cannot_draw(trained, capsys, which, more, complaint):
    home, ids = trained
    trial = ids.get(which, "ffffffffffff")
    assert main(["sample", trial, *more, "--home", str(home.root)]) == BAD_INPUT
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["report"], ["report", "tinny"], ["ui"]])
def test_verbs_that_need_a_sweep_say_so_in_an_empty_home(tmp_path, capsys, arguments):
    assert main([*arguments, "--home", str(tmp_path)]) == BAD_INPUT
    assert "run `dsd-lab sweep SPEC` first" in capsys.readouterr().err


def test_the_next_free_port_is_taken_where_the_usual_one_is_not_free():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with listening(port) as found:
            assert port < found.getsockname()[1] <= port + 100
