"""Whatever bytes a spec is made of and whatever an override says: a plan, or one line and exit code 2, and nothing written."""

import string
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dsd_lab.cli.main import main
from dsd_lab.errors import BAD_INPUT, BadInput
from dsd_lab.specs.loading import load_sweep
from dsd_lab.specs.sweep import Plan, Sweep
from dsd_lab.specs.trial import Trial
from dsd_lab.specs.yaml_document import parse_scalar
from dsd_lab.specs.yaml_scalars import flow

HEAD = b"name: fuzzed\nvariants: {a: {}, b: {objective: {target: live}}}\n"
SECTIONS = {name: list(field.annotation.model_fields) for name, field in Trial.model_fields.items()}
KEYS = [f.alias or name for name, f in Sweep.model_fields.items()]
FIELDS = [f"{section}.{field}" for section, fields in SECTIONS.items() for field in fields]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        ["live", "ema", "layernorm", "digits", "idx", "nano8", "1e-3", "0x10", "../..", "~", "\0", "\ud800"]
    ),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
trials = st.dictionaries(
    st.sampled_from(list(SECTIONS)) | st.text(max_size=8),
    st.dictionaries(st.sampled_from([f for fields in SECTIONS.values() for f in fields]), scalars, max_size=3) | values,
    max_size=3,
)
specs = st.fixed_dictionaries(
    {"name": st.just("fuzzed") | values, "variants": st.dictionaries(st.just("a") | st.text(max_size=6), trials, max_size=2)},
    optional={
        "base": trials | values,
        "grid": st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), st.lists(scalars, max_size=3), max_size=2),
        "seeds": st.lists(st.integers(-1, 3), max_size=3) | values,
        "profiles": st.dictionaries(st.just("p"), trials, max_size=1),
        "profile": st.just("p") | values,
        "evaluate": st.lists(values, max_size=2),
        "report": values,
        "extends": values,
        "schema": values,
        "why": values,
    },
)  # fmt: skip
lines = st.text(alphabet=string.printable, max_size=40)


def judged(folder: Path, sets: list[str] | None = None) -> Plan | None:
    """The plan, or None where it was refused as it should be."""
    before = sorted(folder.rglob("*"))
    try:
        return load_sweep(folder / "spec.yaml", None, sets)
    except BadInput as refusal:
        message = str(refusal)
        assert message and message.isprintable() and len(message) < 700, message
        return None
    finally:
        assert sorted(folder.rglob("*")) == before


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=300)
@given(raw=st.binary(max_size=200))
@example(raw=b"\xff\xfe")
@example(raw=b"? ")
@example(raw=b"&a [*a, *a]")
def test_any_bytes_are_a_spec_or_one_line(folder, raw):
    (folder / "spec.yaml").write_bytes(raw)
    judged(folder)


@settings(max_examples=300)
@given(at=st.integers(0, len(HEAD)), cut=st.integers(0, 8), put=st.binary(max_size=6) | lines.map(str.encode))
def test_any_edit_of_a_good_spec_is_a_spec_or_one_line(folder, at, cut, put):
    (folder / "spec.yaml").write_bytes(HEAD[:at] + put + HEAD[at + cut :])
    judged(folder)


@settings(max_examples=200)
@given(spec=specs)
def test_any_values_in_the_keys_of_a_spec_are_a_spec_or_one_line(folder, spec):
    try:
        (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    except UnicodeEncodeError:  # a lone surrogate cannot be written
        return
    judged(folder)


overrides = (
    st.tuples(
        st.sampled_from([*FIELDS, *KEYS, "variants.a.training.steps", "grid.training.steps"]) | lines,
        st.one_of(scalars.map(str), values.map(lambda v: yaml.safe_dump(v, default_flow_style=True)), lines),
    ).map("=".join)
    | lines
)


@settings(max_examples=300)
@given(sets=st.lists(overrides, min_size=1, max_size=3))
def test_any_override_of_a_good_spec_is_a_plan_or_one_line(folder, sets):
    (folder / "spec.yaml").write_bytes(HEAD)
    judged(folder, sets)


@settings(max_examples=300)
@given(
    value=st.dictionaries(
        st.sampled_from(["path", "name", "size"]),
        st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | st.text("0e1-+._~nuloTyY:#,{}[]'\"! \u202e\x1b"),
    )
)  # fmt: skip
@example(value={"path": "1e3"})
@example(value={"path": "2020-01-01"})
def test_a_printed_line_of_yaml_is_read_as_what_was_printed(value):
    line = flow(value)
    assert line.isprintable() and parse_scalar(line) == value == yaml.safe_load(line)
    assert all(parse_scalar(flow(each)) == each for each in value.values())


@settings(max_examples=25)
@given(raw=st.binary(max_size=60))
def test_the_command_line_turns_any_refusal_into_exit_code_2_and_one_line(folder, raw):
    import contextlib
    import io

    (folder / "spec.yaml").write_bytes(raw)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["sweep", str(folder / "spec.yaml"), "--home", str(folder / "home")])
    assert code == BAD_INPUT and not out.getvalue() and not (folder / "home").exists()
    (line,) = err.getvalue().splitlines()
    assert line.startswith("dsd-lab: ")
