"""Events for tests, and batches of them as they cross."""

import json
from dataclasses import dataclass

from ..event import RECORD
from ..times import to_micros


@dataclass
class TestEvent:
    """An event to send. `event` makes one with less to say."""

    # Not a class of tests, whatever looks for some by name.
    __test__ = False

    aggregate: str
    agg_id: str
    version: int
    type: str
    payload: bytes
    at: int
    id: str
    schema_version: int = 1
    depth: int = 0
    scope: str = ""
    kind: str = ""
    cursor: str = ""
    traceparent: str = ""

    def json(self):
        """The payload, read."""
        return json.loads(self.payload)


def event(
    type: str,
    agg_id: str = "1",
    version: int = 1,
    payload=None,
    *,
    aggregate: "str | None" = None,
    at=None,
    id="",
    **rest,
) -> TestEvent:
    """An event. Its aggregate is what stands before the first `.` of its type; `payload` is written as JSON unless it
    is bytes; `at` is microseconds, RFC 3339 text or a `datetime`, and a second of 2026 for each version."""
    aggregate = aggregate or type.split(".")[0]
    if not isinstance(payload, bytes):
        payload = json.dumps({} if payload is None else payload, ensure_ascii=False).encode()
    at = to_micros("2026-01-01T00:00:00Z") + version * 1_000_000 if at is None else to_micros(at)
    return TestEvent(aggregate, agg_id, version, type, payload, at, id or f"{aggregate}/{agg_id}/{version}", **rest)


def read_events(path) -> "list[TestEvent]":
    """The events of a file, one of JSON a line, as `millrace publish` takes them."""
    with open(path, encoding="utf-8") as lines:
        return [_read(json.loads(line)) for line in lines if line.strip()]


def _read(members: dict) -> TestEvent:
    named = {name: members[name] for name in ("id", "schema_version", "scope", "kind", "cursor") if members.get(name)}
    return event(
        members["type"],
        members["agg_id"],
        members["version"],
        members.get("payload"),
        aggregate=members["aggregate"],
        at=members["at"],
        **named,
    )


def batch(events: "list[TestEvent]", position: int) -> "tuple[bytes, bytes]":
    """Arena and records; the first event has this position."""
    arena, records = bytearray(), bytearray()
    for number, sent in enumerate(events):
        start, ends = len(arena), []
        texts = (sent.id, sent.aggregate, sent.agg_id, sent.type, sent.scope, sent.kind, sent.cursor, sent.traceparent)
        for part in (*(text.encode() for text in texts), sent.payload):
            arena += part
            ends.append(len(arena) - start)
        numbers = (position + number, sent.version, sent.at, sent.schema_version, sent.depth)
        records += RECORD.pack(*numbers, start, *ends)
    return bytes(arena), bytes(records)
