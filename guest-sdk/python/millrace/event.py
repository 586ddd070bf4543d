"""One event, borrowed from the arena of its batch."""

from datetime import datetime, timedelta, timezone
from json import loads
from json.decoder import JSONDecoder
from struct import Struct

from .failure import Failure

# How an event's numbers cross; the world's `types.wit` says which is what.
RECORD = Struct("<QQq12I")
(
    POSITION,
    VERSION,
    AT,
    SCHEMA_VERSION,
    DEPTH,
    START,
    ID_END,
    AGGREGATE_END,
    AGG_ID_END,
    TYPE_END,
    SCOPE_END,
    KIND_END,
    CURSOR_END,
    TRACEPARENT_END,
    PAYLOAD_END,
) = range(15)

_scan = JSONDecoder().scan_once
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Event:
    """One event. There is one such object for a whole batch: it is the event at hand, and the next one after the
    call. Keep what you read from it, or a `copy`."""

    # What is written below with bare numbers is on the way of every event: 5 is START, 13 and 14 are where the payload
    # begins and ends. The arena is text, too, where all of it is ASCII: then a part is cut out of text, and JSON is
    # read where it lies.
    __slots__ = ("_arena", "_text", "_record")

    def json(self):
        """The payload, read as JSON anew at each call. Whole numbers are exact. What is no JSON is rejected."""
        record = self._record
        start = record[5]
        text = self._text
        if text is None:
            text, start, end = str(self._arena[start + record[13] : start + record[14]], "utf-8"), 0, None
        else:
            end = start + record[14]
            start += record[13]
        try:
            value, ended = _scan(text, start)
            if ended == (len(text) if end is None else end):
                return value
        except (StopIteration, ValueError, RecursionError):
            pass
        return self._json_slowly()

    def _json_slowly(self):
        """With space around it, or not JSON at all."""
        try:
            return loads(self.payload)
        except (ValueError, RecursionError) as error:
            raise self._unfit(error) from None

    def payload_as(self, kind):
        """The payload as what this class, such as `ChannelEntry`, makes of it. One that does not fit (KeyError,
        TypeError, ValueError) is rejected."""
        payload = self.json()
        try:
            return kind(payload)
        except (KeyError, TypeError, ValueError) as error:
            raise self._unfit(error) from None

    def _unfit(self, error: Exception) -> Failure:
        return Failure.reject(
            f"the payload of `{self.type}` {self.agg_id} version {self.version} does not fit: {error}"
        )

    @property
    def payload(self) -> bytes:
        """The payload: JSON text."""
        record = self._record
        start = record[5]
        return self._arena[start + record[13] : start + record[14]]

    @property
    def position(self) -> int:
        """The event's place in its stream; grows within a batch."""
        return self._record[0]

    @property
    def version(self) -> int:
        """The version of the aggregate instance after this event; 1 or more."""
        return self._record[1]

    @property
    def at(self) -> int:
        """When it happened: microseconds since 1970."""
        return self._record[2]

    @property
    def time(self) -> datetime:
        """The same as a `datetime` in UTC. OverflowError beyond what that holds."""
        return _EPOCH + timedelta(microseconds=self._record[2])

    @property
    def schema_version(self) -> int:
        """The version of the payload's schema; 1 or more."""
        return self._record[3]

    @property
    def depth(self) -> int:
        """How many processors emitted on the way to this event; 0 for a published one."""
        return self._record[4]

    def _part(self, begin: int, end: int) -> str:
        record = self._record
        start = record[5]
        text = self._text
        if text is None:
            return str(self._arena[start + begin : start + end], "utf-8")
        return text[start + begin : start + end]

    @property
    def id(self) -> str:
        """The event's id, unique in its tenant within the dedup window."""
        return self._part(0, self._record[ID_END])

    @property
    def aggregate(self) -> str:
        """The kind of thing that changed, such as `flight`."""
        return self._part(self._record[ID_END], self._record[AGGREGATE_END])

    @property
    def agg_id(self) -> str:
        """Which one changed."""
        record = self._record
        text = self._text
        if text is None:
            return self._part(record[7], record[8])
        start = record[5]
        return text[start + record[7] : start + record[8]]

    @property
    def type(self) -> str:
        """What happened, such as `flight.departed`."""
        return self._part(self._record[AGG_ID_END], self._record[TYPE_END])

    @property
    def scope(self) -> "str | None":
        """The scope inside the tenant, if any."""
        return self._part(self._record[TYPE_END], self._record[SCOPE_END]) or None

    @property
    def kind(self) -> "str | None":
        """The kind a foreign source gave the event, if any."""
        return self._part(self._record[SCOPE_END], self._record[KIND_END]) or None

    @property
    def cursor(self) -> "str | None":
        """The place a foreign source gave the event, if any."""
        return self._part(self._record[KIND_END], self._record[CURSOR_END]) or None

    @property
    def traceparent(self) -> "str | None":
        """The W3C trace context the event was published with, if any."""
        return self._part(self._record[CURSOR_END], self._record[TRACEPARENT_END]) or None

    def copy(self) -> "Event":
        """An event that stays what it is after the call. It keeps its batch in memory."""
        copy = Event()
        copy._arena, copy._text, copy._record = self._arena, self._text, self._record
        return copy

    def __repr__(self) -> str:
        return f"<event {self.position}: {self.type} of {self.aggregate} {self.agg_id} version {self.version}>"
