"""Specs that dsd-lab ships with: `experiments/` of the repository, which a wheel holds as `dsd_lab/experiments`."""

from __future__ import annotations

from pathlib import Path

from dsd_lab.errors import BadInput
from dsd_lab.files.printable import say
from dsd_lab.specs.messages import did_you_mean
from dsd_lab.specs.yaml_document import one_line

FOLDER = Path(__file__).resolve().parents[1] / "experiments"
"""A link in a clone, a folder where a wheel was installed."""
SUFFIXES = (".yaml", ".yml")


def shipped_names() -> list[str]:
    """What the shipped specs are called: their files without the suffix."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def spec_file(given: str) -> Path:
    """The file that SPEC on a command line means: a path, or the name of a shipped spec.

    A file of the current folder, `NAME` or `NAME.yaml`, stands before a shipped spec of that name, and that is said.

    Raises:
        BadInput: a name that has no suffix is neither a file nor a shipped spec.
    """
    path, known = Path(given), shipped_names()
    if given == "-" or path.name != given or path.suffix in SUFFIXES:
        if path.suffix == ".yaml" and path.stem in known and not path.exists():
            raise BadInput(f"{one_line(given)}: no such file; the spec that dsd-lab ships with is called {path.stem!r}")
        return path
    here = next((p for p in (path, Path(f"{given}.yaml")) if p.exists() and not p.is_dir()), None)
    if here is not None:
        if given in known:
            say(f"dsd-lab: {given} is {here.absolute()}, not the spec that dsd-lab ships with", error=True)
        return here
    if given in known:
        return FOLDER / f"{given}.yaml"
    if path.exists():
        return path  # a folder: what reads it says so
    raise BadInput(
        f"{one_line(given)}: no such file, and no spec that dsd-lab ships with{did_you_mean(given, known)}; "
        "`dsd-lab specs` lists them"
    )


def paths_begin_at(spec: Path) -> Path:
    """The folder that relative paths in a spec begin at: its own; of a shipped one, `experiments` of the current folder."""
    return Path.cwd() / "experiments" if spec.parent == FOLDER else spec.parent
