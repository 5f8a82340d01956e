"""What Loki's answers mean, and which entries of a push they concern.

Loki answers 400 to a push of which it stored all but some entries, and says only in words which rule those broke
(pkg/distributor/validator.go, pkg/ingester/stream.go). The words name the limit, the second and how many, which is
enough to find the entries. Where it is not, nothing is guessed: the delivery bisects, which Loki's own rule against
doubles makes safe.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from shipper.errors import ParkedError, PermanentError, SinkError
from sinks import _http

if TYPE_CHECKING:
    from sinks._http import Answer
    from sinks.loki.encode import Entry

#: The one status that means: stored. 200 and 260 do not (block_ingestion_status_code).
STORED = 204

_SECOND = 1_000_000_000
# The ingester's words: at most ten entries are listed, the total counts all.
_LISTED = re.compile(r"entry with timestamp .*? ignored, reason: '(.*?)',\n", re.DOTALL)
_TOTAL = re.compile(r"total ignored: (\d+) out of (\d+) for stream: ")
_BEHIND = "entry too far behind"
# The distributor's words, grouped by text; other texts may stand between them.
_COUNT = r"(?:(\d{1,9}) errors like: )?"
_AGE = re.compile(
    _COUNT + r"entry for stream '.*?' has timestamp too (old|new): (\S+?)(?:, oldest acceptable timestamp is: \S+?)?(?:; |\s*$)",
    re.DOTALL,
)  # fmt: skip
_LONG = re.compile(
    _COUNT + r"max entry size '?(\d+)'? bytes exceeded for stream '.*?' while adding an entry with length '?\d+'? bytes(?:; )?",
    re.DOTALL | re.IGNORECASE,
)  # fmt: skip
_METADATA = re.compile(
    r"includes structured metadata, but this feature is disallowed|has structured metadata too large"
    r"|has too many structured metadata labels"
)
_LABELS = re.compile(
    r"label names; limit|label name too long|label value too long|duplicate label name|error parsing labels"
    r"|missing required labels|at least one label pair|couldn't parse labels",
    re.IGNORECASE,
)
_TOO_LARGE = re.compile(r"received message larger than max")
_RATE = re.compile(
    r"ingestion rate limit exceeded.*?\(limit: (\d+) bytes/sec\).*?totaling '(\d+)' bytes", re.IGNORECASE | re.DOTALL
)
_STREAMS = re.compile(r"maximum active stream limit exceeded", re.IGNORECASE)


class Verdict(msgspec.Struct):
    """What became of the entries of one push. Every entry not named was stored.

    ``refused`` by place; ``late`` are places of entries that belong into a backfill stream; ``most_line`` is what the
    server takes of a line, and ``long`` the places of those above; ``whole`` is the error of all entries; ``split`` says
    that the push was too large; ``confirm`` that what is not named may have been refused in silence.
    """

    refused: dict[int, SinkError] = {}
    late: Sequence[int] = ()
    long: Sequence[int] = ()
    most_line: int = 0
    whole: SinkError | None = None
    split: bool = False
    confirm: bool = False


def judge(answer: Answer, entries: Sequence[Entry], what: str) -> Verdict:
    """Read an answer, other than `STORED`, to a push of ``entries`` of one stream."""
    text = answer.body.decode("utf-8", "replace")
    error = _http.refusal(answer, what)
    if answer.status == 429:
        rate = _RATE.search(text)
        if rate and int(rate[2]) > int(rate[1]) and len(entries) > 1:
            return Verdict(split=True)
        if _STREAMS.search(text):
            return Verdict(
                whole=ParkedError(
                    f"{error}; use fewer labels or label values, or raise max_global_streams_per_user", code="429"
                )
            )
    if answer.status == 413 or (answer.status == 500 and _TOO_LARGE.search(text)):
        return Verdict(split=True) if len(entries) > 1 else Verdict(whole=PermanentError(str(error), code=error.code))
    if answer.status == 400:
        return _behind(text, entries) or _refused(text, entries, what) or Verdict(whole=error)
    return Verdict(whole=error)


def _behind(text: str, entries: Sequence[Entry]) -> Verdict | None:
    total = _TOTAL.search(text)
    reasons = _LISTED.findall(text)
    if total is None or not reasons or not all(reason.startswith(_BEHIND) for reason in reasons):
        return None
    # One stream, and no entry of it makes another late: so the oldest are those that were refused.
    by_age = sorted(range(len(entries)), key=lambda place: entries[place].time_ns)
    # The ingester's answer hides that of the distributor.
    return Verdict(late=sorted(by_age[: int(total[1])]), confirm=True)


def _refused(text: str, entries: Sequence[Entry], what: str) -> Verdict | None:
    quoted = " ".join(text.split())[: _http.QUOTED]
    if _METADATA.search(text):
        fix = "raise Loki's limits_config for structured metadata, or give structured_metadata: id or none here"
        return Verdict(whole=ParkedError(f"{what}: {quoted}; {fix}", code="400"))
    if _LABELS.search(text):
        return Verdict(whole=ParkedError(f"{what}: {quoted}; mend the sink's labels or Loki's limits", code="400"))
    rest = _LONG.sub("", _AGE.sub("", text))
    if rest.strip(" ;\n"):
        return None
    verdict = Verdict(refused={})
    by_second: dict[int, list[int]] = defaultdict(list)
    for place, entry in enumerate(entries):
        by_second[entry.time_ns // _SECOND].append(place)
    for count, kind, at in _AGE.findall(text):
        number = int(count or 1)
        try:
            second = int(datetime.fromisoformat(at).timestamp())
        except ValueError:
            return None
        places = sorted(by_second[second], key=lambda place: entries[place].time_ns, reverse=kind == "new")
        if len(places) < number:
            return None
        refused = PermanentError(
            f"{what}: timestamp too {kind}: {at}; Loki's limits_config forbids it", code="400", certain=True
        )
        verdict.refused |= dict.fromkeys(places[:number], refused)
    if limits := _LONG.findall(text):
        verdict.most_line = min(int(most) for _, most in limits)
        verdict.long = [
            place for place, entry in enumerate(entries)
            if place not in verdict.refused and len(entry.line.encode("utf-8", "replace")) > verdict.most_line
        ]  # fmt: skip
        if len(verdict.long) < sum(int(count or 1) for count, _ in limits):
            return None
    return verdict if verdict.refused or verdict.long else None
