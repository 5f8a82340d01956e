"""Names of log groups and streams: templates that are filled in from a resource."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import xxhash

if TYPE_CHECKING:
    from shipper.record import Resource

#: The longest name of a group or stream (CloudWatch Logs API reference).
LONGEST = 512
#: What a template may name besides attributes of the resource.
WORDS = frozenset(["service", "container", "stream", "host", "source"])

_PLACE = re.compile(r"\{([^{}]*)\}")
_NOT_IN_GROUP = re.compile(r"[^.\-_/#A-Za-z0-9]")
# The service forbids the colon and the asterisk; control characters would only confuse whoever types the name.
_NOT_IN_STREAM = re.compile(r"[:*\x00-\x1f\x7f]")
_RESERVED = "aws/"


class Template:
    """The name of a group or stream. Raises ValueError, naming the option, when no name could come of it.

    ``{service}``, ``{container}``, ``{stream}``, ``{host}``, ``{source}`` and attributes such as
    ``{container.image.name}`` are filled in. A service or container that is not known is told by the other, or by the
    source; anything else that is not known is ``-``.
    """

    def __init__(self, option: str, text: str) -> None:
        self.text = text
        self._bad = _NOT_IN_GROUP if option == "log_group" else _NOT_IN_STREAM
        places = _PLACE.findall(text)
        fixed = _PLACE.sub("", text)
        for word in places:
            if word not in WORDS and "." not in word:
                known = ", ".join(sorted(WORDS))
                raise ValueError(
                    f"{option}: {{{word}}} is neither one of {known} nor an attribute such as container.id"
                )
        if "{" in fixed or "}" in fixed:
            raise ValueError(f"{option}: a brace without its partner in {text!r}")
        found = self._bad.search(fixed)
        if found:
            allowed = "letters, digits and . - _ / #" if option == "log_group" else "anything but : and *"
            raise ValueError(f"{option}: {found[0]!r} cannot stand in it; allowed is {allowed}")
        if not text or len(fixed) > LONGEST:
            raise ValueError(f"{option}: 1 to {LONGEST} characters, not {len(fixed)}")
        if option == "log_group" and text.startswith(_RESERVED):
            raise ValueError(f"{option}: names that begin with {_RESERVED} are AWS's own; /{_RESERVED} is allowed")
        #: Whether the name is the same for every resource.
        self.fixed = not places
        #: What every name begins with.
        self.prefix = text.partition("{")[0]
        parts = [re.escape(part) for part in _PLACE.sub("\0", text).split("\0")]
        # The first place where a part is found is as good as any later one, so none is tried again.
        middle = "".join(f"(?>.+?{part})" for part in parts[1:-1])
        end = f".+{parts[-1]}" if parts[1:] else ""
        self._pattern = re.compile(parts[0] + middle + end, re.DOTALL)

    def name(self, resource: Resource) -> str:
        """Give the name for a resource. What a name cannot hold becomes ``_``; an end too long becomes a hash."""
        if self.fixed:
            return self.text
        name = _PLACE.sub(lambda place: self._bad.sub("_", _value(resource, place[1])), self.text)
        if self._bad is _NOT_IN_GROUP and name.startswith(_RESERVED):
            name = "_" + name
        if len(name) > LONGEST:
            end = xxhash.xxh3_64_hexdigest(name.encode())
            name = f"{name[: LONGEST - len(end) - 1]}-{end}"
        return name

    def may_give(self, name: str) -> bool:
        """Tell whether this template may have given a name; says yes rather than no."""
        if len(name) == LONGEST or name.startswith("_" + _RESERVED):
            return True
        return self._pattern.fullmatch(name) is not None


def _value(resource: Resource, word: str) -> str:
    if word == "service":
        value = resource.service or resource.container or resource.source
    elif word == "container":
        value = resource.container or resource.service or resource.source
    elif word in WORDS:
        value = str(getattr(resource, word))
    else:
        value = resource.attributes.get(word, "")
    return value or "-"
