"""The command line: `dsd-lab VERB`. Heavy imports are left to the verbs."""

from __future__ import annotations

import gc
import importlib
import keyword
import os
import sys
from types import ModuleType

from dsd_lab.cli.parser import parse
from dsd_lab.errors import BAD_INPUT, INTERRUPTED, NO_RESOURCES, UNEXPECTED, LabError, is_disk_full, is_not_permitted
from dsd_lab.files.bounded import BadFile
from dsd_lab.files.printable import printable
from dsd_lab.provenance import remember_call
from dsd_lab.store import SHORT_TIMEOUTS


def main(argv: list[str] | None = None) -> int:
    """Run a verb and return the exit code."""
    words = sys.argv[1:] if argv is None else argv
    arguments = parse(words)
    remember_call(words)
    for name, value in {"OMP_NUM_THREADS": "1", **SHORT_TIMEOUTS}.items():  # before torch: trials set their own threads
        os.environ.setdefault(name, value)
    try:
        if hasattr(arguments, "plugin"):
            from dsd_lab.specs.plugins import load_plugins  # imports Pydantic, which `--help` does not need

            load_plugins(arguments.plugin)
        return int(_loaded(module_of(arguments.verb), argv is None).run(arguments))
    except LabError as error:
        _print_error(f"{error}")
        return error.exit_code
    except KeyboardInterrupt:
        _print_error("interrupted; the same command resumes")
        return INTERRUPTED
    except BrokenPipeError:  # `dsd-lab plan | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNEXPECTED
    except ModuleNotFoundError as error:
        if (error.name or "dsd_lab").partition(".")[0] == "dsd_lab":
            raise
        _print_error(f"{error.name} is not installed; `dsd-lab doctor` lists missing packages")
        return NO_RESOURCES
    except BadFile as error:
        _print_error(f"{error.filename}: {error.strerror}")
        return BAD_INPUT
    except OSError as error:
        if not is_disk_full(error):
            return _explain(error)
        _print_error(f"the disk is full: {error}; finished work is not lost")
        return NO_RESOURCES
    except Exception as error:
        return _explain(error)


def _explain(error: Exception) -> int:
    """Print a line for an exception raised in a plug-in's code, or for a file of another user; raise others again."""
    from dsd_lab.specs.plugins import plugin_place

    place = plugin_place(error)
    if place is None:
        if not is_not_permitted(error):
            raise error
        _print_error(f"{os.fsdecode(error.filename)}: {error.strerror} for the user with id {os.geteuid()}")
        return NO_RESOURCES
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    _print_error(f"{place}: {type(error).__name__}: {text}")
    return BAD_INPUT


def _print_error(text: str) -> None:
    print(printable(f"dsd-lab: {text}"), file=sys.stderr)


def module_of(verb: str) -> str:
    """The module of a verb; `import` is a keyword, so its file has another name."""
    name = verb.replace("-", "_")
    return f"dsd_lab.cli.{name}_" if keyword.iskeyword(name) else f"dsd_lab.cli.{name}"


def _loaded(verb: str, whole_process: bool) -> ModuleType:
    """Import a verb's module without garbage collection, which takes a tenth of the time and frees nothing.

    If the process runs nothing else, imported objects are also excluded from later collections.
    """
    gc.disable()
    try:
        return importlib.import_module(verb)
    finally:
        if whole_process:
            gc.freeze()
        gc.enable()
