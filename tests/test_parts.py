"""Parts of plug-ins: found everywhere, in the identity of just the trials that use them, refused in one line where wrong."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from sweeping import command, run, write_spec

from dsd_lab.cli.main import main
from dsd_lab.cli.schema import spec_schema
from dsd_lab.errors import BAD_INPUT, OK, TRIALS_FAILED, BadInput
from dsd_lab.home.home import Home
from dsd_lab.home.plugins import keep_plugins
from dsd_lab.planning.flops import count_bytes, count_shape
from dsd_lab.runs.spool_writer import read_spool
from dsd_lab.specs import registry
from dsd_lab.specs.identity import evaluation_id, trial_id
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.part_kinds import KINDS
from dsd_lab.specs.plugins import load_kept, load_plugins
from dsd_lab.specs.registry import parts_of, plugin_parts
from dsd_lab.specs.trial import Generation, Trial

EXAMPLE = Path(__file__).parent / "example_parts" / "my_parts.py"
PAGE = Path(__file__).parents[1] / "docs" / "own-parts.md"
DATA = {"data": {"source": "bright_digits"}}
OWN = DATA | {
    "network": {"block": "gated_mlp"},
    "latent": {"normaliser": "squash", "regularisers": {"unit_scale": 0.1}},
    "objective": {
        "reconstruction": "huber",
        "options": {"huber": {"delta": 0.5}},
        "target": "half_stopped",
        "path": "trigonometric",
        "output": "noise",
        "weighting": "linear",
    },
    "time": {"distribution": "squared"},
    "auxiliary": {"extra": {"mean_pixel": 0.2}},
}
EVALUATION = {"sampler": "midpoint", "steps": 2, "images": 20, "metrics": ["brightness"]}
USED = {
    *("auxiliary/mean_pixel", "block/gated_mlp", "data_source/bright_digits", "normaliser/squash", "output/noise"),
    "path/trigonometric",
    *("reconstruction/huber", "regulariser/unit_scale", "target/half_stopped", "time_distribution/squared"),
    "weighting/linear",
}


def forget():
    for plugin in registry.plugins.values():
        for table in registry.tables():
            table.forget(plugin)
    registry.plugins.clear()


@pytest.fixture(autouse=True)
def no_plugins_stay():
    yield
    forget()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A spec, a home in which it was trained, evaluated and stored, and the answers of `train`."""
    folder = tmp_path_factory.mktemp("own")
    spec = write_spec(
        folder, {"plain": {}, "own": OWN, "l1": DATA | {"objective": {"loss_space": "l1_clean"}}}, evaluate=[EVALUATION]
    )
    home, answers = folder / "home", {}
    for variant in ("plain", "own", "l1"):
        code, answers[variant] = run("train", spec, "--variant", variant, "--home", home, "--plugin", EXAMPLE)
        assert code == OK
    forget()
    return folder, spec, Home(home), answers


def plugin(folder, body, name="own_parts"):
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.py"
    path.write_text(body)
    return path


def complaint(capsys, *arguments):
    """The one line on standard error of a command that is refused."""
    assert main([*map(str, arguments)]) == BAD_INPUT
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


# -- What there is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not KINDS[kind].together])
def test_the_listed_names_are_those_of_the_definitions(kind):
    table = parts_of(kind)
    assert {name for name in table if table.part(name).plugin is None} == set(KINDS[kind].shipped)


@pytest.mark.integration
def test_a_plug_in_that_imports_the_package_first_owns_its_own_parts_alone():
    asked = f"import sys; sys.argv[0] = 'dsd-lab'; from dsd_lab.cli.main import main; main(['parts', '--json', '--plugin', {str(EXAMPLE)!r}])"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)["parts"]
    own = {(row["kind"], row["name"]) for row in rows if row["plugin"] == "my_parts"}
    assert {kind for kind, _ in own} == set(KINDS) and len(own) == len(KINDS)
    shipped = {(kind, name) for kind, entry in KINDS.items() for name in entry.shipped}
    assert {(row["kind"], row["name"]) for row in rows if row["plugin"] is None} == shipped
    assert all(re.search(r"my_parts\.py:\d+$", row["where"]) for row in rows if row["plugin"])
    assert all(row["what"] for row in rows)


def test_schema_and_messages_have_the_parts_of_loaded_plug_ins(tmp_path, capsys):
    assert "huber" not in json.dumps(spec_schema())
    spec = write_spec(tmp_path, {"dsd": {"objective": {"reconstruction": "hubber"}}})
    said = complaint(capsys, "plan", spec, "--plugin", EXAMPLE)
    assert "'l1' or 'l2', or from my_parts: 'huber'; did you mean 'huber'?" in said
    text = json.dumps(spec_schema())
    assert all(part.name in text for part in plugin_parts() if part.kind != "latent_metric")


def test_options_are_checked_by_the_part_s_own_model(tmp_path, capsys):
    def refused(**objective):
        spec = write_spec(tmp_path, {"dsd": {"objective": objective}})
        return complaint(capsys, "plan", spec, "--plugin", EXAMPLE)

    assert "objective.options.huber.delta: input should be a valid number" in refused(
        reconstruction="huber", options={"huber": {"delta": "big"}}
    )
    assert "objective.options.huber.sharp: extra inputs" in refused(
        reconstruction="huber", options={"huber": {"sharp": 1}}
    )
    assert "options.huber: this section names no part 'huber'" in refused(options={"huber": {"delta": 2.0}})
    assert "'l1' is the package's and has no options" in refused(reconstruction="l1", options={"l1": {"delta": 2.0}})


# -- A trial that uses them ------------------------------------------------------------------------------


@pytest.mark.integration
def test_a_trial_with_parts_of_every_kind_records_them(trained):
    _, _, home, answers = trained
    folder = home.trial(answers["own"]["id"])
    described = folder.description()
    assert set(described.canonical["plugins"]) == USED
    assert set(described.provenance.plugins) == {"my_parts"}
    assert described.canonical["objective"]["options"] == {"huber": {"delta": 0.5}}
    records = list(read_spool(folder.spool))
    losses = {name for entry in records if entry.kind == "train" for name in entry.metrics}
    assert {"train/unit_scale", "train/mean_pixel"} <= losses
    largest = [e.metrics["latent/largest"] for e in records if e.kind == "probe"]
    assert largest and all(0 < value <= 1 for value in largest)  # `squash` bounds them
    (evaluated,) = answers["own"]["evaluations"].values()
    assert list(evaluated["metrics"]) == ["sample/brightness/n20-cfg1-midpoint2-balanced-ema0.99"]


@pytest.mark.integration
def test_trials_without_the_parts_keep_their_ids(trained, tmp_path):
    _, _, home, answers = trained
    assert load_sweep(write_spec(tmp_path)).trials[0].id == answers["plain"]["id"]
    described = home.trial(answers["plain"]["id"]).description()
    assert "plugins" not in described.canonical
    assert trial_id(described.trial, 0) == answers["plain"]["id"]


@pytest.mark.integration
def test_report_shows_own_metrics_without_the_plug_in(trained):
    _, _, home, answers = trained
    assert main(["report", "--home", str(home.root)]) == OK
    page = (home.root / "reports" / "tiny" / "report.md").read_text()
    assert "largest latent, std" in page and "brightness gap" in page
    parts = pd.read_csv(home.root / "reports" / "tiny" / "tables" / "own_parts.csv", dtype=str)
    used = {f"{row.kind.replace(' ', '_')}/{row.part}": row for row in parts.itertuples()}
    own = {"latent_metric/largest", "sample_metric/brightness", "sampler/midpoint", "loss_space/l1_clean"}
    assert set(used) == USED | own and {row.file for row in used.values()} == {"my_parts.py"}
    described = [home.trial(answers[v]["id"]).description() for v in ("own", "l1")]
    digests = {key: digest for d in described for key, digest in d.canonical["plugins"].items()}
    assert {key: used[key].digest for key in digests} == digests
    assert (used["normaliser/squash"].trials, used["latent_metric/largest"].trials) == ("1", "3")
    assert (
        "| squash | normaliser | my\\_parts | my\\_parts.py |" in page or "| squash | normaliser | my_parts |" in page
    )
    from dsd_lab.store.mlflow_store import Store

    manifest = home.manifests()["tiny"]
    stored = list(Store(home, None).read(manifest, home.root / "scratch"))
    metrics = [name for row in stored for name in row.metrics]
    assert "latent/largest" in metrics and any(name.startswith("sample/brightness/") for name in metrics)


@pytest.mark.integration
def test_a_command_that_needs_the_plug_in_names_the_kept_source(trained, capsys):
    _, _, home, answers = trained
    said = complaint(capsys, "sample", answers["own"]["id"], "--home", home.root)
    kept = re.search(r"give --plugin (\S+my_parts\.py)$", said)
    assert kept and Path(kept[1]).read_bytes() == EXAMPLE.read_bytes()
    done = [
        "sample",
        answers["own"]["id"],
        "--home",
        str(home.root),
        "--n",
        "2",
        "--sampler",
        "midpoint",
        "--steps",
        "2",
    ]
    assert main([*done, "--plugin", kept[1]]) == OK
    capsys.readouterr()
    forget()
    changed = plugin(
        home.root.parent / "changed", EXAMPLE.read_text().replace("torch.tanh(raw)", "torch.sin(raw)"), "my_parts"
    )
    assert "is another version than the one that trained it" in complaint(capsys, *done, "--plugin", changed)


@pytest.mark.integration
def test_an_export_carries_the_source_and_an_import_never_runs_it(trained, tmp_path, capsys):
    _, _, home, answers = trained
    assert run("export", "tiny", "--home", home.root, "--out", tmp_path / "export")[0] == OK
    before = set(sys.modules)
    code, _ = run("import", tmp_path / "export", "--home", tmp_path / "other")
    assert code == OK and not registry.plugins
    assert not {name for name in set(sys.modules) - before if "my_parts" in name}
    kept = list((tmp_path / "other" / "plugins").glob("*/my_parts.py"))
    assert [path.read_bytes() for path in kept] == [EXAMPLE.read_bytes()]
    said = complaint(capsys, "sample", answers["own"]["id"], "--home", tmp_path / "other")
    assert said.endswith("that is code of others, which came with an import: read it before you run it")
    source = next((tmp_path / "export" / "plugins").glob("*/my_parts.py"))
    index = json.loads((tmp_path / "export" / "export.json").read_text())
    assert str(source.relative_to(tmp_path / "export")) in index["files"]
    record = tmp_path / "export" / "trials" / answers["own"]["id"] / "trial.json"
    assert json.loads(record.read_text())["fields"]["latent"]["normaliser"] == "squash"


@pytest.mark.slow
def test_a_sweep_s_workers_load_the_same_plug_in(tmp_path):
    spec = write_spec(tmp_path, {"own": OWN}, evaluate=[EVALUATION])
    done = subprocess.run(
        command("sweep", spec, "--home", tmp_path / "home", "--plugin", EXAMPLE, "--no-tracking"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == OK, done.stderr


# -- Identity --------------------------------------------------------------------------------------------

TWO = '''"""Two parts."""
import torch
from dsd_lab.parts import LATENT_METRICS, NORMALISERS, SAMPLERS, Normaliser

SCALE = 2.0


def helper(z):
    """Scale."""
    return SCALE * z


@NORMALISERS.add("one")
class One(Normaliser):
    def forward(self, raw, noise=None):
        return helper(raw)


@NORMALISERS.add("two")
class Two(One):
    def forward(self, raw, noise=None):
        return super().forward(raw) + 1


@LATENT_METRICS.add("mean")
def mean(z, side):
    return float(z.mean())


@SAMPLERS.add("none")
def none(velocity, z, solver):
    return z + velocity(z, torch.zeros(len(z)))
'''


def ids(tmp_path, source):
    forget()
    load_plugins([str(plugin(tmp_path, source, "two_parts"))])
    trials = [Trial.model_validate({"latent": {"normaliser": name}}) for name in ("layernorm", "one", "two")]
    return [*(trial_id(t, 0) for t in trials), evaluation_id(Generation.model_validate({"sampler": "none"}))]


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("float(z.mean())", "float(z.mean() + 1)", [False, False, False, False]),
        ('"""Scale."""', '"""Scale it."""', [False, False, False, False]),
        ("SCALE = 2.0", "SCALE = 2.0  # a comment", [False, False, False, False]),
        ("return z + velocity", "return z - velocity", [False, False, False, True]),
        ("super().forward(raw) + 1", "super().forward(raw) + 2", [False, False, True, False]),
        ("return helper(raw)", "return -helper(raw)", [False, True, True, False]),
        ("SCALE = 2.0", "SCALE = 3.0", [False, True, True, True]),
    ],
)
def test_an_id_changes_with_what_the_trial_s_parts_can_depend_on(tmp_path, old, new, changed):
    before = ids(tmp_path, TWO)
    assert before[0] == trial_id(Trial(), 0)
    assert [a != b for a, b in zip(before, ids(tmp_path, TWO.replace(old, new, 1)), strict=True)] == changed


def test_a_default_that_is_written_is_no_other_trial():
    load_plugins([str(EXAMPLE)])

    def named(**options):
        objective = (
            {"reconstruction": "huber", "options": {"huber": options}} if options else {"reconstruction": "huber"}
        )
        return trial_id(Trial.model_validate({"objective": objective}), 0)

    assert named() == named(delta=1.0) != named(delta=2.0)


def test_parts_without_effect_are_in_no_identity():
    load_plugins([str(EXAMPLE)])
    control = {"objective": {"diffusion_weight": 0.0}}
    unused = {"objective": {"diffusion_weight": 0.0, "target": "half_stopped"}, "time": {"distribution": "squared"}}
    unused |= {"latent": {"regularisers": {"unit_scale": 0.0}}, "auxiliary": {"extra": {"mean_pixel": 0.0}}}
    assert trial_id(Trial.model_validate(unused), 0) == trial_id(Trial.model_validate(control), 0)


# -- What is refused -------------------------------------------------------------------------------------

HEAD = "import torch\nfrom dsd_lab.parts import *\n"
BAD = {
    "a syntax error": ("def f(:\n", r"own_parts\.py:1: SyntaxError"),
    "an error": ("1 / 0\n", r"own_parts\.py:1: ZeroDivisionError: division by zero"),
    "an exit": ("import sys\nsys.exit(3)\n", r"own_parts\.py:2: SystemExit: 3"),
    "a missing module": ("import no_such_module\n", r"own_parts\.py:1: ModuleNotFoundError: No module named 'no_such"),
    "a shipped name": (
        HEAD + "@NORMALISERS.add('kl')\nclass A(Normaliser): pass\n",
        r"own_parts\.py:3\): this name is dsd-lab's own",
    ),
    "no name": (HEAD + "@NORMALISERS.add('A b')\nclass A(Normaliser): pass\n", "a name has at most 64"),
    "a name twice": (
        HEAD + "@WEIGHTINGS.add('a')\ndef a(t, clamp): return t\n@WEIGHTINGS.add('a')\ndef b(t, clamp): return t\n",
        r"own_parts\.py:5\): this name is defined at \S+own_parts\.py:3 already",
    ),
    "NaN on constant latents": (
        HEAD
        + "@LATENT_METRICS.add('snr')\ndef snr(z, side): return float(z.mean() / z.std() / 0.0 if z.std() else 'nan')\n",
        r"own_parts\.py:3\): gives nan on constant latents",
    ),
    "a tensor for a metric": (
        HEAD + "@LATENT_METRICS.add('snr')\ndef snr(z, side): return z.mean()\n",
        r"own_parts\.py:3\): gives a Tensor, not a float",
    ),
    "a failing metric": (
        HEAD + "@LATENT_METRICS.add('snr')\ndef snr(z, side): raise ValueError('no')\n",
        r"own_parts\.py:3\): fails on constant latents: ValueError: no",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_plug_in_that_cannot_be_loaded_is_one_line_with_its_place(case, tmp_path, capsys):
    source, expected = BAD[case]
    spec = write_spec(tmp_path)
    said = complaint(capsys, "plan", spec, "--plugin", plugin(tmp_path / "p", source))
    assert re.search(expected, said)
    assert not registry.plugins and not plugin_parts()


def test_a_plug_in_that_is_not_there_is_refused(tmp_path, capsys):
    spec = write_spec(tmp_path)
    assert "--plugin no.py: no such file" in complaint(capsys, "plan", spec, "--plugin", "no.py")
    assert "no Python module of this name" in complaint(capsys, "plan", spec, "--plugin", "no_such_module")


WRONG = {
    "regulariser": (
        "@REGULARISERS.add('own')\ndef own(z): return z.mean(1)\n",
        {"latent": {"regularisers": {"own": 1.0}}},
    ),
    "weighting": ("@WEIGHTINGS.add('own')\ndef own(t, clamp): return t.mean()\n", {"objective": {"weighting": "own"}}),
    "target": ("@TARGETS.add('own')\ndef own(z, *rest): return z[:, :1]\n", {"objective": {"target": "own"}}),
    "output": ("@OUTPUTS.add('own')\ndef own(out, z_t, t, clamp): return out\n", {"objective": {"output": "own"}}),
    "reconstruction": (
        "@RECONSTRUCTIONS.add('own')\ndef own(a, b): return a - b\n",
        {"objective": {"reconstruction": "own"}},
    ),
    "normaliser": (
        "@NORMALISERS.add('own')\nclass Own(Normaliser):\n    def forward(self, raw, noise=None): return raw[..., :1]\n",
        {"latent": {"normaliser": "own"}},
    ),
    "block": (
        "@BLOCKS.add('own')\nclass Own(Block):\n    def forward(self, tokens, condition): return tokens[:, :1]\n",
        {"network": {"block": "own"}},
    ),
    "auxiliary": (
        "@AUXILIARIES.add('own')\nclass Own(Auxiliary):\n    def forward(self, seen): return seen.z\n",
        {"auxiliary": {"extra": {"own": 1.0}}},
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_part_of_a_wrong_shape_is_one_line_with_its_place(kind, tmp_path, capsys):
    source, fields = WRONG[kind]
    spec = write_spec(tmp_path, {"dsd": fields})
    said = complaint(capsys, "plan", spec, "--plugin", plugin(tmp_path / "p", HEAD + source))
    assert re.search(rf"{kind} 'own' \(\S+own_parts\.py:3\): gives a", said)


@pytest.mark.parametrize(
    ("kind", "table", "base"),
    [
        ("auxiliary", "AUXILIARIES", "Auxiliary"),
        ("block", "BLOCKS", "Block"),
        ("normaliser", "NORMALISERS", "Normaliser"),
    ],
)
def test_a_part_that_lacks_a_method_is_one_line_with_its_place(kind, table, base, tmp_path, capsys):
    body = f"@{table}.add('own')\nclass Own({base}):\n    def forwards(self, *given): return given[0]\n"
    spec = write_spec(tmp_path, {"dsd": WRONG[kind][1]})
    said = complaint(capsys, "plan", spec, "--plugin", plugin(tmp_path / "p", HEAD + body))
    assert re.search(rf"{kind} 'own' \(\S+own_parts\.py:3\): does not define forward, which every {kind} needs", said)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("values", ["float(z.detach().mean() < 9)", "torch.cov(z.flatten(0, 1).T).mean() * 0"])
def test_a_part_that_needs_values_is_counted_on_a_few_images(tmp_path, values, precision):
    """What it costs is counted as that of a part which needs none; `cov` has no kernel for tensors without data."""
    body = HEAD + "@REGULARISERS.add('{}')\ndef {}(z): return z.square().mean() + {}\n"
    load_plugins([str(plugin(tmp_path, body.format("needs", "needs", values) + body.format("plain", "plain", "0.0")))])
    shapes, kept = [], []
    for name in ("needs", "plain"):
        latent = {"regularisers": {name: 1.0}}
        trial = Trial.model_validate({"latent": latent, "training": {"precision": precision}})
        shapes.append(count_shape(trial, 1, 10))
        kept.append(count_bytes(trial, 1, 10))
    ours = shapes[0].pop("flops_per_image"), shapes[1].pop("flops_per_image")
    assert ours[0] == pytest.approx(ours[1], rel=0.01) and kept[0] == pytest.approx(kept[1], rel=0.1)
    assert shapes[0]["params"] == shapes[1]["params"] and shapes[0]["role_flops"] == shapes[1]["role_flops"]


FAILS = {
    "forwards": "def own(z):\n    raise ValueError('no way\\nforth')\n",
    "backwards": "class Own(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, z): return z.sum()\n"
    "    @staticmethod\n    def backward(ctx, up): raise NotImplementedError('no way\\nback')\n"
    "def own(z): return Own.apply(z)\n",
}


@pytest.mark.parametrize("way", FAILS)
def test_what_a_part_raises_while_it_is_counted_is_one_line_with_its_place(way, tmp_path, capsys):
    path = plugin(tmp_path / "p", HEAD + FAILS[way] + "REGULARISERS.add('own')(own)\n")
    spec = write_spec(tmp_path, {"dsd": {"latent": {"regularisers": {"own": 1.0}}}})
    said = complaint(capsys, "plan", spec, "--plugin", path)
    error = "ValueError: no way;" if way == "forwards" else "NotImplementedError: no way;"
    assert re.search(rf"own_parts\.py:\d+: \w*{error}", said) and re.search(
        r"regulariser 'own' \(\S+own_parts\.py:\d\)$", said
    )


def test_what_a_part_raises_is_one_line_with_its_place(tmp_path, capsys):
    body = HEAD + "@TIME_DISTRIBUTIONS.add('own')\ndef own(spec, count, generator):\n    raise ValueError('no times')\n"
    spec = write_spec(tmp_path, {"dsd": {"time": {"distribution": "own"}}})
    path = plugin(tmp_path / "p", body)
    code, answer = run(
        "train", spec, "--variant", "dsd", "--no-tracking", "--home", tmp_path / "home", "--plugin", path
    )
    assert code == TRIALS_FAILED and answer["error"] == f"{path}:5: ValueError: no times"


def test_a_spec_may_require_a_plug_in(tmp_path, capsys):
    spec = write_spec(tmp_path, requires=["my_parts"])
    assert re.search(
        r"spec\.yaml:\d+: requires: plug-in 'my_parts' is not loaded; give its", complaint(capsys, "plan", spec)
    )
    load_plugins([str(EXAMPLE)])
    assert load_sweep(spec).spec.requires == ["my_parts"]


def test_an_installed_package_s_plug_in_is_loaded_where_a_spec_requires_it(tmp_path, monkeypatch):
    plugin(tmp_path, HEAD + "@WEIGHTINGS.add('own')\ndef own(t, clamp): return t\n", "offered_parts")
    information = tmp_path / "offered-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: offered\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[dsd_lab.parts]\noffered_parts = offered_parts\n")
    monkeypatch.syspath_prepend(tmp_path)
    spec = write_spec(tmp_path, {"dsd": {"objective": {"weighting": "own"}}}, requires=["offered_parts"])
    used = load_sweep(spec).trials[0].fields
    assert used.objective.weighting == "own" and registry.plugins["offered_parts"].module == "offered_parts"
    monkeypatch.delitem(sys.modules, "offered_parts")


def test_the_variable_of_the_environment_names_plug_ins_too(monkeypatch):
    monkeypatch.setenv("DSD_LAB_PLUGINS", f"{EXAMPLE}, ")
    load_plugins([])
    assert set(registry.plugins) == {"my_parts"}


def test_a_worker_refuses_another_version_of_a_plug_in(home):
    load_plugins([str(EXAMPLE)])
    kept = keep_plugins(home)
    forget()
    load_kept(kept)
    assert registry.plugins["my_parts"].digest == kept[0]["digest"]
    forget()
    Path(kept[0]["given"]).write_text(EXAMPLE.read_text() + "\n")
    with pytest.raises(BadInput, match="the source here is"):
        load_kept(kept)


# -- The page --------------------------------------------------------------------------------------------


def test_the_page_shows_a_part_of_every_kind_and_its_code_runs(tmp_path, capsys):
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.S | re.M)
    code = [text for language, text in blocks if language == "python"]
    assert all(len(text.splitlines()) <= 20 for text in code)
    path = plugin(tmp_path, "\n\n".join(code), "my_parts")
    (spec,) = [text for language, text in blocks if language == "yaml"]
    (tmp_path / "my_sweep.yaml").write_text(spec)
    lines = [line for language, text in blocks if language == "bash" for line in text.splitlines()]
    assert (
        run(
            "train",
            tmp_path / "my_sweep.yaml",
            "--variant",
            "huber",
            "--home",
            tmp_path / "home",
            "--no-tracking",
            "--plugin",
            path,
        )[0]
        == OK
    )
    assert {part.kind for part in plugin_parts()} == set(KINDS)
    assert all(line.startswith("dsd-lab ") for line in lines)
    trial = Trial.model_validate(yaml.safe_load(spec)["base"] | OWN)
    assert trial.latent.normaliser == "squash"  # the page's parts are those of the example
