"""What a processor asks the host to do, written straight into the layout it crosses in."""

from struct import Struct

from .cells import to_bytes, to_json
from .failure import Failure
from .limits import (
    CHANNEL_ERROR_BYTES_MAX,
    CHANNEL_NAME_BYTES_MAX,
    CHANNEL_PAYLOAD_BYTES_MAX,
    EVENT_PAYLOAD_BYTES_MAX,
    INT_MAX,
    INT_MIN,
    NAME_BYTES_MAX,
    PROCESS_NAME_BYTES_MAX,
    ROW_KEY_BYTES_MAX,
    STATE_KEY_BYTES_MAX,
    STATE_VALUE_BYTES_MAX,
)
from .state import State
from .times import to_micros

# How an effect's numbers cross; the world's `types.wit` says which is what: kind, table, event, schema version;
# version; at; start, and the bytes of key, aggregate, type, id and body.
RECORD = Struct("<4IQq6I")
_pack = RECORD.pack
PUT, DELETE, STATE_PUT, STATE_DELETE, EMIT, APPEND = range(6)

# Types of events that only the host writes.
_HOST_EVENT_TYPES = ("channel.data", "channel.end", "channel.error")
_ENTRY_TYPES = ("data", "end", "error")


class Effects:
    """Takes what a processor asks for. It all happens together with the event's position, or not at all."""

    __slots__ = ("state", "_tables", "_parts", "_bytes", "_records", "_index", "_event", "_latest", "_written")

    def __init__(self, tables, event):
        self._tables = {table: number for number, table in enumerate(tables)}
        # The arena in parts, how many bytes they are, and the records.
        self._parts, self._bytes, self._records = [], 0, []
        # Which event of the batch is at hand, and the event; in `flush` none is.
        self._index, self._event = 0, event
        # The latest `at` of the events that were handled: the time in `flush`. None before the first one.
        self._latest = None
        # What this batch wrote to the keyed state, of which the host does not know yet: value and expiry, or None
        # where it was deleted.
        self._written = {}
        # The task's keyed state.
        self.state = State(self)

    def put(self, table, key: str, version: int, row) -> None:
        """Writes a row over the one with the same key. `row` is a dict with the table's columns; `version` is 1 or
        more in a versioned table, and 0 will do in another."""
        try:
            written = key.encode()
        except (AttributeError, UnicodeEncodeError):
            written = _utf8("key", key)
        number = self._row_target(table, written, version)
        cells = table.cells(row)
        start = self._bytes
        self._parts += (written, cells)
        self._bytes = start + len(written) + len(cells)
        self._records.append(_pack(PUT, number, self._index, 0, version, 0, start, len(written), 0, 0, 0, len(cells)))

    def delete(self, table, key: str, version: int) -> None:
        """Deletes a row. In a versioned table the delete is remembered for a while, so that a late older write does
        not bring the row back."""
        written = _utf8("key", key)
        number = self._row_target(table, written, version)
        self._push(DELETE, (written,), table=number, version=version, sizes=(len(written), 0, 0, 0, 0))

    def emit(
        self, *, aggregate: str, agg_id: str, type: str, payload, at=None, version=1, schema_version=1, id=""
    ) -> None:
        """Appends an event to the stream. Its scope is that of the event that is handled, and so is its time where
        none is given. `payload` is what JSON has; `bytes` are taken for JSON text as it is. An empty id is derived
        from the tenant, aggregate, agg-id and version."""
        parts = [_utf8("agg_id", agg_id), _utf8("aggregate", aggregate), _utf8("type", type), _utf8("id", id)]
        for name, part in zip(("agg_id", "aggregate", "type", "id"), parts):
            _check_name(name, part)
        if type in _HOST_EVENT_TYPES:
            raise Failure.fatal(f"`{type}` is what the host says of entries of channels; append to a channel instead")
        if not (_is_whole(version, 1, INT_MAX) and _is_whole(schema_version, 1, (1 << 32) - 1)):
            raise Failure.fatal(
                f"an emitted `{type}` has version {version!r} and schema version {schema_version!r}; both count from 1"
            )
        if at is None:
            at = self.now
            if at is None:
                raise Failure.retry("no event was handled since the start, so there is no time to emit at")
        try:
            at = to_micros(at)
        except (TypeError, ValueError) as error:
            raise Failure.fatal(f"the time of an emitted `{type}`: {error}") from None
        if not INT_MIN <= at <= INT_MAX:
            raise Failure.fatal(f"an emitted `{type}` is at {at} microseconds, which 64 bits do not hold")
        if isinstance(payload, (bytes, bytearray, memoryview)):
            body = bytes(payload)
        else:
            try:
                body = to_json(payload)
            except (TypeError, ValueError) as error:
                raise Failure.reject(f"the payload of `{type}` cannot be written: {error}") from None
        if len(body) > EVENT_PAYLOAD_BYTES_MAX:
            raise Failure.reject(
                f"the payload of `{type}` has {len(body)} bytes; event_payload_bytes_max is {EVENT_PAYLOAD_BYTES_MAX}"
            )
        parts.append(body)
        sizes = [len(part) for part in parts]
        self._push(EMIT, parts, version=version, at=at, schema_version=schema_version, sizes=sizes)

    def append(self, process: str, channel: str, payload=None, *, type="data", in_reply_to=None, error=None) -> None:
        """Appends an entry to a channel of a process, as `plugin:<name>`: the process must have been assigned to the
        plugin, and its operator must have granted it the channel. `payload` is bytes or text, or none.

        Where nobody takes the entry any more it is left out and counted. Where the channel is full or nobody is
        assigned yet, the event is tried again as after a retry. Any other refusal makes the event a dead letter."""
        if type not in _ENTRY_TYPES:
            raise Failure.fatal(f"an entry's type is {type!r}; it may be 'data', 'end' or 'error'")
        if error and type != "error":
            raise Failure.fatal("the text of an error goes with an entry of the type `error` only")
        if in_reply_to is not None and not _is_whole(in_reply_to, 0, INT_MAX):
            raise Failure.fatal(f"`in_reply_to` is {in_reply_to!r}, which is no number of an entry")
        parts = [_utf8("process", process), _utf8("channel", channel), type.encode(), _utf8("error", error or "")]
        for name, part, bytes_max in (
            ("process", parts[0], PROCESS_NAME_BYTES_MAX),
            ("channel", parts[1], CHANNEL_NAME_BYTES_MAX),
        ):
            if not 0 < len(part) <= bytes_max:
                raise Failure.reject(f"the name of the {name} has {len(part)} bytes; 1 to {bytes_max} are possible")
        parts.append(b"" if payload is None else to_bytes("the payload of an entry", payload))
        for name, part, limit, bytes_max in (
            ("text of the error", parts[3], "channel_error_bytes_max", CHANNEL_ERROR_BYTES_MAX),
            ("payload", parts[4], "channel_payload_bytes_max", CHANNEL_PAYLOAD_BYTES_MAX),
        ):
            if len(part) > bytes_max:
                raise Failure.reject(
                    f"the {name} of an entry for `{channel}` has {len(part)} bytes; {limit} is {bytes_max}"
                )
        sizes = [len(part) for part in parts]
        self._push(APPEND, parts, version=in_reply_to or 0, schema_version=int(payload is not None), sizes=sizes)

    @property
    def bytes(self) -> int:
        """Bytes that have been asked for so far in this batch."""
        return self._bytes

    def __len__(self) -> int:
        """Effects that have been asked for so far in this batch."""
        return len(self._records)

    @property
    def now(self) -> "int | None":
        """The time of the event at hand; in `flush` the latest that was handled, and None before the first."""
        return self._latest if self._event._record is None else self._event._record[2]

    # What follows is for the SDK.

    def _row_target(self, table, key: bytes, version: int) -> int:
        """The table's place in the manifest, after a check of key and version."""
        try:
            number = self._tables.get(table)
        except TypeError:
            # What cannot be looked for is not there.
            number = None
        if number is None:
            if not hasattr(table, "columns"):
                raise Failure.fatal(f"a `Table` of the manifest is wanted, and not {table!r}")
            raise Failure.fatal(f"the manifest does not name table `{table.name}`")
        if not 0 < len(key) <= ROW_KEY_BYTES_MAX:
            raise Failure.reject(
                f"a key of table `{table.name}` has {len(key)} bytes; "
                f"1 to row_key_bytes_max = {ROW_KEY_BYTES_MAX} are possible"
            )
        if type(version) is not int or not int(table.versioned) <= version <= INT_MAX:
            raise Failure.fatal(
                f"version {version} is not one of table `{table.name}`; {int(table.versioned)} to {INT_MAX} are"
            )
        return number

    def _push(self, kind, parts, table=0, version=0, at=0, schema_version=0, sizes=()) -> None:
        start = self._bytes
        self._parts += parts
        self._bytes = start + sum(sizes)
        self._records.append(_pack(kind, table, self._index, schema_version, version, at, start, *sizes))

    def _write_state(self, key: bytes, value: bytes, expires_at: int) -> None:
        _check_state_key(key)
        if len(value) > STATE_VALUE_BYTES_MAX:
            raise Failure.reject(
                f"a state value has {len(value)} bytes; state_value_bytes_max is {STATE_VALUE_BYTES_MAX}"
            )
        self._written[key] = (value, expires_at)
        self._push(STATE_PUT, (key, value), at=expires_at, sizes=(len(key), 0, 0, 0, len(value)))

    def _delete_state(self, key: bytes) -> None:
        _check_state_key(key)
        self._written[key] = None
        self._push(STATE_DELETE, (key,), sizes=(len(key), 0, 0, 0, 0))

    def _drop_event(self) -> None:
        """Drops what the event at hand asked for. The overlay of the keyed state is not wound back: the batch ends
        here."""
        records, first = self._records, len(self._records)
        while first and RECORD.unpack(records[first - 1])[2] == self._index:
            first -= 1
        if first < len(records):
            self._bytes = RECORD.unpack(records[first])[6]
            del records[first:]
            self._parts = [b"".join(self._parts)[: self._bytes]]

    def _finish(self) -> "tuple[bytes, bytes]":
        """Arena and records, and begins anew."""
        arena, records = b"".join(self._parts), b"".join(self._records)
        self._parts, self._bytes, self._records = [], 0, []
        self._written.clear()
        return arena, records


def _is_whole(value, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _utf8(field: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise Failure.reject(f"`{field}` has half a character in it, which is no UTF-8") from None
    except AttributeError:
        raise Failure.fatal(f"`{field}` is a {type(text).__name__} and not text") from None


def _check_name(field: str, name: bytes) -> None:
    if not name and field != "id":
        raise Failure.fatal(f"an emitted event has no `{field}`")
    if len(name) > NAME_BYTES_MAX or any(byte < 0x20 or byte == 0x7F for byte in name):
        raise Failure.reject(
            f"`{field}` of an emitted event has {len(name)} bytes or holds a control character; "
            f"name_bytes_max is {NAME_BYTES_MAX}"
        )


def _check_state_key(key: bytes) -> None:
    if not 0 < len(key) <= STATE_KEY_BYTES_MAX:
        raise Failure.reject(
            f"a state key has {len(key)} bytes; 1 to state_key_bytes_max = {STATE_KEY_BYTES_MAX} are possible"
        )
