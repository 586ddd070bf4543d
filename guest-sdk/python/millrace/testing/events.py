"""Events for tests, and batches of them as they cross."""

import json
from binascii import b2a_base64
from dataclasses import dataclass, replace

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

    @classmethod
    def entry(cls, process: str, channel: str, position: int, sender: str, payload, **rest) -> "TestEvent":
        """An entry of a channel, as the host tells it: `data`, at this place, with this text or these bytes. Its number
        is its place, and nobody executes the channel. `rest` is what `event` takes: `at`, `id` and so on."""
        payload = payload.encode() if isinstance(payload, str) else bytes(payload)
        members = {"payload": b2a_base64(payload, newline=False).decode()}
        try:
            members["text"] = payload.decode()
        except UnicodeDecodeError:
            pass
        return _of_entry("data", process, channel, position, sender, members, rest)

    @classmethod
    def entry_end(cls, process: str, channel: str, position: int, sender: str, **rest) -> "TestEvent":
        """The end of a sender's half of a channel."""
        return _of_entry("end", process, channel, position, sender, {}, rest)

    @classmethod
    def entry_error(cls, process: str, channel: str, position: int, sender: str, error: str, **rest) -> "TestEvent":
        """The same half, ended by what went wrong."""
        return _of_entry("error", process, channel, position, sender, {"error": error}, rest)

    def executed_by(self, executor: str) -> "TestEvent":
        """The same entry of a channel that is executed by this party; a plugin is `plugin:<name>`."""
        payload = json.dumps({**self.json(), "executorid": executor}, ensure_ascii=False)
        return replace(self, payload=payload.encode())

    def json(self):
        """The payload, read."""
        return json.loads(self.payload)


def _of_entry(type, process, channel, position, sender, members, rest) -> TestEvent:
    payload = {
        "process": process,
        "channel": channel,
        "position": position,
        "epoch": 0,
        "sequence": position,
        "senderid": sender,
        "type": type,
        "payload": None,
        **members,
    }
    return event(f"channel.{type}", f"{process}_{channel}", position, payload, **rest)


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
