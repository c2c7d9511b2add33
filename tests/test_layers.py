"""The house: which room may import which, and that nothing imports in a circle. Imports under TYPE_CHECKING count."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "dsd_lab"
ROOMS = (
    *("training_code", "version", "errors", "units", "files", "specs", "provenance", "home"),
    *(
        "core.randomness",
        "core.shapes",
        "core.peers",
        "core.messages",
        "core.data",
        "core.preparing",
        "core.model",
        "core.diffusion",
        "core.observing",
        "core.training",
    ),
    *("planning", "evaluation", "parts", "runs", "store", "bench", "report", "api", "cli", "__main__"),
)
"""From the bottom up: a room imports from itself and from rooms before it."""
FORBIDDEN = {
    "core": {"ray", "mlflow", "pandas"},
    "specs": {"torch", "ray", "mlflow"},
    "home": {"torch", "ray", "mlflow"},
}
MODULES = {
    ".".join(p.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): p for p in PACKAGE.rglob("*.py")
}


def imports(path):
    """Dotted names that a file imports, those of the package relative to it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            own = (node.module or "").removeprefix("dsd_lab").lstrip(".")
            if node.module == "dsd_lab" or (node.module or "").startswith("dsd_lab."):
                names = (f"{own}.{alias.name}".lstrip(".") for alias in node.names)
                yield from (f"dsd_lab.{name if name in MODULES else own}" for name in names)
            else:
                yield node.module or ""


ARROWS = {
    name: {i.removeprefix("dsd_lab.") for i in imports(path) if i.startswith("dsd_lab.")} - {name}
    for name, path in MODULES.items()
}


def room(name):
    return next((r for r in ROOMS if name == r or name.startswith(f"{r}.")), None)


def test_rooms_import_downwards_only():
    upwards = [
        f"{name} -> {other}"
        for name, others in ARROWS.items()
        for other in others
        if name and room(name) and room(other) and ROOMS.index(room(name)) < ROOMS.index(room(other))
    ]
    assert not upwards
    assert {name for name in MODULES if room(name) is None} <= {"__init__", "core"}


def test_nothing_imports_in_a_circle():
    TopologicalSorter(ARROWS).prepare()  # raises CycleError, which names the circle


def test_the_rooms_at_the_bottom_import_nothing_heavy():
    for name, path in MODULES.items():
        heavy = {i.partition(".")[0] for i in imports(path)} & FORBIDDEN.get(name.partition(".")[0], set())
        assert not heavy, f"{name} imports {heavy}"


def test_files_are_read_in_one_sitting():
    assert len([p for p in PACKAGE.iterdir() if p.suffix == ".py"]) <= 8
    long = {
        name
        for name, path in MODULES.items()
        if len((text := path.read_text()).splitlines()) > 300 and "300 lines" not in text.splitlines()[0]
    }
    assert not long
