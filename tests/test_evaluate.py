"""`dsd-lab evaluate` and `fetch-weights`, lists in a spec's `evaluate`, and the files that evaluations name."""

import hashlib
import http.server
import json
import threading

import numpy as np
import pytest
from sweeping import VARIANTS, imported, run, train_here, write_spec
from test_phases import LATENT_MODEL

from dsd_lab.cli.main import main
from dsd_lab.errors import BAD_INPUT, NO_RESOURCES, OK, TRIALS_FAILED, BadInput
from dsd_lab.evaluation import pretrained as weights
from dsd_lab.evaluation.pretrained import WEIGHTS, weights_path
from dsd_lab.home.home import Home
from dsd_lab.report.content import Content
from dsd_lab.report.groups import columns_of
from dsd_lab.report.results import results_of
from dsd_lab.specs.evaluate_list import expanded, of_trial
from dsd_lab.specs.identity import evaluation_id
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.protocols import PROTOCOLS
from dsd_lab.specs.trial import Generation
from dsd_lab.store.mlflow_store import Store

QUICK = ("--steps", 1, "--images", 20, "--metrics", "fid")


def entries(folder, *evaluate, **keys):
    return load_sweep(write_spec(folder, evaluate=list(evaluate), **keys)).spec.evaluate


# -- Lists ----------------------------------------------------------------------------------------------


def test_lists_of_guidance_and_weights_expand_to_one_evaluation_each(tmp_path):
    found = entries(tmp_path, {"steps": 9}, {"guidance": [1.0, 1.5], "weights": ["ema", "trained"], "images": 50})
    assert [(e.steps, e.guidance, e.weights) for e in found] == [
        (9, 1.0, "ema"),
        *((25, g, w) for g in (1.0, 1.5) for w in ("ema", "trained")),
    ]
    assert len({evaluation_id(e) for e in found}) == 5
    assert found[1:2] == entries(tmp_path, {"images": 50}) == entries(tmp_path, {"images": 50, "guidance": [1.0]})


@pytest.mark.parametrize("name", ["adm", "jit", "repa"])
def test_a_protocol_is_the_settings_that_it_stands_for(tmp_path, name):
    np.savez(tmp_path / "a.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    given = {"guidance": 1.5, "reference": "a.npz"}
    (found,) = entries(tmp_path, {"protocol": name} | given)
    spelled = {**PROTOCOLS[name].fixed, "metrics": list(PROTOCOLS[name].metrics)}
    assert found.images == 50_000 and found.extractor == "inception" and found.measured[0] == "fid"
    assert evaluation_id(found) == evaluation_id(entries(tmp_path, spelled | given)[0])
    assert Generation.model_validate(found.model_dump()) == found  # as records are read
    assert (found.sampler, found.steps) == (("heun", 50) if name == "jit" else ("sde", 250))


def test_kept_checkpoints_are_one_evaluation_each(tmp_path):
    kept = {"observation": {"checkpoint_every": 4, "keep_every": 4}}
    plan = load_sweep(
        write_spec(tmp_path, base=kept, evaluate=[{"checkpoint": "all"}, {"checkpoint": [8, 12], "steps": 3}])
    )
    fields = plan.trials[0].fields
    assert [(e.checkpoint, e.steps) for e in of_trial(plan.spec.evaluate, fields)] == [
        *((step, 25) for step in (4, 8, "last")),
        *((step, 3) for step in (8, "last")),
    ]
    assert [e.checkpoint for e in of_trial(plan.spec.evaluate[:1], fields, [8, 10, 12])] == [8, "last"]


def test_a_list_from_the_command_line_or_a_profile_expands_too(tmp_path):
    spec = write_spec(tmp_path, profiles={"wide": {"evaluate": [{"guidance": [1.0, 2.0, 3.0]}]}})
    assert len(load_sweep(spec, "wide").spec.evaluate) == 3
    assert len(load_sweep(spec, sets=["evaluate=[{guidance: [1, 4], weights: [ema, trained]}]"]).spec.evaluate) == 4


@pytest.mark.parametrize(
    ("evaluate", "complaint"),
    [
        ([{"guidance": []}], "evaluate.0.guidance: [] is not valid"),
        ([{"guidance": [1.0, "two"]}], "'two' is not valid; it must be a number"),
        ([{"guidance": [1.0, 101.0]}], "101.0 is not valid; it must be at most 100"),
        ([{"guidance": [1.0] * 40, "weights": ["ema"] * 40}], "more than 1,000 evaluations"),
        ([{"guidance_interval": [0.5, 0.5], "guidance": 2.0}], "is not [lo, hi] with 0 <= lo < hi <= 1"),
        ([{"metrics": ["fid", "fud"]}], "'fud' is not valid"),
        ([{"metrics": ["label_accuracy"], "extractor": "inception"}], "label_accuracy needs `extractor: indomain`"),
        ([{"inception_weights": "a.pth"}], "belongs to `extractor: inception`"),
        ([{"dinov2_weights": "a.pth"}], "belongs to `extractor: dinov2`"),
        ([{"metrics": ["sfid"]}], "sfid needs `extractor: inception`, not indomain"),
        ([{"metrics": ["is"], "extractor": "dinov2"}], "is needs `extractor: indomain or inception`"),
        ([{"reference": "a.npz", "metrics": ["kid"]}], "only `fid` and `sfid` are measured against statistics"),
        ([{"protocol": "jit"}], "measures against jit_in256_stats.npz"),
        (
            [{"protocol": "repa", "reference": "a.npz", "steps": 50}],
            "steps: protocol 'repa' is measured with steps: 250",
        ),
        ([{"protocol": "edm"}], "'edm' is not valid"),
        ([{"checkpoint": 0}], "is not between 1"),
        ([{"checkpoint": 6}], "keeps only the last, 12: set observation.keep_every"),
        ([{"checkpoint": [12, "all"]}], "keeps only the last"),
        ([{"reference_sha256": "0" * 64}], "belongs to a `reference`"),
    ],
)
def test_evaluations_that_cannot_be_made_are_refused_with_their_line(tmp_path, evaluate, complaint):
    with pytest.raises(BadInput) as refused:
        entries(tmp_path, *evaluate)
    message = str(refused.value)
    assert complaint in message and "spec.yaml:" in message and len(message.splitlines()) == 1


def test_a_document_without_lists_stays_as_it_is(tmp_path):
    from dsd_lab.specs.inheritance import read_with_parents

    document = read_with_parents(write_spec(tmp_path, evaluate=[{"steps": 3}, {"images": "all"}]))
    assert expanded(document).values == document.values and expanded(document).marks == document.marks


# -- Files ----------------------------------------------------------------------------------------------


def test_a_reference_is_identified_by_its_content_wherever_it_lies(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / f"{name}.npz", mu=np.zeros(64), sigma=np.eye(64))
    one, two = (entries(tmp_path / n, {"reference": f"{n}.npz"})[0] for n in ("a", "b"))
    assert one.reference == str(tmp_path / "a" / "a.npz") and evaluation_id(one) == evaluation_id(two)
    assert one.reference_sha256 == hashlib.sha256((tmp_path / "a" / "a.npz").read_bytes()).hexdigest()
    np.savez(tmp_path / "b" / "b.npz", mu=np.ones(64), sigma=np.eye(64))
    assert evaluation_id(entries(tmp_path / "b", {"reference": "b.npz"})[0]) != evaluation_id(one)
    with pytest.raises(BadInput, match="has the SHA-256"):
        entries(tmp_path / "b", {"reference": "b.npz", "reference_sha256": one.reference_sha256})


@pytest.mark.parametrize(
    ("evaluate", "complaint"),
    [
        ({"extractor": "inception"}, "fetch-weights inception"),
        ({"extractor": "dinov2"}, "fetch-weights dinov2"),
        ({"reference": "nowhere.npz"}, "nowhere.npz: no such file"),
    ],
)
def test_files_that_are_not_there_are_an_error_before_training_and_a_warning_in_plan(
    tmp_path, capsys, evaluate, complaint
):
    spec, home = write_spec(tmp_path, evaluate=[evaluate]), tmp_path / "home"
    for verb in (["sweep"], ["train", "--variant", "dsd"]):
        assert main([*verb, str(spec), "--home", str(home)]) == BAD_INPUT
        said = capsys.readouterr().err
        assert complaint in said and len(said.splitlines()) == 1 and not home.exists()
    assert run("plan", spec, "--home", home)[0] == OK
    said = capsys.readouterr().err
    assert f"warning: {home if 'fetch' in complaint else tmp_path}" in said and complaint in said


def test_missing_weights_are_found_before_anything_heavy_is_imported(tmp_path):
    spec = write_spec(tmp_path, evaluate=[{"extractor": "inception"}])
    modules, code, _, _ = imported("sweep", str(spec), "--home", str(tmp_path / "home"))
    assert code == BAD_INPUT and not modules & {"torch", "ray", "mlflow", "pandas"}


# -- evaluate -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    home = Home(folder / "home")
    plan = train_here(home, write_spec(folder, {k: VARIANTS[k] for k in ("dsd", "control")}, seeds=[0, 1]))
    return home, {(t.variant, t.seed): t.id for t in plan.trials}


def evaluate(home, *given):
    return run("evaluate", *given, "--home", home.root)


def test_finished_trials_are_measured_again_without_training_and_the_store_hears_of_it(trained, tmp_path):
    home, ids = trained
    ours = [ids["dsd", 0], ids["dsd", 1]]
    before = {i: (home.trial(i).spool.read_bytes(), home.trial(i).status()) for i in ours}
    code, answer = evaluate(home, *ours, "--guidance", 1, "--guidance", 3, "--sampler", "euler", *QUICK)
    assert code == OK and [len(t["new"]) for t in answer["trials"]] == [2, 2]
    assert {i: (home.trial(i).spool.read_bytes(), home.trial(i).status()) for i in ours} == before
    names = {name for t in answer["trials"] for e in t["evaluations"].values() for name in e["metrics"]}
    wanted = {f"fid/indomain-n20-cfg{g}-euler1-balanced-ema0.99" for g in (1, 3)}
    assert wanted <= names
    (manifest,) = home.manifests().values()
    rows = {t.entry.id: t.metrics for t in Store(home).read(manifest, tmp_path)}
    assert all(wanted <= rows[i].keys() for i in ours)
    assert home.trial(ours[0]).evaluating() is None


def test_what_was_measured_is_not_measured_again(trained):
    home, ids = trained
    given = (ids["dsd", 0][:8], "--weights", "trained", *QUICK, "--no-tracking")
    assert len(evaluate(home, *given)[1]["trials"][0]["new"]) == 1
    again = evaluate(home, *given)[1]["trials"][0]
    assert again["new"] == [] and len(again["evaluations"]) == 1


def test_all_entries_of_a_spec_are_made(trained, tmp_path):
    home, ids = trained
    entries = [{"sampler": "dopri5", "rtol": 0.1, "atol": 0.1, "images": 20, "metrics": ["fid"]}, {"metrics": ["psnr"]}]
    spec = write_spec(tmp_path, evaluate=entries)
    code, answer = evaluate(home, ids["dsd", 1], ids["control", 0], "--spec", spec, "--no-tracking")
    assert code == OK
    metrics = [{n for e in t["evaluations"].values() for n in e["metrics"]} for t in answer["trials"]]
    assert "psnr/perimage-n395-ema0.99" in metrics[0] & metrics[1]
    assert "fid/indomain-n20-cfg1-dopri5rtol0.1atol0.1-balanced-ema0.99" in metrics[0] - metrics[1]


def test_a_reference_is_given_by_its_file(trained, tmp_path, monkeypatch):
    home, ids = trained
    np.savez(tmp_path / "own.npz", mu=np.zeros(64), sigma=np.eye(64))
    monkeypatch.chdir(tmp_path)
    code, answer = evaluate(home, ids["dsd", 0], "--reference", "own.npz", *QUICK, "--no-tracking")
    digest = hashlib.sha256((tmp_path / "own.npz").read_bytes()).hexdigest()
    (found,) = answer["trials"][0]["evaluations"].values()
    assert code == OK and any(name.startswith(f"fid/indomain-ref{digest[:8]}-n20") for name in found["metrics"])


@pytest.mark.integration
def test_kept_checkpoints_are_measured_over_training_in_the_store_and_in_the_report(tmp_path):
    home, kept = Home(tmp_path / "home"), {"observation": {"checkpoint_every": 4, "keep_every": 4}}
    evaluate_entry = {"checkpoint": "all", "sampler": "euler", "steps": 1, "images": 20, "metrics": ["fid", "psnr"]}
    plan = train_here(home, write_spec(tmp_path, base=kept, evaluate=[evaluate_entry]))
    (trial,) = plan.trials
    found = {e.settings["checkpoint"]: e.metrics for e in home.trial(trial.id).evaluations().values()}
    name = "fid/indomain-n20-cfg1-euler1-balanced-ema0.99"
    assert set(found) == {4, 8, "last"} and name in found["last"]
    early = {step: found[step][f"over_training/{name}"] for step in (4, 8)}
    assert name not in found[4] and "over_training/psnr/perimage-n395-ema0.99" in found[4]
    assert "fid_floor/indomain-n395" in found[4] and len({*early.values(), found["last"][name]}) == 3
    store, (manifest,) = Store(home), home.manifests().values()
    store.sync(manifest)
    (stored,) = store.client.search_runs(["1"], "tags.`dsd.kind` = 'trial'")
    curve = store.client.get_metric_history(stored.info.run_id, f"over_training/{name}")
    assert {m.step: m.value for m in curve} == pytest.approx(early)
    results = results_of(store, manifest, tmp_path / "scratch")
    table = Content(manifest, results, plan.spec.report).tables["over_training"].frame
    values = table[table["metric"] == name].set_index("step")["mean"]
    assert values.to_dict() == pytest.approx({**early, 12: found["last"][name]})
    assert not any("over_training" in c.name for c in columns_of(results))
    assert run("evaluate", trial.id, "--checkpoint", 6, *QUICK, "--home", home.root)[0] == BAD_INPUT


def test_a_failing_evaluation_leaves_the_trial_finished(trained, monkeypatch):
    home, ids = trained
    with monkeypatch.context() as patch:
        patch.setattr("dsd_lab.runs.trial_evaluations.evaluate_generation", lambda *_: 1 / 0)
        code, answer = evaluate(home, ids["dsd", 0], "--steps", 3, "--no-tracking")
    assert code == TRIALS_FAILED and "ZeroDivisionError" in answer["trials"][0]["error"]
    assert home.trial(ids["dsd", 0]).state() == "done" and home.trial(ids["dsd", 0]).status().error is None


@pytest.mark.parametrize(
    ("which", "given", "complaint"),
    [
        ("control", ["--metrics", "fid"], "no denoiser"),
        ("nothing", [], "no such trial"),
        ("dsd", ["--guidance", "-1"], "--guidance"),
        ("dsd", ["--weights", "best"], "--weights"),
        ("dsd", ["--metrics", "fid,fud"], "--metrics"),
        ("dsd", ["--extractor", "inception"], "fetch-weights inception"),
        ("dsd", ["--reference", "nowhere.npz"], "no such file"),
        ("dsd", ["--profile", "quick"], "needs --spec"),
    ],
)
def test_evaluate_says_in_one_line_what_it_cannot_do(trained, capsys, which, given, complaint):
    home, ids = trained
    assert main(["evaluate", ids.get((which, 0), "ffff"), *given, "--home", str(home.root)]) == BAD_INPUT
    said = capsys.readouterr().err
    assert complaint in said and len(said.splitlines()) == 1


def test_options_beside_a_spec_are_refused(trained, tmp_path, capsys):
    home, ids = trained
    spec = write_spec(tmp_path, evaluate=[{}])
    given = ["evaluate", ids["dsd", 0], "--spec", str(spec), "--steps", "3", "--home", str(home.root)]
    assert main(given) == BAD_INPUT and "--steps: cannot be combined with --spec" in capsys.readouterr().err


# -- fetch-weights --------------------------------------------------------------------------------------

CONTENT = b"stand-in weights" * 1000


@pytest.fixture
def server(monkeypatch):
    """A server on this machine that has the stand-in weights, whose hash is pinned."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/weights.pth" else 404)
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, *_):
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    pin(monkeypatch, f"http://127.0.0.1:{served.server_port}/weights.pth")
    yield served
    served.shutdown()
    served.server_close()


def pin(monkeypatch, url, content=CONTENT):
    monkeypatch.setattr(weights, "STAND_IN", url, raising=False)
    row = weights.Weights(
        "weights.pth", hashlib.sha256(content).hexdigest(), "dsd_lab.evaluation.pretrained", "STAND_IN"
    )
    monkeypatch.setitem(WEIGHTS, "inception", row)


def left(home):
    folder = home.root / "weights"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_weights_are_downloaded_once_and_checked(server, tmp_path, monkeypatch):
    home = Home(tmp_path)
    code, answer = run("fetch-weights", "inception", "--home", tmp_path)
    path = weights_path("inception", home)
    assert code == OK and answer["weights"]["inception"]["path"] == str(path)
    assert path.read_bytes() == CONTENT and left(home) == ["weights.pth"]
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("downloaded again"))
    assert run("fetch-weights", "--home", tmp_path)[0] == OK


def test_something_else_than_the_pinned_weights_is_not_kept(server, tmp_path, monkeypatch, capsys):
    pin(monkeypatch, weights.STAND_IN, b"what was meant")
    assert main(["fetch-weights", "--json", "--home", str(tmp_path)]) == NO_RESOURCES
    assert "another SHA-256" in capsys.readouterr().err and left(Home(tmp_path)) == []


@pytest.mark.parametrize(("address", "reason"), [("http://127.0.0.1:9/x", "refused"), ("{}/gone", "HTTP 404")])
def test_a_download_that_fails_is_one_line_without_the_address_and_says_what_to_do(
    server, tmp_path, monkeypatch, capsys, address, reason
):
    secret = f"http://127.0.0.1:{server.server_port}/user:secret@"
    pin(monkeypatch, address.format(secret))
    assert main(["fetch-weights", "--json", "--home", str(tmp_path)]) == NO_RESOURCES
    said = capsys.readouterr().err
    assert reason in said and "secret" not in said and len(said.splitlines()) == 1
    assert str(weights_path("inception", Home(tmp_path))) in said and left(Home(tmp_path)) == []


def test_other_weights_in_the_place_of_the_pinned_ones_are_neither_used_nor_overwritten(server, tmp_path, capsys):
    path = weights_path("inception", Home(tmp_path))
    path.parent.mkdir()
    path.write_bytes(b"mine")
    assert main(["fetch-weights", "--json", "--home", str(tmp_path)]) == BAD_INPUT
    assert "has the SHA-256" in capsys.readouterr().err and path.read_bytes() == b"mine"


def test_weights_that_nobody_knows_are_refused(tmp_path, capsys):
    assert main(["fetch-weights", "incepton", "--home", str(tmp_path)]) == BAD_INPUT
    assert "did you mean 'inception'?" in capsys.readouterr().err


def test_how_far_an_evaluation_is_shows_only_while_a_process_works_on_it(tmp_path):
    folder = Home(tmp_path).trial("abc")
    with folder.lock():
        folder.say_evaluating("evaluation 1/2, 256/1,000 images")
        assert folder.evaluating() == "evaluation 1/2, 256/1,000 images"
    assert folder.evaluating() is None and json.loads((folder.root / "evaluating.json").read_text())
    folder.say_evaluating(None)
    assert not (folder.root / "evaluating.json").exists()


# -- Trials that are trained in stages ---------------------------------------------------------------------

STAGED = {
    "staged": {
        "objective": {"diffusion_weight": 0.0},
        "training": {"extra_ema_decays": [0.5], "phases": [LATENT_MODEL | {"start": 0.5}]},
    }
}


def test_a_staged_trial_has_a_denoiser_to_evaluate_though_its_first_stage_trains_none(home, tmp_path):
    evaluate = [{"steps": 1, "images": 20, "metrics": ["fid"], "weights": ["ema", "ema:0.5"]}]
    (trial,) = train_here(home, write_spec(tmp_path, STAGED, evaluate=evaluate)).trials
    found = [e.metrics for e in home.trial(trial.id).evaluations().values()]
    names = {name for metrics in found for name in metrics if name.startswith("fid/")}
    assert len(found) == 2 and {name.rpartition("-")[2] for name in names} == {"ema0.99", "ema0.5"}


def test_an_average_that_a_trial_does_not_keep_is_named_with_those_that_it_does(home, tmp_path, capsys):
    (trial,) = train_here(home, write_spec(tmp_path, STAGED)).trials
    assert main(["evaluate", trial.id, "--weights", "ema:0.7", "--home", str(home.root), "--no-tracking"]) == BAD_INPUT
    assert "keeps no average of decay 0.7, only 0.99, 0.5" in capsys.readouterr().err
