"""`dsd-lab doctor`: check this machine, the home folder and the store, one line per finding."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from dsd_lab.cli.options import home_of, print_json
from dsd_lab.errors import NO_RESOURCES, OK, LabError
from dsd_lab.files.bounded import read_json
from dsd_lab.files.mounts import shared_sqlite_warning
from dsd_lab.files.printable import say
from dsd_lab.files.redaction import without_password
from dsd_lab.home.home import Home
from dsd_lab.store.uri import chosen_uri

_FREE_BYTES = 2**30
"""Free disk space below which a finding is reported: a checkpoint that does not fit fails its trial."""


@dataclass(frozen=True)
class Finding:
    """Result of a check."""

    check: str
    ok: bool
    text: str


def run(arguments: argparse.Namespace) -> int:
    """Run all checks; returns 0 or 4."""
    home = home_of(arguments)
    findings = []
    for finding in check_all(home, arguments.tracking_uri, arguments.dry_run):
        findings.append(finding)
        if not arguments.json:
            say(f"{'ok     ' if finding.ok else 'PROBLEM'}  {finding.check:<9} {finding.text}")
    fine = all(finding.ok for finding in findings)
    if arguments.json:
        print_json({"ok": fine, "home": str(home.root.resolve()), "findings": [vars(f) for f in findings]})
    return OK if fine else NO_RESOURCES


def check_all(home: Home, uri: str | None, dry_run: bool) -> Iterator[Finding]:
    """All findings: Python, packages, devices, threads, home folder, store."""
    yield from check_packages(*required())
    yield from _check_devices()
    yield _check_threads()
    yield from _check_home(home)
    yield from _check_store(home, uri, dry_run)


def required() -> tuple[str, list[str]]:
    """Required Python versions and packages: from pyproject.toml in a checkout, else from the installed package."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    if project.exists():
        content = tomllib.loads(project.read_text())["project"]
        return content["requires-python"], content["dependencies"]
    installed = metadata.metadata("dsd-lab")
    return installed["Requires-Python"], [r for r in metadata.requires("dsd-lab") or [] if "extra ==" not in r]


def check_packages(python: str, requirements: list[str]) -> Iterator[Finding]:
    """Check the versions of packages, and whether torch's companions match this torch."""
    try:
        from packaging.requirements import Requirement
        from packaging.specifiers import SpecifierSet
    except ImportError:
        yield Finding("python", True, platform.python_version())
        yield Finding(
            "packages", False, "packaging is not installed, so no version can be checked; pip install packaging"
        )
        return
    there = platform.python_version()
    fits = SpecifierSet(python).contains(there, prereleases=True)
    yield Finding("python", fits, f"{there} (required: {python})")
    wrong = []
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(
                Finding("packages", False, f"{requirement.name} is not installed; pip install '{requirement}'")
            )
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(Finding("packages", False, f"{requirement.name} is {version}; pip install '{requirement}'"))
    yield from wrong or [Finding("packages", True, f"all {len(requirements)} are installed in suitable versions")]
    for name in ("torch", "torchvision"):
        try:
            __import__(name)
        except Exception as error:  # torchvision built for another torch fails in many ways
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            yield Finding(
                "packages", False, f"{name} cannot be imported: {reason}; install torch and torchvision together"
            )
            return


def _check_devices() -> Iterator[Finding]:
    try:
        import torch
    except ImportError:
        return  # already reported
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            size = torch.cuda.get_device_properties(i).total_memory / 2**30
            yield Finding("devices", True, f"GPU {i}: {torch.cuda.get_device_name(i)}, {size:.0f} GiB")
    elif Path("/dev/nvidia0").exists():
        yield Finding(
            "devices",
            False,
            f"torch {torch.__version__} cannot use the NVIDIA GPU; check its driver and the build of torch",
        )
    else:
        yield Finding("devices", True, "no GPU: trials run on the CPU")


def _check_threads() -> Finding:
    cores, threads = len(os.sched_getaffinity(0)), os.environ.get("OMP_NUM_THREADS", "")
    fits = not threads.isdecimal() or int(threads) <= cores
    more = "" if fits else f"; more threads than cores slow every trial: export OMP_NUM_THREADS={cores} or less"
    return Finding("threads", fits, f"{cores} cores for this process, OMP_NUM_THREADS={threads or 'unset'}{more}")


def _check_home(home: Home) -> Iterator[Finding]:
    if home.root.exists():
        try:
            home.check_writable()
            yield Finding("home", True, f"{home.root.resolve()} is writable")
        except LabError as error:
            yield Finding("home", False, str(error))
            return
        for path in sorted(home.root.glob("sweeps/*/manifest.json")):
            try:
                read_json(path)
            except (OSError, ValueError, RecursionError):
                yield Finding(
                    "home",
                    False,
                    f"{path} is damaged; move it away and re-run the sweep; finished trials are not retrained",
                )
    else:
        above = next(p for p in home.root.resolve().parents if p.is_dir())
        try:
            with tempfile.TemporaryFile(dir=above):
                pass
        except OSError as error:
            yield Finding(
                "home", False, f"{home.root} cannot be created: {above}: {error.strerror}; choose another with --home"
            )
            return
        yield Finding("home", True, f"{home.root} will be created by the first sweep")
    place = next(p for p in (home.root.resolve(), *home.root.resolve().parents) if p.is_dir())
    free = shutil.disk_usage(place).free
    enough = free >= _FREE_BYTES
    more = "" if enough else "; free at least 1 GiB; `dsd-lab gc` lists what can be deleted"
    yield Finding("disk", enough, f"{free / 2**30:.1f} GiB free{more}")


def _check_store(home: Home, uri: str | None, dry_run: bool) -> Iterator[Finding]:
    given = chosen_uri(uri)
    if not home.root.is_dir() or (given is None and not (home.root / "mlflow.db").exists()):
        yield Finding("store", True, "none yet; the first sweep creates it")
        return
    if warning := shared_sqlite_warning(home.root, given):
        yield Finding("store", True, warning)
    try:
        from dsd_lab.store.mlflow_store import Store  # imports MLflow: only if there is a store
    except ImportError as error:
        yield Finding("store", False, f"MLflow cannot be imported: {error}")
        return
    try:
        store = Store(home, uri)  # raises for an SQLite file with another schema
        yield Finding(
            "store",
            True,
            f"{without_password(str(store.uri), str(store.uri))} answers with the schema of this MLflow version",
        )
        orphans = store.close_orphans(dry_run)
    except LabError as error:
        yield Finding("store", False, str(error))
        return
    if orphans:
        names = ", ".join(orphans[:5]) + (", ..." if len(orphans) > 5 else "")
        what = f"{len(orphans)} runs marked RUNNING without a live process: {names}"
        end = "; `dsd-lab doctor` without --dry-run closes them" if dry_run else "; closed as KILLED"
        yield Finding("runs", not dry_run, what + end)
    else:
        yield Finding("runs", True, "no orphaned runs")
