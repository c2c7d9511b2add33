"""What MLflow's pages say of a sweep: saved views, parameters, verdicts and the report on the parent run."""

import base64
import json
import zlib

import pytest
from mlflow.entities import ViewType
from sweeping import EVALUATION, VARIANTS, free_port, run, train_here, write_spec

from dsd_lab.cli.ui import _newest
from dsd_lab.home.home import Home
from dsd_lab.store.mlflow_store import Store
from dsd_lab.store.uri import own_uri
from dsd_lab.store.views import newest_view, views_of

pytestmark = pytest.mark.integration

PREFIX = "mlflow.sharedViewState."
FID = "fid/indomain-n20-cfg1-euler2-balanced-ema0.99"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A home of one sweep with its report, its store and its manifest."""
    folder = tmp_path_factory.mktemp("views")
    variants = {"control": VARIANTS["control"], "dsd": VARIANTS["dsd"] | {"why": "Both fixes | one <b>line</b>."}}
    spec = write_spec(folder, variants, seeds=[0, 1], evaluate=[EVALUATION])
    home = Home(folder / "home")
    train_here(home, spec)
    assert run("report", "--home", home.root)[0] == 0
    return home, Store(home), home.manifests()["tiny"]


def state_of(value):
    packed = json.loads(value)["state"]
    assert packed.startswith("deflate;")
    return json.loads(zlib.decompress(base64.b64decode(packed.removeprefix("deflate;"))))


def runs_of(store, experiment, condition=""):
    found = store.client.search_runs([experiment.experiment_id], condition, ViewType.ACTIVE_ONLY)
    return {r.info.run_name: r for r in found}


def test_a_view_shows_the_trials_and_not_their_parent_in_the_columns_that_matter(made):
    _, store, _ = made
    experiment = store.client.get_experiment_by_name("tiny")
    views = {json.loads(v)["name"]: v for k, v in experiment.tags.items() if k.startswith(PREFIX)}
    assert set(views) == {"tiny: trials", "tiny: means of variants"}
    trials, means = (state_of(views[name]) for name in ("tiny: trials", "tiny: means of variants"))
    listed = runs_of(store, experiment, trials["searchFilter"])
    assert sorted(listed) == ["control s0", "control s1", "dsd s0", "dsd s1"]
    assert trials["selectedColumns"] == [
        *(f"params.`{name}`" for name in ("variant", "seed", "size")),
        "tags.`dsd.verdict`",
        *(f"metrics.`{n}`" for n in ("latent/std", "latent/effective_rank/token", "latent/capacity_bits/token", FID)),
    ]
    assert trials["groupBy"] is None
    assert means["groupBy"]["groupByKeys"] == [{"mode": "param", "groupByData": "variant"}]
    # Everything that a view names is there, so that no column and no chart is empty.
    measured = set().union(*(r.data.metrics for r in listed.values()))
    assert {c["metricKey"] for c in trials["compareRunCharts"]} <= measured
    assert {c["metricSectionId"] for c in trials["compareRunCharts"]} == {
        s["uuid"] for s in trials["compareRunSections"]
    }


def test_the_views_of_a_grid_have_its_axes_and_the_newest_sweep_stands_first(made):
    home, store, manifest = made
    spec = manifest.spec | {"grid": {"latent.normaliser": ["none", "layernorm"]}}
    later = manifest.changed(run_at=manifest.run_at + 10, key="tiny--full", profile="full", spec=spec)
    tags = views_of(later, home.id, [])
    means = next(state_of(v) for k, v in tags.items() if "-variants-" in k)
    assert [k["groupByData"] for k in means["groupBy"]["groupByKeys"]] == ["variant", "latent.normaliser"]
    assert "params.`latent.normaliser`" in means["selectedColumns"]
    assert all(len(key) <= 250 and len(value) <= 5000 for key, value in tags.items())
    experiment = store.client.get_experiment_by_name("tiny").experiment_id
    page = f"/experiments/{experiment}/runs?viewStateShareKey={home.id[:8]}-trials-tiny"
    assert newest_view(store.client, home.id) == newest_view(store.client, "") == page
    assert newest_view(store.client, "0" * 32) is None
    assert _newest(own_uri(home.root), home.id) == page  # as `dsd-lab ui` asks a server
    for key, value in tags.items():
        store.client.set_experiment_tag(experiment, key, value)
    store.client.set_experiment_tag(experiment, f"{PREFIX}{home.id[:8]}-trials-foreign", "no JSON at all")
    try:
        assert newest_view(store.client, home.id) == f"{page}--full"
    finally:
        for key in (*tags, f"{PREFIX}{home.id[:8]}-trials-foreign"):
            store.client.delete_experiment_tag(experiment, key)


def test_a_run_says_why_it_is_there_how_it_was_judged_and_the_std_of_its_latents(made):
    _, store, _ = made
    runs = runs_of(store, store.client.get_experiment_by_name("tiny"))
    dsd = runs["dsd s0"].data
    assert dsd.tags["mlflow.note.content"] == "Both fixes | one <b>line</b>."
    assert {r.data.tags["dsd.verdict"] for n, r in runs.items() if n != "tiny"} <= {"healthy", "shrunk"}
    assert dsd.metrics["latent/std"] == dsd.metrics["latent/variance"] ** 0.5 > 0
    assert "mlflow.source.git.commit" in dsd.tags and dsd.params["optimiser.lr"] == "0.001"


def test_the_parent_has_parameters_the_table_of_verdicts_and_the_figures(made):
    _, store, _ = made
    parent = runs_of(store, store.client.get_experiment_by_name("tiny"))["tiny"]
    params, note = parent.data.params, parent.data.tags["mlflow.note.content"]
    assert params["variants"] == "control, dsd" and params["seeds"] == "0, 1" and params["trials"] == "4"
    assert params["training.steps"] == "12" and "objective.diffusion_weight" not in params
    assert note.startswith("A test.") and "| variant |" in note and "| dsd |" in note and "healthy" in note
    files = {f.path for place in ("report", "report/figures", "report/tables") for f in store.client.list_artifacts(parent.info.run_id, place)}  # fmt: skip
    assert {"report/report.html", "report/tables/verdicts.csv"} <= files
    assert any(name.endswith(".png") for name in files)


def test_what_a_later_run_changed_is_said_since_mlflow_changes_no_parameter(made):
    home, store, manifest = made
    changed = manifest.changed(trials=manifest.trials[:2])
    Store(home).sync(changed)
    experiment = store.client.get_experiment_by_name("tiny")
    tags = runs_of(store, experiment)["tiny"].data.tags
    assert "trials: 4, now 2" in tags["dsd.changed_parameters"] and "variants" in tags["dsd.changed_parameters"]
    Store(home).sync(manifest)
    assert runs_of(store, experiment)["tiny"].data.tags["dsd.changed_parameters"] == ""


def test_a_server_that_does_not_answer_leaves_its_own_address(capsys):
    assert _newest(f"http://127.0.0.1:{free_port()}", "") is None
    assert "does not answer" in capsys.readouterr().err
