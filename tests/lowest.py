"""The lowest versions that pyproject.toml allows, as requirements for pip: `torch==2.13 ...`. See `make test-lowest`."""

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def lowest(requirement: str) -> str:
    """`ray[tune]>=2.54,<3` as `ray[tune]==2.54`.

    Raises:
        ValueError: it has no lowest version.
    """
    found = re.fullmatch(r"([A-Za-z0-9_.-]+(?:\[[a-z,]+\])?)>=([0-9.]+)(?:,<[0-9.]+)?", requirement)
    if found is None:
        raise ValueError(f"pyproject.toml: {requirement!r} has no lowest version")
    return f"{found[1]}=={found[2]}"


def all_lowest() -> list[str]:
    """Those of everything that the package depends on."""
    return [lowest(requirement) for requirement in tomllib.loads(PROJECT.read_text())["project"]["dependencies"]]


if __name__ == "__main__":
    print(" ".join(all_lowest()))
