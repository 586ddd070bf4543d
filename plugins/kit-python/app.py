"""The guest of the conformance kit in Python. What it does is told by the event's type; `tests/kit/README.md` has the
rules, which its counterparts in other languages follow to the byte."""

from struct import pack, unpack

from millrace import (
    Failure, Processor, Refused, Table, bool_, bytes_, change_field, config, export, float_, int_, json_, log,
    payload_field, text, timestamp,
)  # fmt: skip

ROWS = Table(
    "rows",
    {
        "event_id": text().filterable(),
        "aggregate": text(),
        "number": int_().sortable(),
        "happened_at": timestamp().filterable().sortable(),
        "place": int_(),
        "schema": int_(),
        "depth": int_(),
        "scope": text().nullable(),
        "kind": text().nullable(),
        "cursor": text().nullable(),
        "trace": text().nullable(),
        "payload": bytes_(),
        "doc": json_(),
        "odd": bool_(),
        "bits": float_(),
        "nothing": text().nullable().filterable().sortable(),
    },
    versioned=True,
    window_rows_max=77,
)
READS = Table("reads", {"value": bytes_().nullable(), "entries": int_().nullable()})

OWN, OLDER = "k/2", "k/1"
REFUSAL = "the kit reads k/1, and k/2 of 16 bytes"
BASIS, PRIME = 2_166_136_261, 16_777_619
SECOND = 1_000_000
FLIPPED = bytes(byte ^ 0x80 for byte in range(256))


def hashed(hash_, data):
    for byte in data:
        hash_ = (hash_ ^ byte) * PRIME & 0xFFFFFFFF
    return hash_


def key_of(event):
    """The key that an event is about: with a schema version of 2, bytes that are no text."""
    key = event.agg_id.encode()
    return key.translate(FLIPPED) if event.schema_version == 2 else key


def read(key, version, value, entries, out):
    out.put(READS, key, version, {"value": value, "entries": entries})


def put(event, out):
    row = {
        "event_id": event.id,
        "aggregate": event.aggregate,
        "number": event.version,
        "happened_at": event.at,
        "place": event.position,
        "schema": event.schema_version,
        "depth": event.depth,
        "scope": event.scope,
        "kind": event.kind,
        "cursor": event.cursor,
        "trace": event.traceparent,
        "payload": event.payload,
        "doc": event.json(),
        "odd": event.version % 2 == 1,
        "bits": unpack("<d", pack("<Q", event.position))[0],
        "nothing": None,
    }
    out.put(ROWS, event.agg_id, event.version, row)


def delete(event, out):
    out.delete(ROWS, event.agg_id, event.version)


def emit_as(event, at, id_, out):
    out.emit(
        aggregate="kit",
        agg_id=event.agg_id,
        type="kit.copy",
        version=event.version,
        at=at,
        schema_version=event.schema_version,
        id=id_,
        payload=event.payload,
    )


def emit(event, out):
    emit_as(event, event.at, event.id, out)


def emit_derived(event, out):
    emit_as(event, event.at, "", out)


def emit_now(event, out):
    emit_as(event, None, event.id, out)


def appending(type_):
    def append(event, out):
        out.append(
            event.agg_id,
            event.aggregate,
            None if event.schema_version == 2 else event.payload,
            type=type_,
            in_reply_to=event.depth or None,
            error=event.cursor if type_ == "error" else None,
        )

    return append


def many(event, out):
    for number in range(1, event.schema_version + 1):
        read(event.agg_id, number, None, number, out)


def sput(event, out):
    out.state.put(key_of(event), event.payload)


def sput_until(event, out):
    out.state.put(key_of(event), event.payload, until=event.at + SECOND)


def sget(event, out):
    read(event.agg_id, event.version, out.state.get(key_of(event)), None, out)


def sdel(event, out):
    out.state.delete(key_of(event))


def sscan(event, out):
    hash_, entries = BASIS, 0
    for key, value in out.state.scan(key_of(event), limit=event.depth or None):
        hash_ = hashed(hashed(hash_, key), value)
        entries += 1
    read(event.id, event.version, pack("<I", hash_), entries, out)


def cfg(event, out):
    value = config.get(event.agg_id)
    read(event.agg_id, event.version, None if value is None else value.encode(), None, out)


def tell(event, _):
    log.info(event.payload.decode())


def failing(failure):
    """Asks for a row and an entry, which must be dropped with the event that fails."""

    def fail(event, out):
        read(event.agg_id, event.version, None, None, out)
        out.state.put(key_of(event), event.payload)
        raise failure(event.payload.decode())

    return fail


ACTS = {
    "put": put,
    "del": delete,
    "emit": emit,
    "emit.derived": emit_derived,
    "emit.now": emit_now,
    "append.data": appending("data"),
    "append.end": appending("end"),
    "append.error": appending("error"),
    "many": many,
    "sput": sput,
    "sput.until": sput_until,
    "sget": sget,
    "sdel": sdel,
    "sscan": sscan,
    "cfg": cfg,
    "log": tell,
    "retry": failing(Failure.retry),
    "reject": failing(Failure.reject),
    "fatal": failing(Failure.fatal),
}


@export
class Kit(Processor):
    """Counts what it handled, and hashes the payloads."""

    manifest = dict(
        name="kit-python",
        version="1.2.3-kit.1",
        summary="Does what the type of an event says: é",
        state_content_type=OWN,
        ordering_key=payload_field("key"),
        types=["*"],
        aggregates=["thing", "other*"],
        tables=[ROWS, READS],
        flush_interval_ms=1_000,
        changes={"thing": ["id", "tenant", change_field("owner", "of-owner")], "kit": ["tenant"]},
    )

    def load(self, context, saved):
        self.count, self.hash = 0, BASIS
        if saved is None:
            return
        if saved.content_type == OLDER:
            self.count = len(saved.state)
        elif saved.content_type == OWN and len(saved.state) == 16:
            self.count, self.hash = unpack("<QQ", saved.state)
        else:
            raise Refused(REFUSAL)

    def handle(self, event, out):
        act = ACTS.get(event.type)
        if act is not None:
            act(event, out)
        self.count += 1
        self.hash = hashed(self.hash, event.payload)

    def flush(self, reason, out):
        message = config.get("flush_fails")
        if message is not None:
            raise Failure.retry(message)
        if self.hash % 2:
            out.emit(
                aggregate="kit", agg_id="flush", type="kit.flush", version=self.count + 1, at=self.count, payload=reason
            )

    def snapshot(self):
        return pack("<QQ", self.count, self.hash)
