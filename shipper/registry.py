"""Names to classes: the only place that loads sinks, sources and transforms, by name and on demand.

A sink named ``x`` is the module ``sinks.x`` (attributes ``SINK`` and, when it can read back, ``READER``), or else
an entry point ``x`` in the group ``shipper.sinks`` that names such a module or the class itself. Sources
(``shipper.sources.x``, ``SOURCE``) and transforms (``shipper.transforms.x``, ``TRANSFORM``) follow the same rule.
Listing imports nothing but the package that holds them.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
from typing import TYPE_CHECKING, Any, cast

import msgspec

from shipper.errors import ConfigError
from shipper.reader import Reader
from shipper.sink import Sink
from shipper.source import Source
from shipper.transform import Transform

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint
    from types import ModuleType

_NAME = re.compile(r"[a-z][a-z0-9_]*")


class ComponentKind(msgspec.Struct, frozen=True):
    """One kind of component: the package it lives in, the attribute that names its class, its entry points."""

    noun: str
    package: str
    attribute: str
    base: type
    group: str


SINKS = ComponentKind("sink", "sinks", "SINK", Sink, "shipper.sinks")
SOURCES = ComponentKind("source", "shipper.sources", "SOURCE", Source, "shipper.sources")
TRANSFORMS = ComponentKind("transform", "shipper.transforms", "TRANSFORM", Transform, "shipper.transforms")


def sink(name: str) -> type[Sink]:
    """Give the sink class of a type name. Raises ConfigError when there is none or its SDK is missing."""
    return cast("type[Sink]", load(SINKS, name))


def reader(name: str) -> type[Reader] | None:
    """Give the reader class of a sink type, or ``None`` when it cannot be read back. Raises ConfigError."""
    return cast("type[Reader] | None", getattr(_module(SINKS, name), "READER", None))


def source(name: str) -> type[Source]:
    """Give the source class of a type name. Raises ConfigError when there is none."""
    return cast("type[Source]", load(SOURCES, name))


def transform(name: str) -> type[Transform]:
    """Give the transform class of a type name. Raises ConfigError when there is none."""
    return cast("type[Transform]", load(TRANSFORMS, name))


def lacks_package(kind: ComponentKind, name: str) -> bool:
    """Tell whether a type of this name exists, but not the package that it needs."""
    try:
        _module(kind, name)
    except ConfigError as error:
        return isinstance(error.__cause__, ModuleNotFoundError)
    return False


def names(kind: ComponentKind, *, plugins: bool = True) -> list[str]:
    """Give the names of all types of a kind, sorted, without importing them; ``plugins`` adds entry points."""
    package = importlib.import_module(kind.package)
    built_in = {module.name for module in pkgutil.iter_modules(package.__path__) if _NAME.fullmatch(module.name)}
    if not plugins:
        return sorted(built_in)
    return sorted(built_in | {point.name for point in _entry_points(kind) if _NAME.fullmatch(point.name)})


def load(kind: ComponentKind, name: str) -> type[Any]:
    """Give the class of a type name of any kind. Raises ConfigError."""
    found = _module(kind, name)
    cls = found if isinstance(found, type) else getattr(found, kind.attribute, None)
    if not isinstance(cls, type) or not issubclass(cls, kind.base):
        where = getattr(found, "__name__", repr(found))
        raise ConfigError(
            f"{kind.noun} type {name!r}: {where} does not say {kind.attribute} = a class derived from"
            f" {kind.base.__module__}.{kind.base.__name__}; this is a fault of that {kind.noun}, not of the config"
        )
    return cls


def _module(kind: ComponentKind, name: str) -> ModuleType | type[Any]:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot be a {kind.noun} type: small letters, digits and _ only, such as 'file'")
    path = f"{kind.package}.{name}"
    extra = ""
    try:
        if importlib.util.find_spec(path) is not None:
            extra = f"shipper[{name}]"
            return importlib.import_module(path)
        for point in _entry_points(kind):
            if point.name == name:
                return cast("ModuleType | type[Any]", point.load())
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in {"shipper", "sinks"}:
            raise
        raise ConfigError(
            f"{kind.noun} type {name!r} needs the package {missing!r}, which is not installed:"
            f" pip install '{extra or missing}'"
        ) from error
    raise ConfigError(f"unknown {kind.noun} type {name!r}; {suggestion(name, names(kind), noun='types')}")


def suggestion(word: str, known: list[str], *, noun: str) -> str:
    """Say which known word was probably meant, or which there are."""
    import difflib  # noqa: PLC0415 - only a mistake pays for it

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known {noun}: {', '.join(known)}" if known else f"there are no {noun}"


def _entry_points(kind: ComponentKind) -> list[EntryPoint]:
    from importlib.metadata import entry_points  # noqa: PLC0415 - slow to import, and built-in types need none of it

    return list(entry_points(group=kind.group))
