"""Keyed state: what a processor keeps by key, for what outgrows a snapshot. And what an instance begins with."""

from json import loads
from math import isfinite

from .cells import to_bytes, to_json
from .failure import Failure, Refused
from .limits import INT_MAX, INT_MIN, SCAN_ENTRIES_MAX, SCAN_ENTRIES_MIN, STATE_EXPIRED_DELETES_MAX
from .times import to_micros
from .world import state as _state

_PER_SECOND = 1_000_000


def _bytes(key) -> bytes:
    return to_bytes("a state key", key)


class State:
    """The task's keyed state, as the event at hand sees it: what is committed and what was written since, earlier in
    this batch included. A write is an effect: it happens together with the event's position, or not at all. Keys and
    values are text or bytes; what is read is bytes.

    An entry may have a time to live, told by the events' own time: it is gone for an event whose `at` is not before its
    end. In `flush` the time is the latest `at` that this instance has handled. What is found to be gone is deleted on
    the way. The host removes what nobody asks for, seven days after it has ended.
    """

    __slots__ = ("_effects", "_forgotten")

    def __init__(self, effects):
        self._effects = effects
        # Whose expired entries were counted, and how many: the event's index and record, which no other one has.
        self._forgotten = (None, 0)

    def get(self, key) -> "bytes | None":
        """The value under a key."""
        key = _bytes(key)
        written = self._effects._written
        if key in written:
            found = written[key]
        else:
            entry = _state.get(key)
            found = entry and (entry.value, entry.expires_at)
        if found is None:
            return None
        if self._is_gone(found[1]):
            self._forget(key)
            return None
        return found[0]

    def get_json(self, key):
        """The same, read as JSON; None where there is none. What cannot be read is fatal: this plugin wrote it."""
        value = self.get(key)
        if value is None:
            return None
        try:
            return loads(value)
        except ValueError as error:
            raise Failure.fatal(f"the state under {_bytes(key)!r} cannot be read: {error}") from None

    def put(self, key, value, *, ttl=None, until=None) -> None:
        """Writes an entry. With `ttl` it is gone so many seconds after the time of the event at hand, with `until` from
        this time on; a time before 1970 counts as 1970."""
        expires_at = 0 if ttl is None and until is None else self._end(ttl, until)
        self._effects._write_state(_bytes(key), to_bytes("a state value", value), expires_at)

    def put_json(self, key, value, *, ttl=None, until=None) -> None:
        """`put` as JSON."""
        try:
            written = to_json(value)
        except (TypeError, ValueError) as error:
            raise Failure.reject(f"a state value cannot be written: {error}") from None
        self.put(key, written, ttl=ttl, until=until)

    def delete(self, key) -> None:
        """Deletes an entry, whether there is one or not."""
        self._effects._delete_state(_bytes(key))

    def scan(self, prefix=b"", after=None, limit=None):
        """Pairs of key and value whose key begins with `prefix`, in the order of their keys' bytes, after the key
        `after` and at most `limit` of them. They come page by page. To change entries on the way, collect their keys
        first."""
        prefix, after = _bytes(prefix), None if after is None else _bytes(after)
        written = self._effects._written
        mine = sorted(key for key in written if key.startswith(prefix) and (after is None or key > after))
        entries = _both(_pages(prefix, after, limit), mine, written)
        for key, value, expires_at in entries:
            if limit is not None and limit <= 0:
                return
            if self._is_gone(expires_at):
                self._forget(key)
                continue
            if limit is not None:
                limit -= 1
            yield key, value

    def _end(self, ttl, until) -> int:
        """When an entry ends. Zero would stand for never."""
        if until is None:
            if type(ttl) not in (int, float) or not isfinite(ttl):
                raise Failure.fatal(f"`ttl` is {ttl!r}, which is no number of seconds")
            now = self._effects.now
            if now is None:
                raise Failure.retry("no event was handled since the start, so there is no time to count from")
            return max(min(now + round(ttl * _PER_SECOND), INT_MAX), 1)
        try:
            until = to_micros(until)
        except (TypeError, ValueError) as error:
            raise Failure.fatal(f"`until` of a state entry: {error}") from None
        if not INT_MIN <= until <= INT_MAX:
            raise Failure.fatal(f"`until` of a state entry is {until} microseconds, which 64 bits do not hold")
        return max(until, 1)

    def _is_gone(self, expires_at: int) -> bool:
        if not expires_at:
            return False
        now = self._effects.now
        return now is not None and now >= expires_at

    def _forget(self, key: bytes) -> None:
        """Deletes an entry that was found to be gone, as far as this event's share goes: what is left is as gone for
        whoever looks next, and the host removes it in the end."""
        record = self._effects._event._record
        of, count = self._forgotten
        count = count if of is record else 0
        if count < STATE_EXPIRED_DELETES_MAX:
            self._forgotten = (record, count + 1)
            self._effects._delete_state(key)


def _pages(prefix: bytes, after: "bytes | None", limit: "int | None"):
    """What the host has, entry by entry."""
    wanted = SCAN_ENTRIES_MAX if limit is None else min(max(limit, SCAN_ENTRIES_MIN), SCAN_ENTRIES_MAX)
    more = True
    while more:
        page = _state.scan(prefix, after, wanted)
        for entry in page.entries:
            yield entry.key, entry.value, entry.expires_at
        more = page.more and bool(page.entries)
        if page.entries:
            after = page.entries[-1].key


def _both(theirs, mine: "list[bytes]", written: dict):
    """The host's entries and those that this batch wrote in their place, in order; without deleted ones."""
    theirs, at = iter(theirs), 0
    entry = next(theirs, None)
    while entry is not None or at < len(mine):
        if at < len(mine) and (entry is None or mine[at] <= entry[0]):
            key = mine[at]
            at += 1
            if entry is not None and entry[0] == key:
                entry = next(theirs, None)
            if found := written.get(key):
                yield key, *found
        else:
            yield entry
            entry = next(theirs, None)


def _as_it_is(value):
    return value


class Context:
    """Whom an instance works for. It never changes while the instance lives."""

    def __init__(self, tenant: str, lane: int, lanes: int):
        self.tenant, self.lane, self.lanes = tenant, lane, lanes

    def state_get(self, key) -> "bytes | None":
        """What the task's keyed state holds under a key. For `load`, when nothing is gone by any event's time yet; in
        `handle` ask `out.state`."""
        entry = _state.get(_bytes(key))
        return None if entry is None else entry.value

    def state_scan(self, prefix=b"", after=None, limit=None):
        """Pairs of key and value, as `out.state.scan` without a running batch."""
        left = limit
        for key, value, _ in _pages(_bytes(prefix), None if after is None else _bytes(after), limit):
            if left is not None:
                if left <= 0:
                    return
                left -= 1
            yield key, value


class Saved:
    """What the task last committed, perhaps by an older version and under an older content type."""

    def __init__(self, content_type: str, state: bytes):
        self.content_type, self.state = content_type, state

    def json(self, *content_types: str):
        """The state read as JSON. Refuses another content type than these, with both named."""
        return self.migrate({content_type: _as_it_is for content_type in content_types})

    def migrate(self, ways: dict):
        """Reads a state of one of several content types: what a version does that takes over from older ones. `ways` has
        a function for each content type, which gets the JSON that was saved under it."""
        if self.content_type not in ways:
            known = "`, `".join(ways)
            raise Refused(f"the saved state has content type `{self.content_type}`, this version reads `{known}`")
        try:
            value = loads(self.state)
        except (ValueError, RecursionError) as error:
            raise Refused(f"the saved state cannot be read: {error}") from None
        return ways[self.content_type](value)

    def __eq__(self, other) -> bool:
        if not isinstance(other, Saved):
            return NotImplemented
        return (self.content_type, self.state) == (other.content_type, other.state)

    def __repr__(self) -> str:
        return f"<{len(self.state)} bytes of {self.content_type}>"
