"""Combined access-log lines of the common form, many cut at once."""

from __future__ import annotations

from itertools import repeat
from operator import add
from typing import Final, NamedTuple

from shipper.parse.lines import has_surrogates, severity_of_status
from shipper.parse.times import Clocks

_SPACE: Final = {" "}
_EMPTY: Final = {""}
#: Spaces in each line's head, in its request, and in its status and size.
_IN_HEAD, _IN_REQUEST, _IN_SIZES = {5}, {2}, {3}
#: Characters of a zone and its bracket: +0000].
_ZONE: Final = {6}
#: Quotes in a combined access-log line, digits of a size that surely fits 64 bits, and the longest user.
_QUOTES, _LONGEST, _LONGEST_USER = 6, 18, 256
_PROTOCOLS: Final = {f"HTTP/{version}": version for version in ("0.9", "1.0", "1.1", "2", "2.0", "3", "3.0")}
_STATUSES: Final = {str(code): (code, severity_of_status(code)) for code in range(100, 600)}


class Requests(NamedTuple):
    """The fields of many lines as columns. ``starts`` are nanoseconds at the second of each line's time, ``codes`` pairs
    of status and severity; sizes are texts of digits.
    """

    clients: list[str]
    users: list[str]
    starts: list[int]
    methods: list[str]
    targets: list[str]
    versions: list[str]
    codes: list[tuple[int, int]]
    sizes: list[str]
    referers: list[str]
    agents: list[str]


def may_be_request(line: str) -> bool:
    """Tell whether a line is worth cutting: cheap, and true of every line of the common form."""
    return '] "' in line and line.count('"') == _QUOTES and "\\" not in line


def cut(lines: list[str], clocks: Clocks) -> Requests | None:
    """Cut lines of which `may_be_request` is true; ``None`` if one of them is not of the common form.

    ``client ident user [date zone] "method target protocol" status size "referer" "agent"``

    Each line is held to the form by itself, so that what becomes of one never depends on the others.
    """
    # Each line has six quotes and so gives seven pieces, the last of them empty: they stand at fixed places.
    whole = '"'.join(lines)
    pieces = whole.split('"')
    beginnings, requests, endings = pieces[0::7], pieces[1::7], pieces[2::7]
    spaces = repeat(" ")
    if (
        set(map(str.count, requests, spaces)) != _IN_REQUEST
        or set(map(str.count, beginnings, spaces)) != _IN_HEAD
        or set(map(str.count, endings, spaces)) != _IN_SIZES
        or set(pieces[4::7]) != _SPACE
        or any(pieces[6::7])
    ):
        return None
    # The same once more with words: five of each head, three of each request, and status and size between spaces.
    head = "".join(beginnings)
    heads, words, tails = head.split(" "), " ".join(requests).split(" "), "".join(endings).split(" ")
    if set(tails[0::3]) != _EMPTY:
        return None
    # Other white space, a line break anywhere, an ident in brackets (that is a fallback line's level), users without end
    # and half characters are for `LineParser`, which takes few of them.
    if (
        "\n" in whole
        or head.split() != heads[:-1]
        or head.count(" [") != len(lines)
        or max(map(len, heads[2::5])) > _LONGEST_USER
        or (not whole.isascii() and has_surrogates(whole))
    ):
        return None
    try:
        codes = [_STATUSES[text] for text in tails[1::3]]
        versions = [_PROTOCOLS[text] for text in words[2::3]]
    except KeyError:
        return None
    sizes, targets, zones = tails[2::3], words[1::3], heads[4::5]
    dates = list(map(add, heads[3::5], zones))
    known = {date: clocks.bracketed(date) for date in set(dates)}
    if (
        not "".join(sizes).isdecimal()
        or "" in sizes
        or "" in targets
        or max(map(len, sizes)) > _LONGEST
        or set(map(len, zones)) != _ZONE
        or None in known.values()
    ):
        return None
    starts = [known[date] or 0 for date in dates]
    return Requests(
        heads[0:-1:5], heads[2::5], starts, words[0::3], targets, versions, codes, sizes, pieces[3::7], pieces[5::7]
    )
