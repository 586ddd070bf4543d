"""The driver: feeds a processor and keeps what it asks for, as the host would."""

import copy
from collections import namedtuple
from dataclasses import dataclass

from .. import ambient
from .. import manifest as _manifest
from .. import plain as world
from ..effects import APPEND, DELETE, EMIT, PUT, RECORD, STATE_DELETE, STATE_PUT
from ..failure import Failure, Refused
from ..instance import Instance
from ..state import Saved
from . import rows as _rows
from .events import TestEvent, batch

# In tests as in a component, clocks and chance answer by the event at hand.
ambient.install_clocks()
ambient.install_chance()

Message = namedtuple("Message", "level text")


@dataclass
class Appended:
    """An entry that the processor appended to a channel."""

    process: str
    channel: str
    type: str
    in_reply_to: "int | None"
    error: "str | None"
    payload: "bytes | None"


class Failed(Exception):
    """An event that a processor did not handle. What came after it was not handed to it."""

    def __init__(self, index: int, failure: Failure):
        super().__init__(f"event {index}: {failure}")
        self.index, self.failure = index, failure

    def __eq__(self, other) -> bool:
        return isinstance(other, Failed) and str(self) == str(other)


class Driver:
    """Runs one task of a processor. `Refused` is raised where it refuses what it is given."""

    def __init__(self, processor: type, *, config=None, saved=None, state=None, tenant="test", lane=0, lanes=1):
        """`saved` is a `Saved`, `state` maps keys to values, or to pairs of a value and its expiry."""
        self._class = processor
        self._context = world.Context(tenant, lane, lanes)
        entries = {key: entry if isinstance(entry, tuple) else (entry, 0) for key, entry in (state or {}).items()}
        self._host = world.Host(dict(config or {}), entries)
        self._manifest = _manifest.to_wire(processor.manifest)
        self._tables = {table.name: {} for table in self._manifest.tables}
        self._deleted = {table.name: {} for table in self._manifest.tables}
        self._position = 0
        # What was emitted and appended, in order; and writes to versioned tables that were left out as stale.
        self.emitted, self.appended, self.stale = [], [], 0
        self._instance = self._start(self._host, saved)

    def send(self, *events) -> None:
        """Hands events, or lists of them, over in one batch, whatever the subscription says. After a failure, which is
        raised as `Failed`, the effects and the state of the events before it stand."""
        events = [event for some in events for event in (some if isinstance(some, list) else [some])]
        arena, records = batch(events, self._position + 1)
        before = self.saved()
        outcome = self._call(self._host, self._instance.handle, arena, records)
        failure = outcome.failure
        if failure is None:
            assert outcome.handled == len(events), "without a failure all events are handled"
        else:
            assert failure.index == outcome.handled, "a failure is about the event after the handled ones"
            self._check_unchanged(before, arena, records[: outcome.handled * (len(records) // len(events))])
        self._position += outcome.handled
        self._apply(outcome.effects, events)
        if failure is not None:
            raise Failed(failure.index, Failure(failure.kind.name.lower(), failure.message))

    def send_singly(self, *events) -> None:
        """The same, one by one, each in a batch of its own."""
        events = [event for some in events for event in (some if isinstance(some, list) else [some])]
        for index, event in enumerate(events):
            try:
                self.send(event)
            except Failed as failed:
                raise Failed(index, failed.failure) from None

    def flush(self, reason: str = "tick") -> None:
        """Calls `flush`. A failure is raised."""
        try:
            effects = self._call(self._host, self._instance.flush, world.FlushReason[reason.upper()])
        except world.Err as err:
            raise Failure(err.value.kind.name.lower(), err.value.message) from None
        self._apply(effects, [])

    def restart(self) -> None:
        """Ends the instance and starts another from its snapshot, as after a crash."""
        saved = self.saved()
        self._instance = self._start(self._host, saved)
        assert self.saved() == saved, "a snapshot that was loaded gives another snapshot"

    def saved(self) -> "Saved | None":
        """What the processor would restart from; None for one that declares no state."""
        if self._manifest.state_content_type is None:
            return None
        state = self._call(self._host, self._instance.snapshot)
        again = self._call(self._host, self._instance.snapshot)
        assert state == again, "two snapshots in a row differ: is there a set in it?"
        return Saved(self._manifest.state_content_type, state)

    def rows(self, table: str) -> dict:
        """The rows of a table, by key."""
        return self._tables[table]

    def row(self, table: str, key: str) -> "_rows.Row | None":
        """One row."""
        return self._tables[table].get(key)

    @property
    def state(self) -> dict:
        """The keyed state, entries included that are gone by now and that no event has asked for."""
        return {key: value for key, (value, _) in self._host.state.items()}

    @property
    def messages(self) -> "list[Message]":
        """What was logged."""
        return [Message(*message) for message in self._host.messages]

    @property
    def processor(self):
        """The processor, for tests that look inside."""
        return self._instance._processor

    def _start(self, host, saved) -> Instance:
        instance = Instance(self._class)
        shape = None if saved is None else world.SavedState(saved.content_type, saved.state)
        try:
            self._call(host, instance.load, self._context, shape)
        except world.Err as err:
            raise Refused(err.value) from None
        return instance

    def _call(self, host, function, *arguments):
        world.enter(host)
        try:
            return function(*arguments)
        finally:
            world.leave()
            ambient.end()

    def _check_unchanged(self, before, arena: bytes, handled: bytes) -> None:
        """A processor that started from the state before the batch and saw only the events before the failing one must
        be where this one is."""
        if before is None:
            return
        host = world.Host(self._host.config, copy.copy(self._host.state))
        other = self._start(host, before)
        outcome = self._call(host, other.handle, arena, handled)
        assert outcome.failure is None, "the events before the failing one are handled again"
        assert self._call(host, other.snapshot) == self.saved().state, (
            "the event that failed has changed the state; leave it as it was on an error"
        )

    def _apply(self, effects, events: "list[TestEvent]") -> None:
        """`events` are those that were handled; none in `flush`."""
        for record in RECORD.iter_unpack(effects.records):
            kind, table, index, schema_version, version, at, start, *sizes = record
            parts = []
            for size in sizes:
                parts.append(effects.arena[start : start + size])
                start += size
            key, aggregate, event_type, id, body = parts
            if kind == PUT:
                row = _rows.read(self._manifest.tables[table], version, body)
                self._write(table, key.decode(), version, row)
            elif kind == DELETE:
                self._write(table, key.decode(), version, None)
            elif kind == STATE_PUT:
                assert at >= 0, "an expiry is never before 1970"
                self._host.state[key] = (body, at)
            elif kind == STATE_DELETE:
                self._host.state.pop(key, None)
            elif kind == EMIT:
                cause = events[index] if index < len(events) else None
                self.emitted.append(
                    TestEvent(
                        aggregate.decode(),
                        key.decode(),
                        version,
                        event_type.decode(),
                        body,
                        at,
                        id.decode() or f"{aggregate.decode()}/{key.decode()}/{version}",
                        schema_version,
                        (cause.depth if cause else 0) + 1,
                        cause.scope if cause else "",
                    )
                )
            else:
                assert kind == APPEND, f"there is no effect of kind {kind}"
                self.appended.append(
                    Appended(
                        key.decode(),
                        aggregate.decode(),
                        event_type.decode() or "data",
                        version or None,
                        id.decode() or None,
                        body if schema_version else None,
                    )
                )

    def _write(self, number: int, key: str, version: int, row) -> None:
        """Writes or deletes a row, unless the table is versioned and has seen this version or a later one."""
        table = self._manifest.tables[number]
        kept, deleted = self._tables[table.name], self._deleted[table.name]
        stored = kept[key].version if key in kept else deleted.get(key)
        if table.versioned and stored is not None and version <= stored:
            self.stale += 1
            return
        kept.pop(key, None)
        deleted.pop(key, None)
        if row is None:
            deleted[key] = version
        else:
            kept[key] = row


def batch_equals_singles(processor: type, events: "list[TestEvent]", **setup) -> None:
    """Runs the events in one batch and one by one, and raises an AssertionError where the two differ."""
    one, each = Driver(processor, **setup), Driver(processor, **setup)
    ends = []
    for send in (one.send, each.send_singly):
        try:
            send(events)
            ends.append(None)
        except Failed as failed:
            ends.append(failed)
    assert ends[0] == ends[1], f"the outcomes differ: {ends[0]} and {ends[1]}"
    for what in ("_tables", "emitted", "appended", "state"):
        theirs, ours = getattr(one, what), getattr(each, what)
        assert theirs == ours, f"what a batch gives differs from its events one by one: {theirs} and {ours}"
    assert one.saved() == each.saved(), "the snapshots differ"
