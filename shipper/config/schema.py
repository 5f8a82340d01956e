"""The JSON Schema of the configuration, for editors, made of the same types that load it.

Component sections are told apart by ``type`` with if/then rather than oneOf, because an editor can then say which
key of that type is wrong. Every number and boolean may also be a ``${VAR}``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from shipper import registry
from shipper.config.convert import choices, description
from shipper.config.types import Config, HttpConfig, LogConfig
from shipper.errors import ConfigError
from shipper.routing.router import RouteConfig

_ANNOTATIONS: Final = ("title", "description", "default", "examples")
_VARIABLE: Final = {"type": "string", "pattern": r"\$\{"}


def schema(*, plugins: bool = True) -> dict[str, Any]:
    """Make the schema (draft 2020-12). Types whose package is not installed are left out."""
    sections: dict[str, Any] = {}
    definitions: dict[str, Any] = {}
    about = {field.name: description(field.type) for field in msgspec.structs.fields(Config)}
    for key, kind in (
        ("sources", registry.SOURCES),
        ("sinks", registry.SINKS),
        ("transforms", registry.TRANSFORMS),
    ):
        sections[key] = {"description": about[key], **_components(kind, definitions, plugins=plugins)}
    plain: tuple[tuple[str, type[Any]], ...] = (("http", HttpConfig), ("log", LogConfig))
    for key, cls in plain:
        sections[key] = {"description": about[key], **_reference(cls, definitions)}
    names = {"type": "array", "items": {"type": "string"}, "minItems": 1, "uniqueItems": True}
    sections["active"] = {"description": about["active"], "anyOf": [{"type": "string"}, names]}
    sections["routes"] = {
        "description": about["routes"],
        "type": "array",
        "items": _reference(RouteConfig, definitions),
    }
    sections["state_dir"] = {"description": about["state_dir"], "type": "string"}
    sections["shutdown_timeout"] = {"description": about["shutdown_timeout"], "type": ["string", "number"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of shipper",
        "type": "object",
        "properties": {
            field.name: sections[field.name] for field in msgspec.structs.fields(Config) if field.name in sections
        },
        "patternProperties": {"^x-": {}},
        "additionalProperties": False,
        "required": ["sources", "sinks"],
        "$defs": definitions,
    }


def _components(kind: registry.ComponentKind, definitions: dict[str, Any], *, plugins: bool) -> dict[str, Any]:
    rules = []
    known = []
    for name in registry.names(kind, plugins=plugins):
        try:
            cls = registry.load(kind, name).config
        except ConfigError:
            continue
        known.append(name)
        rules.append(
            {
                "if": {"properties": {"type": {"const": name}}, "required": ["type"]},
                "then": _reference(cls, definitions, f"{kind.noun}.{name}."),
            }
        )
    section = {"type": "object", "required": ["type"], "properties": {"type": {"enum": known}}, "allOf": rules}
    return {"type": "object", "minProperties": 0 if kind is registry.TRANSFORMS else 1, "additionalProperties": section}


def _reference(cls: type[Any], definitions: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Add the definitions of a class; the prefix keeps classes of the same name apart. Gives the reference to it."""
    (reference,), found = msgspec.json.schema_components(
        [cls], schema_hook=_hook, ref_template=f"#/$defs/{prefix}{{name}}"
    )
    for name, definition in found.items():
        for key, value in definition.get("properties", {}).items():
            definition["properties"][key] = _interpolated(value)
        definitions[prefix + name] = definition
    return reference


def _interpolated(value: dict[str, Any]) -> dict[str, Any]:
    words = choices(Annotated[str, msgspec.Meta(pattern=value["pattern"])]) if "pattern" in value else []
    if words:
        value = {key: value[key] for key in value if key != "pattern"} | {"enum": words}
    if value.get("type") not in {"integer", "number", "boolean"}:
        return value
    outer = {key: value[key] for key in value if key in _ANNOTATIONS}
    inner = {key: value[key] for key in value if key not in _ANNOTATIONS}
    return outer | {"anyOf": [inner, _VARIABLE]}


def _hook(cls: type[Any]) -> dict[str, Any]:
    if cls is Path:
        return {"type": "string"}
    raise NotImplementedError(f"{cls.__name__} has no schema")
