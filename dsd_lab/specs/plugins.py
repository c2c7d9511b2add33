"""Loads plug-ins: the user's Python files or modules that define parts. A spec alone never loads code."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from dsd_lab.errors import BadInput
from dsd_lab.specs import registry
from dsd_lab.specs.registry import Plugin

VARIABLE, GROUP = "DSD_LAB_PLUGINS", "dsd_lab.parts"


def load_plugins(given: list[str]) -> None:
    """Load plug-ins: those given, and those of `DSD_LAB_PLUGINS` (separated by commas).

    Args:
        given: paths of `.py` files, names of modules, or names of entry points in the group `dsd_lab.parts`.

    Raises:
        BadInput: the file or module does not exist, or its code fails; the message has file and line.
    """
    named = [(f"--plugin {entry}", entry) for entry in given]
    listed = [entry.strip() for entry in os.environ.get(VARIABLE, "").split(",")]
    named += [(f"{VARIABLE}: {entry}", entry) for entry in listed if entry]
    for where, entry in named:
        _load(entry, where)


def load_kept(kept: list[dict[str, Any]]) -> None:
    """Load the plug-ins of another process in a worker, from the output of `home.plugins.keep_plugins`.

    Raises:
        BadInput: a plug-in cannot be loaded, or its source differs here.
    """
    for entry in kept:
        _load(entry["given"], f"plug-in {entry['name']}")
        here = registry.plugins[entry["name"]].digest
        if here != entry["digest"]:
            raise BadInput(f"plug-in {entry['name']}: the source here is {here}, the sweep's is {entry['digest']}")


def require(name: str, where: str) -> None:
    """Check that a plug-in that a spec requires is loaded; load it if it is installed.

    Raises:
        BadInput: the plug-in is neither loaded nor installed.
    """
    if name not in registry.plugins:
        if not _installed(name):
            raise BadInput(
                f"{where}: requires: plug-in {name!r} is not loaded; give its file with --plugin {name}.py, or in {VARIABLE}"
            )
        _load(name, f"{where}: requires: {name}")


def plugin_place(error: BaseException) -> str | None:
    """`FILE:LINE` of the innermost plug-in line in a traceback; None if there is none."""
    files = {
        str(plugin.path.parent if plugin.path.name == "__init__.py" else plugin.path)
        for plugin in registry.plugins.values()
    }
    files |= {str(plugin.path) for plugin in registry.loading}
    place, trace = None, error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if any(file == own or file.startswith(own + os.sep) for own in files):
            place = f"{file}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _installed(name: str) -> str | None:
    from importlib.metadata import entry_points  # takes 0.1 s, so imported only if a name is not a file

    return next((entry.value for entry in entry_points(group=GROUP, name=name)), None)


def _load(given: str, where: str) -> None:
    path = Path(os.path.expanduser(given)).resolve() if given.endswith(".py") or "/" in given else None
    if path is not None and not path.is_file():
        raise BadInput(f"{where}: no such file")
    module = None if path is not None else _installed(given) or given
    name = path.stem if path is not None else given.rpartition(".")[2]
    if path is None:
        path = _source_of(str(module), where)
    plugin = Plugin.read(name, path, module)
    if (known := registry.plugins.get(name)) is not None:
        if known.digest != plugin.digest:
            what = (
                "has changed since it was loaded; restart the program"
                if known.path == path
                else f"is loaded from {known.path}"
            )
            raise BadInput(f"{where}: a plug-in of the name {name!r} {what}")
        return
    registry.loading.append(plugin)
    try:
        _run(plugin)
    except BadInput as error:
        _forget(plugin)
        raise BadInput(f"{where}: {error}") from None
    except (Exception, SystemExit) as error:  # any error of the user's code becomes one line
        _forget(plugin)
        line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
        place = f"{path}:{line}" if line else plugin_place(error) or str(path)
        text = error.msg if isinstance(error, SyntaxError) else str(error)
        raise BadInput(f"{where}: {place}: {type(error).__name__}: {text}") from None
    finally:
        registry.loading.pop()
    registry.plugins[name] = plugin


def _forget(plugin: Plugin) -> None:
    for table in registry.tables():
        table.forget(plugin)


def _source_of(module: str, where: str) -> Path:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise BadInput(f"{where}: {error}") from None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise BadInput(f"{where}: no Python module of this name; a file is named with its .py")
    return Path(spec.origin).resolve()


def _run(plugin: Plugin) -> ModuleType:
    if plugin.module is not None:
        return importlib.import_module(plugin.module)
    spec = importlib.util.spec_from_file_location(f"dsd_lab_plugin_{plugin.name}", plugin.path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
