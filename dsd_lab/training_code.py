"""Hash of the code that can change a training result: identifies the code that trained a trial."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parent
TRAINING = (
    *("augmentation", "batches", "checkpoints", "clipping"),
    *("ema", "finiteness", "gradient_sums", "optimiser", "schedule", "state", "trainer"),
)
SOURCES: dict[str, tuple[str, ...]] = {
    "core/peers.py": (),
    "core/randomness.py": (),
    "core/data/*.py": (),
    "core/model/*.py": (),
    **{f"core/diffusion/{name}.py": () for name in ("auxiliary", "balance", "objectives", "paths", "regularisers")},
    **{f"core/training/{name}.py": () for name in TRAINING},
    "specs/auxiliary.py": ("Auxiliary.needs_target_encoder", "Auxiliary.extra_reads"),
    "specs/trial.py": (
        *("resolved_phases", "trained_roles", "blocks_of", "Stage", "live_target", "reaches_encoder"),
        "_laid_over",
        *("Trial.stages", "Trial.needs_target_encoder", "uses_target_encoder"),
    ),
}
"""Files below the package, and the definitions in them that are hashed (empty: all).

Latent metrics, probes, pictures, samplers and events only observe training, so they are left out.
"""
SAME_RESULTS: dict[str, str] = {
    "68d98741d16b": "aaf8525e7297",
    "aaf8525e7297": "c9cd35ae0365",
    "a38320e57487": "1817834653a1",
    "8b0cb4a6c2b2": "4bf30be8f4b0",
    "4bf30be8f4b0": "b8a9e8bb4396",
    "f85092b2de57": "b8a9e8bb4396",
}
"""Earlier hash -> later hash of code with bit-identical weights and records (shown by the golden losses).

Add a row when training code is moved or renamed without changing results.
"""


@cache
def training_code() -> str:
    """The first twelve hexadecimal digits of the hash.

    Comments, docstrings, imports, file names and the order of definitions do not count. A definition can
    therefore move between the listed files.
    """
    dumps = []
    for pattern, names in SOURCES.items():
        for path in sorted(_PACKAGE.glob(pattern)):
            tree = _bare(ast.parse(path.read_text(encoding="utf-8")))
            found = dict(_definitions(tree))
            dumps += [ast.dump(node) for node in (tree.body if not names else (found[name] for name in names))]
    return hashlib.sha256("\n".join(sorted(dumps)).encode()).hexdigest()[:12]


def same_results(code: str | None) -> str | None:
    """The newest known hash with the same results as `code`; `code` itself where none is known."""
    while code in SAME_RESULTS:
        code = SAME_RESULTS[code]
    return code


def is_current(code: str | None) -> bool:
    """Whether code of this hash gives the same results as the present code."""
    return same_results(code) == training_code()


def _bare(tree: ast.Module) -> ast.Module:
    """Remove imports and docstrings, those of attributes included."""
    _strip(tree)
    tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and not node.body)]  # TYPE_CHECKING
    return tree


def _strip(node: ast.AST) -> None:
    """`_bare` of a node with statements; expressions, most of a tree, have none."""
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        found = getattr(node, field, None)
        if isinstance(found, list):
            kept = [child for child in found if not _says_nothing(child)]
            setattr(node, field, kept)
            for child in kept:
                _strip(child)


def _says_nothing(node: ast.AST) -> bool:
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return is_text or isinstance(node, ast.Import | ast.ImportFrom)


def _definitions(tree: ast.Module) -> list[tuple[str, ast.stmt]]:
    """Classes, functions and methods by qualified name."""
    kinds = (ast.ClassDef, ast.FunctionDef)
    found: list[tuple[str, ast.stmt]] = [(node.name, node) for node in tree.body if isinstance(node, kinds)]
    for name, node in list(found):
        if isinstance(node, ast.ClassDef):
            found += [(f"{name}.{child.name}", child) for child in node.body if isinstance(child, ast.FunctionDef)]
    return found
