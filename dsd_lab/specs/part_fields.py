"""Fields of a spec that name parts: checked against the names of shipped parts and of loaded plug-ins."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Self, get_args

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from dsd_lab.specs.base import Section
from dsd_lab.specs.part_kinds import KINDS
from dsd_lab.specs.registry import find_plugin_part, names_of, options_of, plugin_parts

PART_KIND = "x-part"
"""Key that marks names of parts in a JSON Schema; removed from the schema for users."""
PART_NAME = r"^[a-z][a-z0-9_]{0,63}$"
_unknown_pass: ContextVar[bool] = ContextVar("unknown_pass", default=False)


@contextlib.contextmanager
def unknown_parts_pass() -> Iterator[None]:
    """Context in which names of unknown parts are valid. An import reads records of plug-ins without loading them."""
    token = _unknown_pass.set(True)
    try:
        yield
    finally:
        _unknown_pass.reset(token)


class Choice:
    """Annotation of a field that names a part: `Annotated[str, Choice("target")]`."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def _check(self, value: Any) -> str:
        if isinstance(value, str) and not value.isprintable() and any("\ud800" <= c <= "\udfff" for c in value):
            raise PydanticKnownError("string_unicode")
        known = isinstance(value, str) and value in all_names(self.kind)
        if not known and not (_unknown_pass.get() and isinstance(value, str) and re.fullmatch(PART_NAME, value)):
            raise PydanticKnownError("literal_error", {"expected": expected(self.kind)})
        return str(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        names = all_names(self.kind)
        return {"type": "string", PART_KIND: self.kind, **({"enum": names} if names else {"not": {}})}


def all_names(kind: str) -> list[str]:
    """All names that a field may have. Shipped auxiliary losses are excluded: their weights have fields of their own."""
    return [n for plugin, names in names_of(kind).items() for n in names if plugin or kind != "auxiliary"]


def expected(kind: str) -> str:
    """Valid names for a message: `'l1' or 'l2', or from my_parts: 'huber'`."""
    given = {plugin: names for plugin, names in names_of(kind).items() if names and (plugin or kind != "auxiliary")}
    texts = []
    if own := given.pop("", []):
        quoted = [f"'{name}'" for name in own]
        texts.append(" or ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]])))
    texts += [f"from {plugin}: " + ", ".join(f"'{n}'" for n in names) for plugin, names in given.items()]
    return (
        ", or ".join(texts)
        or f"a {kind.replace('_', ' ')} of a plug-in, and none is loaded: give its file with --plugin"
    )


class PartSection(Section):
    """A section with fields that name parts, and options of those parts."""

    options: dict[str, dict[str, Any]] = {}
    """Options of plug-ins' parts that this section names, by the part's name."""

    def named_parts(self) -> list[tuple[str, str]]:
        """Kind and name of each part that this section names."""
        found = []
        for name, info in type(self).model_fields.items():
            kind, value = kind_of_field(info), getattr(self, name)
            if kind is not None and value is not None:
                found += [(kind, part) for part in ([value] if isinstance(value, str) else value)]
        return found

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        if not self.options or _unknown_pass.get():
            return self
        kept = {}
        for name, given in self.options.items():
            kinds = [kind for kind, named in self.named_parts() if named == name]
            if not kinds:
                raise ValueError(f"options.{name}: this section names no part {name!r}")
            part = next((own for kind in kinds if (own := find_plugin_part(kind, name)) is not None), None)
            if part is None:
                raise ValueError(f"options.{name}: {kinds[0]} {name!r} is the package's and has no options here")
            found = options_of(part, given)
            if found is not None and (changed := found.model_dump(mode="json", exclude_defaults=True)):
                kept[name] = changed
        object.__setattr__(self, "options", kept)  # an explicit default does not change the id
        return self


def kind_of_field(info: FieldInfo) -> str | None:
    """The kind of part that a field names; None if it names no part."""
    inside = [m for argument in get_args(info.annotation) for m in _metadata(argument)]
    return next((m.kind for m in (*info.metadata, *inside) if isinstance(m, Choice)), None)


def _metadata(annotation: Any) -> list[Any]:
    """Annotations of a type and of its arguments."""
    found = list(getattr(annotation, "__metadata__", ()))
    return found + [
        m for argument in get_args(annotation) if not isinstance(argument, str) for m in _metadata(argument)
    ]


def kinds_in(section: type[Section]) -> dict[str, str]:
    """The kind of part that each field of a section names."""
    return {name: kind for name, info in section.model_fields.items() if (kind := kind_of_field(info)) is not None}


def is_foreign(kind: str, name: str) -> bool:
    """Whether a part belongs to a plug-in, loaded or not."""
    return name not in KINDS[kind].shipped


def own_parts(canonical: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Plug-ins' parts that train or measure a trial: `kind/name` -> plug-in, its file and the part's digest.

    Args:
        canonical: the trial's canonical fields.
    """
    used, found = canonical.get("plugins", {}), {}
    for part in plugin_parts():
        key = f"{part.kind}/{part.name}"
        if part.plugin is not None and (key in used or part.kind in ("latent_metric", "sample_metric", "sampler")):
            found[key] = {"plugin": part.plugin.name, "file": part.plugin.path.name, "digest": part.digest}
    return found
