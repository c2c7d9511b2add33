"""Run the notebooks against a home folder and keep them text-diffable: `python analysis/execute.py HOME [NAME ...]`.

A notebook whose runs have not been made yet is in `unrun/`, without outputs; once executed, it is moved to the others.
Outputs are kept, so that a notebook can be read on a code host; what would differ from run to run (ids, counts, times,
kernels) is removed. Needs nbclient and ipykernel, which come with `pip install dsd-lab[test]`.

Exit code 3: a notebook reads a sweep that has not been run in HOME.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from dsd_lab.files.atomic import write_atomic
from dsd_lab.home.lookup import NoSweep

FOLDER = Path(__file__).resolve().parent
UNRUN = FOLDER / "unrun"
NAMES = ("collapse_ablation", "theory_vs_measurement", "what_dsd_needs", "paper_tables", "size_scaling", "predictors")
NO_SWEEP = 3
"""Exit code of a notebook that reads a sweep that has not been run."""
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(path: Path, home: Path) -> nbformat.NotebookNode:
    """A notebook run in a clean kernel, stripped; an error in a cell is raised."""
    notebook = nbformat.read(path, as_version=4)
    os.environ["DSD_LAB_HOME"] = str(home.resolve())  # the kernel inherits it
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(FOLDER)}}).execute()
    return stripped(notebook)


def stripped(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without what differs from run to run, in place; messages on standard error are no result."""
    notebook.metadata = nbformat.from_dict(_METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = None
    return notebook


def main(home: str, *names: str) -> None:
    """Run notebooks in place."""
    for name in names or NAMES:
        path = FOLDER / f"{name}.ipynb"
        if path.parent != FOLDER:
            sys.exit(f"{name}: is no notebook of {FOLDER}")
        source = path if path.exists() else UNRUN / path.name
        if source.parent not in (FOLDER, UNRUN) or not source.is_file() or source.is_symlink():
            sys.exit(f"{name}: is no notebook of {FOLDER}")
        before = source.read_bytes()
        try:
            made = execute(source, Path(home))
        except CellExecutionError as error:
            if error.ename != NoSweep.__name__:
                raise
            print(f"{name}: {error.evalue}", file=sys.stderr)
            sys.exit(NO_SWEEP)
        text = nbformat.writes(made).rstrip() + "\n"
        if source.read_bytes() != before:
            sys.exit(f"{source}: was edited while it ran, and stays as it is; run it again")
        write_atomic(path, text)  # which replaces a link, and never writes through one
        if source != path:
            source.unlink()
        print(f"{path.name}: {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main(*sys.argv[1:])
