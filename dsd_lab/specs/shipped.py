"""Shipped specs: `experiments/` of the repository; a wheel contains them as `dsd_lab/experiments`."""

from __future__ import annotations

from pathlib import Path

from dsd_lab.errors import BadInput
from dsd_lab.files.printable import say
from dsd_lab.specs.messages import did_you_mean
from dsd_lab.specs.yaml_document import one_line

FOLDER = Path(__file__).resolve().parents[1] / "experiments"
"""A link in a clone, a folder in an installed wheel."""
SUFFIXES = (".yaml", ".yml")


def shipped_names() -> list[str]:
    """Names of the shipped specs: file names without suffix."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def spec_file(given: str) -> Path:
    """The file for the argument SPEC of a command: a path, or the name of a shipped spec.

    A file `NAME` or `NAME.yaml` in the current folder takes precedence over a shipped spec, with a notice.

    Raises:
        BadInput: a name without suffix is neither a file nor a shipped spec.
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
        return path  # a folder: refused when it is read
    raise BadInput(
        f"{one_line(given)}: no such file, and no spec that dsd-lab ships with{did_you_mean(given, known)}; "
        "`dsd-lab specs` lists them"
    )


def paths_begin_at(spec: Path) -> Path:
    """Base of relative paths in a spec: its folder; for a shipped spec, `experiments` in the current folder."""
    return Path.cwd() / "experiments" if spec.parent == FOLDER else spec.parent
