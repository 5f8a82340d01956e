"""Which fields hold secrets, and how they are kept out of everything that is printed."""

from __future__ import annotations

import re

import msgspec

MASK = "***"

_SECRET = re.compile(
    r"(?:.*_)?(?:password|passwd|passphrase|secret|token|credentials|salt|"
    r"(?:api|access|secret|private|license|instrumentation|account|hash)_key|connection_string|dsn)"
)
_USERINFO = re.compile(r"(?<=://)[^/@\s]*@")


def is_secret(name: str) -> bool:
    """Tell whether a field of this name holds a secret. ``password_file`` holds a path and does not."""
    return _SECRET.fullmatch(name) is not None


def masked_url(text: str) -> str:
    """Give the text with the user and password of every URL in it hidden."""
    return _USERINFO.sub(MASK + "@", text)


def masked_repr(struct: msgspec.Struct) -> str:
    """Render a config section for people: secrets as ``***``, also those inside URLs and headers."""
    parts = []
    for name in struct.__struct_fields__:
        value = getattr(struct, name)
        if value and (is_secret(name) or name == "headers"):
            value = MASK
        parts.append(f"{name}={masked_url(repr(value))}")
    return f"{type(struct).__name__}({', '.join(parts)})"
