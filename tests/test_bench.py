"""`dsd-lab bench`: what it measures and adds up, what `plan` makes of it. No time is asserted."""

import json

import pytest
import torch
from picturing import pictures, write_folder
from sweeping import VARIANTS, imported, run, write_spec
from test_benchmarks import MANY

from dsd_lab.bench import reading
from dsd_lab.bench.summary import shares
from dsd_lab.cli.main import main
from dsd_lab.core.data import load_data
from dsd_lab.core.training.events import Checkpointed, Drew, Logged, Probed
from dsd_lab.core.training.trainer import Trainer
from dsd_lab.errors import BAD_INPUT, NO_RESOURCES, OK
from dsd_lab.files.locks import locked
from dsd_lab.home.home import Home
from dsd_lab.home.measurement_records import Events, Figure
from dsd_lab.planning.flops import count_shape
from dsd_lab.planning.measured import (
    EVENTS,
    benched_efficiency,
    benched_seconds,
    cpu_name,
    event_counts,
    is_gpu,
    machine_ceiling,
    remember_figure,
)
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.trial import Trial

QUICK = ("--steps", 2, "--repeats", 2)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    return load_data(Trial().data)


@pytest.fixture(scope="module")
def benched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    spec = write_spec(folder, {name: MANY[name] for name in ("dsd", "phases")}, seeds=[0, 1])
    code, answer = run("bench", spec, *QUICK, "--home", folder / "home")
    assert code == OK
    return spec, Home(folder / "home"), answer


# -- The answer -------------------------------------------------------------------------------------------


def test_the_answer_has_every_figure_with_its_spread_and_one_trial_for_every_shape(benched):
    _, _, answer = benched
    assert [t["name"] for t in answer["trials"]] == ["dsd", "phases"]
    for trial in answer["trials"]:
        spreads = [trial[k] for k in ("step_seconds", "images_per_second", "utilisation", "ceiling_flops_per_second")]
        spreads += [trial["events"][k]["made"] for k in (*EVENTS, "status")]
        for spread in spreads:
            assert set(spread) == {"median", "min", "max"}
            assert 0 <= spread["min"] <= spread["median"] <= spread["max"] < float("inf")
        assert trial["memory"]["bytes"] > trial["params"] * 4
        assert trial["batch_size"] == 8 and trial["device"] == cpu_name()
        assert sum(trial["shares"].values()) == pytest.approx(1) and set(trial["shares"]) == {
            "steps", "probes", "images", "checkpoints", "events",
        }  # fmt: skip
        fastest = trial["batch_size"] / trial["step_seconds"]["min"]
        assert trial["images_per_second"]["max"] == pytest.approx(fastest)
    assert answer["provenance"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert answer["repeats"] == 2


def test_flops_are_those_that_are_counted_for_the_variant(benched):
    spec, _, answer = benched
    plan = load_sweep(spec)
    for trial in answer["trials"]:
        fields = next(t.fields for t in plan.trials if t.variant == trial["variant"])
        counted = count_shape(fields, 1, 10)
        assert trial["flops_per_image"] == counted["flops_per_image"] and trial["params"] == counted["params"]["total"]
        assert trial["flops_by_role"] == counted["role_flops"]


@pytest.mark.integration
def test_processes_are_compared_with_one_by_turns_and_plan_takes_their_efficiency(tmp_path, capsys):
    spec = write_spec(tmp_path, {"dsd": MANY["dsd"]}, seeds=[0])
    where = ("--home", tmp_path / "home")
    code, answer = run("bench", spec, *QUICK, "--processes", 2, *where)
    assert code == OK
    (found,) = (trial["together"] for trial in answer["trials"])
    assert found["processes"] == 2
    for name in ("images_per_second", "images_per_second_of_one", "efficiency", "small_batches", "exchange"):
        assert 0 < found[name]["min"] <= found[name]["median"] <= found[name]["max"] < float("inf"), name
    code, alone = run("plan", spec, *where)
    code, planned = run("plan", spec, "--set", "base.resources.processes=2", *where)
    assert code == OK
    (one,), (two,) = alone["trials"], planned["trials"]
    assert two["efficiency"] == found["efficiency"]["median"] and one["efficiency"] is None
    assert two["seconds"] == pytest.approx(one["seconds"] / (2 * two["efficiency"]), rel=1e-2)
    code, _ = run("bench", spec, *QUICK, "--processes", 9, *where)
    assert code == BAD_INPUT and "a batch of 'dsd s0' has 8 images" in capsys.readouterr().err


def test_tables_for_people_show_every_trial_and_target(tmp_path, capsys):
    spec = write_spec(tmp_path, {name: VARIANTS[name] for name in ("dsd", "control")})
    arguments = ["bench", str(spec), "--home", str(tmp_path / "home"), "--steps", "1", "--repeats", "1"]
    assert main([*arguments, "--variant", "control"]) == OK
    shown = capsys.readouterr().out
    assert "control" in shown and "dsd " not in shown.replace("dsd_lab", "").replace("dsd-lab", "")
    for word in ("images/s", "MFU", "checkpoints"):
        assert word in shown
    assert "…" not in shown, "a cell was cut"


@pytest.mark.integration
def test_a_size_and_a_spec_without_its_images_run_on_random_ones(tmp_path):
    spec = write_spec(tmp_path, base={"data": {"source": "idx", "path": "nowhere"}})
    few = ("--steps", 1, "--repeats", 1, "--home", tmp_path / "home", "--random-images")
    code, answer = run("bench", "nano8", spec, "--set", "training.batch_size=4", *few)
    assert code == OK and [t["images"] for t in answer["trials"]] == ["random", "random"]
    assert [t["spec"] for t in answer["trials"]] == ["nano8", str(spec)]
    assert answer["trials"][0]["size"] == "nano8" and answer["trials"][0]["batch_size"] == 4


# -- What plan makes of it -----------------------------------------------------------------------------------


def test_plan_takes_the_time_of_a_shape_that_was_measured_and_says_so(benched, capsys):
    spec, home, answer = benched
    code, planned = run("plan", spec, "--home", home.root, "--set", "variants.other={objective: {output: velocity}}")
    assert code == OK
    sources = {t["variant"]: t["seconds_source"] for t in planned["trials"]}
    assert sources["dsd"] == sources["phases"] == f"from dsd-lab bench on {cpu_name()}"
    assert sources["other"] == "from FLOPs"
    seconds = {t["variant"]: t["seconds"] for t in planned["trials"]}
    for trial in answer["trials"]:
        assert seconds[trial["name"]] == pytest.approx(trial["trial_seconds"], abs=1e-3)
    assert main(["plan", str(spec), "--home", str(home.root)]) == OK
    assert f"4 of 4 trials from dsd-lab bench on {cpu_name()}" in " ".join(capsys.readouterr().out.split())


def test_a_figure_counts_for_its_shape_threads_and_device_alone(tmp_path):
    home, trial = Home(tmp_path), Trial()
    events = Events(**dict.fromkeys(EVENTS, 0.5))
    remember_figure(home, trial, cpu_name(), Figure(step=2.0, events=events))
    seconds, device = benched_seconds(home, trial, "h100")
    assert device == cpu_name()
    assert seconds == 2.0 * trial.training.steps + 0.5 * sum(event_counts(trial).values())
    threads = trial.resources.model_copy(update={"threads": 2})
    gpus = trial.resources.model_copy(update={"gpus": 1.0})
    batch = trial.training.model_copy(update={"batch_size": 8})
    longer = trial.training.model_copy(update={"steps": 2 * trial.training.steps})
    assert benched_seconds(home, trial.model_copy(update={"resources": threads}), "h100") is None
    assert benched_seconds(home, trial.model_copy(update={"resources": gpus}), "h100") is None
    assert benched_seconds(home, trial.model_copy(update={"training": batch}), "h100") is None
    assert benched_seconds(home, trial.model_copy(update={"training": longer}), "h100")[0] > 1.9 * seconds
    on_gpu = trial.model_copy(update={"resources": gpus})
    remember_figure(home, on_gpu, "NVIDIA H100 80GB HBM3", Figure(step=1.0, events=events))
    assert benched_seconds(home, on_gpu, "h100")[1] == "NVIDIA H100 80GB HBM3"
    assert benched_seconds(home, on_gpu, "h200") is None
    assert benched_seconds(home, trial, "h100")[0] == seconds
    figure = Figure(step=1.0, events=events, efficiency={"4": 0.5})
    remember_figure(home, trial, cpu_name(), figure)
    four = trial.resources.model_copy(update={"processes": 4})
    assert benched_efficiency(home, trial, "h100") is None
    assert benched_efficiency(home, trial.model_copy(update={"resources": four}), "h100") == 0.5
    path = home.cache / "benchmarks.json"
    whole = json.loads(path.read_text())
    (key,) = whole.keys() - {"format"}
    for name, value in (("step", -1.0), ("step", "2"), ("events", {"record": 0.5}), ("efficiency", {"4": None})):
        path.write_text(json.dumps(whole | {key: {cpu_name(): whole[key][cpu_name()] | {name: value}}}))
        assert benched_seconds(home, trial, "h100") is benched_efficiency(home, trial, "h100") is None, (name, value)
    path.write_text("torn")
    assert benched_seconds(home, trial, "h100") is None
    remember_figure(home, trial, cpu_name(), figure)
    assert benched_seconds(home, trial, "h100")[1] == cpu_name()
    del whole["format"]  # as earlier versions wrote it
    path.write_text(json.dumps(whole))
    assert benched_seconds(home, trial, "h100")[1] == cpu_name()


@pytest.mark.parametrize("content", ["torn", "{}", '{"KEY": "fast"}', '{"KEY": -1.0}', '{"KEY": 1e999}', "[1]"])
def test_a_damaged_ceiling_is_measured_again_and_a_good_one_is_not(tmp_path, monkeypatch, content):
    home, key = Home(tmp_path), f"{cpu_name()}, 3 threads"
    home.cache.mkdir()
    path, measured = home.cache / "ceilings.json", []
    monkeypatch.setattr("dsd_lab.planning.measured.matrix_ceiling", lambda threads: measured.append(threads) or 5e9)
    path.write_text(content.replace("KEY", key))
    assert machine_ceiling(home, 3) == machine_ceiling(home, 3) == 5e9 and measured == [3]
    assert json.loads(path.read_text())[key] == 5e9
    path.write_text(json.dumps({key: 7e9, "another machine": 1e9}))
    assert machine_ceiling(home, 3) == 7e9 and machine_ceiling(home, 4) == 5e9 and measured == [3, 4]
    assert json.loads(path.read_text())["another machine"] == 1e9


@pytest.mark.parametrize(
    ("device", "name"),
    [("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA GeForce RTX 4090", "rtx4090"), ("NVIDIA A100-SXM4-80GB", "a100")],
)
def test_a_drivers_name_of_a_gpu_is_known_and_no_other_is_taken_for_it(device, name):
    assert is_gpu(device, name)
    assert not any(is_gpu(device, other) for other in ("l4", "l40s", "h200", "b200"))
    assert is_gpu("NVIDIA L40S", "l40s") and not is_gpu("NVIDIA L40S", "l4")


def test_a_whole_trial_has_the_events_that_its_trainer_tells(digits, tmp_path):
    for steps in (1, 6, 7, 12):
        trial = load_sweep(write_spec(tmp_path), sets=[f"training.steps={steps}"]).trials[0].fields
        kinds = {"record": Logged, "probe": Probed, "images": Drew, "checkpoint": Checkpointed}
        told = list(Trainer(trial, 0, digits, CPU, tmp_path / str(steps)).run())
        assert event_counts(trial) == {name: sum(type(e) is kind for e in told) for name, kind in kinds.items()}


def test_shares_are_counts_times_times():
    trial = Trial()
    once = {"made": {"median": 0.1}, "told": {"median": 0.0}}
    figures = {
        "step_seconds": {"median": 0.01},
        "events": dict.fromkeys(EVENTS, once) | {"status": {"told": {"median": 0.0}}},
    }
    counts, found = event_counts(trial), shares(trial, figures)
    whole = 0.01 * trial.training.steps + 0.1 * sum(counts.values())
    assert found["probes"] == pytest.approx(0.1 * counts["probe"] / whole)
    assert found["checkpoints"] == pytest.approx(0.1 * counts["checkpoint"] / whole)


# -- What it refuses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nano9"], "did you mean 'nano8'?"),
        (["none.yaml"], "no such file"),
        (["nano8", "--profile", "full"], "is a size"),
        (["SPEC", "--variant", "dsb"], "did you mean 'dsd'?"),
        (["SPEC", "--set", "data={source: idx, path: nowhere}"], "--random-images"),
        (["SPEC", "--set", "training.stpes=1"], "training.steps"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_before_torch_is_imported(arguments, complaint, tmp_path):
    spec, home = write_spec(tmp_path), tmp_path / "home"
    arguments = [str(spec) if a == "SPEC" else a for a in arguments]
    modules, code, printed, said = imported("bench", *arguments, "--home", str(home))
    assert code == BAD_INPUT and not printed and len(said.splitlines()) == 1 and complaint in said
    assert not modules & {"torch", "ray", "mlflow", "pandas"} and not home.exists()


@pytest.mark.parametrize("option", [("--repeats", "0"), ("--steps", "-1"), ("--repeats", "many")])
def test_a_number_that_is_none_is_exit_code_2(option):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "nano8", *option])
    assert ended.value.code == BAD_INPUT


def test_a_trial_that_diverges_at_once_and_a_gpu_that_is_not_there_are_refused(tmp_path, capsys):
    spec = write_spec(
        tmp_path, {"wild": {"optimiser": {"lr": 10.0, "weight_decay": 10.0, "clip": 1e6, "schedule": "constant"}}}
    )
    few = ["--steps", "40", "--repeats", "1", "--home", str(tmp_path / "home")]
    assert main(["bench", str(spec), "--set", "training.steps=1000", *few]) == BAD_INPUT
    assert "is not finite; a trial that diverges at once cannot be timed" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main(["bench", "nano8", "--set", "resources.gpus=1", *few]) == NO_RESOURCES


def test_two_at_once_are_refused_and_what_a_killed_one_left_is_freed(tmp_path, capsys):
    spec, home = write_spec(tmp_path), Home(tmp_path / "home")
    home.prepare()
    left = home.cache / "bench" / "bench-a1b2c3_4"
    left.mkdir(parents=True)
    (left / "file").write_text("half a checkpoint")
    few = ["bench", str(spec), "--steps", "1", "--repeats", "1", "--home", str(home.root)]
    with locked(home.cache / "bench" / "lock"):
        assert main(few) == BAD_INPUT
        assert "another `dsd-lab bench` is running there" in capsys.readouterr().err
        assert run("gc", "--home", home.root)[1]["items"] == []
    assert [row["path"] for row in run("gc", "--home", home.root)[1]["items"]] == [str(left)]
    assert main(few) == OK and not left.exists()
    assert run("gc", "--home", home.root)[1]["items"] == []


@pytest.mark.integration
def test_it_needs_neither_ray_nor_mlflow(tmp_path):
    spec = write_spec(tmp_path)
    arguments = ["bench", str(spec), "--steps", "1", "--repeats", "1", "--json", "--home", str(tmp_path / "home")]
    _, code, printed, _ = imported(*arguments, blocked=("ray", "mlflow"))
    answer = json.loads(printed)
    assert code == OK and answer["trials"]


# -- Reading alone ------------------------------------------------------------------------------------------


def test_reading_is_timed_for_the_same_images_in_every_form_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reading, "_SECONDS", 0.01)
    write_folder(tmp_path / "set", [*pictures(20, size=9), b"no image"], [i % 2 for i in range(21)])
    words = ["--set", "data.size=6", "--set", "data.damaged=skip", "--repeats", "2", "--home", tmp_path / "home"]
    code, answer = run("bench", "--data", tmp_path / "set", *words)
    (found,) = answer["reading"]
    assert code == OK and found["data"] == "set"
    assert [form["form"] for form in found["forms"]] == ["folder", "parquet", "prepared", "prepared, JPEG"]
    for form in found["forms"]:
        assert form["shape"] == [3, 6, 6] and set(form["images_per_second"]) == {"1", "2", "4"}
        assert all(0 < speed["min"] <= speed["median"] <= speed["max"] for speed in form["images_per_second"].values())
    assert not list((tmp_path / "home" / "cache" / "bench").glob("bench-*"))
    assert main(["bench", "--data", str(tmp_path / "set"), *map(str, words)]) == OK
    told = capsys.readouterr().out
    assert "images of 3 x 6 x 6" in told and "2 threads" in told and "prepared, JPEG" in told
    assert main(["bench", "--data", "collapse_ablation", "--home", str(tmp_path / "home")]) == BAD_INPUT
    assert "'digits' is read once and stays in memory" in capsys.readouterr().err
