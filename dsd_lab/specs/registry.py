"""Registry of the parts that a spec can name: those of the package and those of plug-ins. Imports no torch.

A part is one definition, registered by a decorator:

    @NORMALISERS.add("tanh")
    class Tanh(Normaliser): ...

`part_kinds` lists the names of shipped parts, so that a spec can be read without importing them. A plug-in's parts are
known after it is loaded (`dsd_lab.specs.plugins`).
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from dsd_lab.errors import BadInput
from dsd_lab.specs.base import Section
from dsd_lab.specs.part_kinds import KINDS
from dsd_lab.specs.plugin_source import part_digest, source_digest

Made = TypeVar("Made")


@dataclass(frozen=True)
class Plugin:
    """A plug-in: one file, or an installed module or package."""

    name: str
    path: Path
    """Its file; for a package, the `__init__.py`."""
    module: str | None = None
    """Name to import; None for a file."""
    digest: str = ""
    """SHA-256 of its source, twelve hexadecimal digits."""
    source: bytes = field(default=b"", repr=False)
    """Content of the file; empty for a package."""

    @classmethod
    def read(cls, name: str, path: Path, module: str | None) -> Plugin:
        """The plug-in with the present content of its files."""
        source = b"" if path.name == "__init__.py" else path.read_bytes()
        return cls(name, path, module, source_digest(path), source)


@dataclass(frozen=True)
class Part:
    """A registered definition."""

    kind: str
    name: str
    made: Any
    """The function or class."""
    plugin: Plugin | None = None
    """The plug-in that defines it; None for a shipped part."""
    options: type[Section] | None = None
    """Model of its options; a spec gives them under `options.NAME` in the section that names the part."""
    traits: dict[str, Any] = field(default_factory=dict)
    """Properties that other code reads; the table of each kind lists them."""

    @property
    def summary(self) -> str:
        """First line of its docstring."""
        text = inspect.getdoc(self.made) or ""
        return text.splitlines()[0] if text else ""

    @property
    def where(self) -> str:
        """File and line of the definition."""
        try:
            return f"{inspect.getsourcefile(self.made)}:{inspect.getsourcelines(self.made)[1]}"
        except (OSError, TypeError):
            return str(self.plugin.path) if self.plugin else "dsd_lab"

    @property
    def digest(self) -> str:
        """Hash of the plug-in's source without its other parts, twelve hexadecimal digits; part of trial ids."""
        assert self.plugin is not None
        return part_digest(self.plugin.source, self.plugin.digest, self.kind, self.name)

    def takes(self, keyword: str) -> bool:
        """Whether the definition has a parameter of this name."""
        return keyword in _parameters(self.made)

    def fault(self, what: str) -> BadInput:
        """The error for an invalid plug-in part: one line with file and line."""
        return BadInput(f"{self.kind} {self.name!r} ({self.where}): {what}")


@cache
def _parameters(made: Callable[..., Any]) -> frozenset[str]:
    try:
        return frozenset(inspect.signature(made).parameters)
    except (TypeError, ValueError):  # a builtin
        return frozenset()


loading: list[Plugin] = []
"""Stack of plug-ins that are being loaded."""
plugins: dict[str, Plugin] = {}
"""Plug-ins of this process by name."""


class Parts(Mapping[str, Any]):
    """The parts of one kind: name -> function or class.

    Args:
        kind: a key of `KINDS`.
        check: (result, *positional arguments) of a plug-in's function -> message about what is wrong, or None.
        at_once: called with a plug-in's part when it is registered.
    """

    def __init__(
        self,
        kind: str,
        check: Callable[..., str | None] | None = None,
        at_once: Callable[[Part], None] | None = None,
    ) -> None:
        self.kind = kind
        self._check, self._at_once = check, at_once
        self._parts: dict[str, Part] = {}
        _TABLES[kind] = self

    def add(self, name: str, options: type[Section] | None = None, **traits: Any) -> Callable[[Made], Made]:
        """Decorator that registers a function or class under a name.

        Args:
            name: lower-case letters, digits and `_`.
            options: Pydantic model of the part's options.
            traits: properties that other code reads.

        Raises:
            BadInput: the name is taken or not valid, or the definition is not in a file.
        """
        frame = inspect.currentframe()
        assert frame is not None and frame.f_back is not None
        plugin = _registering(frame.f_back.f_globals)

        def register(made: Made) -> Made:
            part = Part(self.kind, name, made, plugin, options, traits)
            if plugin is not None:
                self._refuse(part)
            self._parts[name] = part
            if plugin is not None and self._at_once is not None:
                try:
                    self._at_once(part)
                except BaseException:
                    del self._parts[name]
                    raise
            return made

        return register

    def _refuse(self, part: Part) -> None:
        kind = KINDS[self.kind]
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", part.name):
            raise part.fault("a name has at most 64 lower-case letters, digits and '_', the first a letter")
        if part.name in (*kind.shipped, *kind.reserved):
            raise part.fault("this name is dsd-lab's own; take another")
        if lacking := sorted(getattr(part.made, "__abstractmethods__", ())):
            raise part.fault(f"does not define {', '.join(lacking)}, which every {part.kind} needs")
        if (before := self._parts.get(part.name)) is not None:
            raise part.fault(f"this name is defined at {before.where} already")
        clashes = {"auxiliary": "regulariser", "regulariser": "auxiliary"}
        other = _TABLES.get(clashes.get(self.kind, ""))
        if other is not None and part.name in other:
            raise part.fault(
                f"{other.part(part.name).where} defines a {other.kind} of this name, and losses are recorded by name"
            )

    def forget(self, plugin: Plugin) -> None:
        """Remove the parts of a plug-in that could not be loaded."""
        self._parts = {name: part for name, part in self._parts.items() if part.plugin != plugin}

    def part(self, name: str) -> Part:
        """The registered part."""
        return self._parts[name]

    def bound(self, name: str, section: Any) -> Any:
        """The definition with its options bound to the keyword `options`; the results of a plug-in are checked."""
        part = self._parts[name]
        options = options_of(part, section.options.get(name, {}))
        made = part.made if options is None else partial(part.made, options=options)
        return made if part.plugin is None or self._check is None else partial(_checked, part, made, self._check)

    def __getitem__(self, name: str) -> Any:
        return self._parts[name].made

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


_TABLES: dict[str, Parts] = {}


def _registering(module: dict[str, Any]) -> Plugin | None:
    """The plug-in whose module registers a part; None for the package."""
    name = str(module["__name__"])
    if name.partition(".")[0] == "dsd_lab":
        return None
    if loading:
        return loading[-1]
    # Imported like any module, for example by its own tests.
    if not module.get("__file__"):
        raise BadInput("parts are defined in a file, which is part of the identity of trials; write them into one")
    path = Path(module["__file__"]).resolve()
    known = path.parent.name if path.name == "__init__.py" else path.stem
    if known not in plugins:
        plugins[known] = Plugin.read(known, path, name)
    return plugins[known]


def _checked(part: Part, made: Any, check: Callable[..., str | None], *args: Any, **keywords: Any) -> Any:
    found = made(*args, **keywords)
    if (wrong := check(found, *args)) is not None:
        raise part.fault(wrong)
    return found


def parts_of(kind: str) -> Parts:
    """All parts of a kind; imports the module that defines the shipped ones."""
    importlib.import_module(KINDS[kind].module)
    return _TABLES[kind]


def tables() -> list[Parts]:
    """The tables of the kinds whose modules are imported."""
    return list(_TABLES.values())


def plugin_parts(kind: str | None = None) -> list[Part]:
    """The parts of loaded plug-ins, of one kind or of all."""
    every = (part for table in _TABLES.values() for part in table._parts.values())
    return [part for part in every if part.plugin is not None and kind in (None, part.kind)]


def find_plugin_part(kind: str, name: str) -> Part | None:
    """A plug-in's part; None for a shipped or an unknown part."""
    return next((part for part in plugin_parts(kind) if part.name == name), None)


def trait(kind: str, name: str, key: str, default: Any = None) -> Any:
    """A trait of a plug-in's part; the default for a shipped or an unknown part."""
    part = find_plugin_part(kind, name)
    return default if part is None else part.traits.get(key, default)


def shown_metrics() -> dict[str, dict[str, Any]]:
    """Label, unit and digits of plug-ins' metrics in reports, by recorded name."""
    found = {}
    for kind, place in (("latent_metric", "latent"), ("sample_metric", "sample")):
        for part in plugin_parts(kind):
            own = part.traits
            label = str(own.get("label", part.name.replace("_", " ")))
            shown = {"label": label, "unit": str(own.get("unit", "")), "digits": int(own.get("digits", 3))}
            found[f"{place}/{part.name}"] = shown | {"note": part.summary.rstrip(".")}
    return found


def names_of(kind: str) -> dict[str, list[str]]:
    """Plug-in -> names of its parts; shipped parts come first, under ""."""
    found = {"": list(KINDS[kind].shipped)}
    for part in plugin_parts(kind):
        assert part.plugin is not None
        found.setdefault(part.plugin.name, []).append(part.name)
    return found


def options_of(part: Part, given: dict[str, Any]) -> Section | None:
    """The validated options of a part; None if the part has none.

    Raises:
        ValueError: an option is unknown or not valid; the text names the key.
    """
    key = f"options.{part.name}"
    if part.options is None:
        if given:
            raise ValueError(f"{key}: {part.kind} {part.name!r} has no options")
        return None
    try:
        return part.options.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join([key, *map(str, first["loc"])])
        raise ValueError(f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}") from None
