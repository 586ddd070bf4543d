"""Writes the vectors of the conformance kit, with what a model of the kit's guest says of each: `python3 write_vectors.py`.

A vector is a guest's life: what it was configured with and loaded, what it was called with, and what it must have asked
for. The guests (`plugins/kit-js`, `plugins/kit-python`, `plugins/misbehaving/guests/kit.rs`, `guests/kit.wat`) follow the
rules in `README.md`; the model below follows them once more, one event at a time and with none of their means.

Bytes are written as `text:…` where they are UTF-8, otherwise as `hex:…`. `parts` are put together, `repeat` is one part
so many `times`. An event with `times` stands for so many: each has the next version and five digits behind its agg-id.
Effects are told one by one; many are told by their number and a digest of their lines.
"""

import hashlib
import json
from pathlib import Path
from struct import pack

BASIS, PRIME = 2166136261, 16777619
I64_MAX, I64_MIN = (1 << 63) - 1, -(1 << 63)
SECOND = 1_000_000
MESSAGE_BYTES_MAX = 4096
EXPIRED_DELETES_MAX = 64
REFUSAL = "the kit reads k/1, and k/2 of 16 bytes"
TOLD_BYTES_MAX = 6_000


def shown(data: bytes) -> str:
    try:
        return "text:" + data.decode()
    except UnicodeDecodeError:
        return "hex:" + data.hex()


def read(value) -> bytes:
    if isinstance(value, list):
        return b"".join(map(read, value))
    if isinstance(value, dict):
        return read(value["repeat"]) * value["times"]
    if value.startswith("hex:"):
        return bytes.fromhex(value[4:])
    return value.removeprefix("text:").encode()


def line(value) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def told(values: list):
    """The values, or what stands for many."""
    lines = "".join(line(value) + "\n" for value in values)
    if len(lines) <= TOLD_BYTES_MAX:
        return values
    return {"count": len(values), "sha256": hashlib.sha256(lines.encode()).hexdigest()}


def hashed(data: bytes, hash_: int = BASIS) -> int:
    for byte in data:
        hash_ = (hash_ ^ byte) * PRIME & 0xFFFFFFFF
    return hash_


class Failed(Exception):
    def __init__(self, kind, message):
        self.kind, self.message = kind, message


class Refused(Exception):
    pass


class Model:
    def __init__(self, config):
        self.config, self.entries = config, {}
        self.count, self.hash = 0, BASIS

    def load(self, saved):
        self.count, self.hash = 0, BASIS
        if saved is None:
            return
        kind, state = saved
        if kind == "k/1":
            self.count = len(state)
        elif kind == "k/2" and len(state) == 16:
            self.count, self.hash = int.from_bytes(state[:8], "little"), int.from_bytes(state[8:], "little")
        else:
            raise Refused(REFUSAL)

    def snapshot(self) -> bytes:
        return pack("<QQ", self.count, self.hash)

    def handle(self, event):
        """The effects of one event."""
        self.event, self.out, self.deletes = event, [], 0
        before = dict(self.entries)
        try:
            getattr(self, event["type"].replace(".", "_"), lambda: None)()
        except Failed:
            self.entries = before
            raise
        self.count, self.hash = self.count + 1, hashed(event["payload"], self.hash)
        return self.out

    def effect(self, **effect):
        self.out.append({"of": self.event["of"], **effect})

    def key(self) -> bytes:
        key = self.event["agg_id"].encode()
        return bytes(byte ^ 0x80 for byte in key) if self.event["schema_version"] == 2 else key

    # One function for each type of event.

    def put(self):
        e = self.event
        optional = [{"text": e[name]} if e[name] else None for name in ("scope", "kind", "cursor", "traceparent")]
        cells = [{"text": e["id"]}, {"text": e["aggregate"]}, {"int": e["version"]}, {"timestamp": e["at"]}]
        cells += [{"int": e["position"]}, {"int": e["schema_version"]}, {"int": e["depth"]}, *optional]
        cells += [{"bytes": shown(e["payload"])}, {"json": e["payload"].decode()}]
        cells += [e["version"] % 2 == 1, {"float": f"{e['position']:016x}"}, None]
        self.effect(put="rows", key=e["agg_id"], version=e["version"], cells=cells)

    def read(self, key, version, value, entries):
        cells = [None if value is None else {"bytes": shown(value)}, None if entries is None else {"int": entries}]
        self.effect(put="reads", key=key, version=version, cells=cells)

    def del_(self):
        self.effect(delete="rows", key=self.event["agg_id"], version=self.event["version"])

    def emit(self, id_=None):
        e = self.event
        self.effect(
            emit="kit.copy", aggregate="kit", agg_id=e["agg_id"], version=e["version"], at=e["at"],
            schema_version=e["schema_version"], id=e["id"] if id_ is None else id_, payload=shown(e["payload"]),
            depth=e["depth"] + 1, scope=e["scope"], traceparent=e["traceparent"],
        )  # fmt: skip

    def emit_derived(self):
        self.emit("")

    def emit_now(self):
        self.emit()

    def append(self, type_, error):
        e = self.event
        self.effect(
            append=type_, process=e["agg_id"], channel=e["aggregate"], in_reply_to=e["depth"] or None, error=error or None,
            payload=None if e["schema_version"] == 2 else shown(e["payload"]), depth=e["depth"] + 1, scope=e["scope"],
            traceparent=e["traceparent"],
        )  # fmt: skip

    def append_data(self):
        self.append("data", None)

    def append_end(self):
        self.append("end", None)

    def append_error(self):
        self.append("error", self.event["cursor"])

    def many(self):
        for number in range(1, self.event["schema_version"] + 1):
            self.read(self.event["agg_id"], number, None, number)

    def write(self, key, value, expires_at):
        self.entries[key] = (value, expires_at)
        self.effect(state_put=shown(key), value=shown(value), expires_at=expires_at)

    def sput(self):
        self.write(self.key(), self.event["payload"], None)

    def sput_until(self):
        self.write(self.key(), self.event["payload"], max(self.event["at"] + SECOND, 1))

    def forget(self, key):
        if self.deletes < EXPIRED_DELETES_MAX:
            self.deletes += 1
            self.entries.pop(key, None)
            self.effect(state_delete=shown(key))

    def is_gone(self, expires_at):
        return expires_at is not None and self.event["at"] >= expires_at

    def sget(self):
        value, expires_at = self.entries.get(self.key(), (None, None))
        if self.is_gone(expires_at):
            self.forget(self.key())
            value = None
        self.read(self.event["agg_id"], self.event["version"], value, None)

    def sdel(self):
        self.entries.pop(self.key(), None)
        self.effect(state_delete=shown(self.key()))

    def sscan(self):
        hash_, count, limit = BASIS, 0, self.event["depth"] or 1 << 40
        for key in sorted(key for key in self.entries if key.startswith(self.key())):
            if count == limit:
                break
            value, expires_at = self.entries[key]
            if self.is_gone(expires_at):
                self.forget(key)
                continue
            count, hash_ = count + 1, hashed(value, hashed(key, hash_))
        self.read(self.event["id"], self.event["version"], pack("<I", hash_), count)

    def cfg(self):
        value = self.config.get(self.event["agg_id"])
        self.read(self.event["agg_id"], self.event["version"], None if value is None else value.encode(), None)

    def fail(self, kind):
        message = self.event["payload"][:MESSAGE_BYTES_MAX].decode(errors="ignore")
        raise Failed(kind, message)

    def retry(self):
        self.fail("retry")

    def reject(self):
        self.fail("reject")

    def fatal(self):
        self.fail("fatal")

    def flush(self, reason):
        if "flush_fails" in self.config:
            raise Failed("retry", self.config["flush_fails"])
        if self.hash % 2 == 0:
            return []
        return [{
            "of": None, "emit": "kit.flush", "aggregate": "kit", "agg_id": "flush", "version": self.count + 1,
            "at": self.count, "schema_version": 1, "id": "", "payload": shown(f'"{reason}"'.encode()), "depth": 1,
            "scope": "", "traceparent": "",
        }]  # fmt: skip


setattr(Model, "del", Model.del_)

DEFAULTS = dict(
    aggregate="thing", version=1, at=0, schema_version=1, depth=0, scope="", kind="", cursor="", traceparent="",
    payload="{}",
)  # fmt: skip


def expanded(events, of, position):
    """Events as the runner makes them of what is written down."""
    for written in events:
        for number in range(written.get("times", 1)):
            event = {**DEFAULTS, "id": f"e{of}", **written}
            position = written.get("position", position) + (number if "position" in written else 1)
            event["position"], event["of"] = position, of
            event["version"] += number
            if "times" in written:
                event["agg_id"] += f"{number:05}"
            event["payload"] = read(event["payload"])
            yield event
            of += 1


def expect(vector):
    model = Model(vector.get("config", {}))
    saved = vector.get("saved")
    try:
        model.load(saved and (saved["content_type"], read(saved["state"])))
    except Refused as refused:
        return {"load": {"refused": str(refused)}}
    calls, of, position = [], 0, 0
    for call in vector["calls"]:
        failure, effects = None, []
        if call == "restart":
            model.load(("k/2", model.snapshot()))
        elif "flush" in call:
            try:
                effects = model.flush(call["flush"])
            except Failed as failed:
                failure = {"kind": failed.kind, "message": failed.message}
            calls.append({"handled": 0, "effects": told(effects), "failure": failure})
        else:
            handled = 0
            for event in list(expanded(call["handle"], of, position)):
                of, position = event["of"] + 1, event["position"]
                if failure is not None:
                    continue
                try:
                    effects += model.handle(event)
                    handled += 1
                except Failed as failed:
                    failure = {"kind": failed.kind, "message": failed.message}
            calls.append({"handled": handled, "effects": told(effects), "failure": failure})
    entries = [[shown(key), shown(value), expires] for key, (value, expires) in sorted(model.entries.items())]
    return {"load": "ok", "calls": calls, "snapshot": shown_hex(model.snapshot()), "entries": told(entries)}


def shown_hex(data):
    return "hex:" + data.hex()


VECTORS = {}


def vector(group, name, *calls, **rest):
    calls = [{"handle": call} if isinstance(call, list) else call for call in calls]
    found = {"name": name, **rest, "calls": calls}
    found["expect"] = expect(found)
    VECTORS.setdefault(group, []).append(found)


def event(type_, agg_id="a", **rest):
    return {"type": type_, "agg_id": agg_id, **rest}


def flush(reason="tick"):
    return {"flush": reason}


def repeat(part, times):
    return {"repeat": part, "times": times}


def json_text(bytes_):
    """A JSON text of so many bytes."""
    return ['"', repeat("x", bytes_ - 2), '"']


def state(count, hash_):
    return {"content_type": "k/2", "state": shown_hex(pack("<QQ", count, hash_))}


NEXT = [event("nop", payload='{"n":1}'), event("put", version=2)]

vector("load", "nothing was saved", NEXT)
vector("load", "its own state", NEXT, saved=state(41, 77))
vector("load", "its own state of large numbers", NEXT, saved=state(1 << 60, 0xFFFFFFFF))
vector("load", "an older content type", NEXT, saved={"content_type": "k/1", "state": "text:1234567"})
vector("load", "an older content type without a byte", NEXT, saved={"content_type": "k/1", "state": "text:"})
vector("load", "a content type that it does not know", saved={"content_type": "k/9", "state": "text:x"})
vector("load", "a state that was cut off", saved={"content_type": "k/2", "state": "text:1234567"})
vector("load", "an empty state of its own content type", saved={"content_type": "k/2", "state": "text:"})
vector("load", "8 MiB of state", NEXT, saved={"content_type": "k/1", "state": repeat("x", 8 << 20)})

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
WHOLE = dict(id="an-id", aggregate="thing", scope="north", kind="entry", cursor="c-17", traceparent=TRACE)
vector("crossing", "every part is there", [event("put", "key", version=7, at=1_700_000_000_123_456, depth=2, schema_version=3, payload='{"a":[1,2]}', **WHOLE)])
vector("crossing", "no optional part is there", [event("put", "key", version=7)])
for part in ("scope", "kind", "cursor", "traceparent"):
    vector("crossing", f"of the optional parts only {part}", [event("put", "key", **{part: WHOLE[part]}), event("put", "key", version=2)])
vector("crossing", "all optional parts but one", [event("put", f"without-{part}", **{**WHOLE, part: ""}) for part in ("scope", "kind", "cursor", "traceparent")])
vector("crossing", "an empty object and other small payloads", [event("put", f"p{n}", payload=p) for n, p in enumerate(["{}", "[]", "null", "true", "0", '""', "-1", "1.5"])])
LETTERS = ["a", "é", "€", "😀"]
vector("crossing", "letters of one to four bytes at the borders of parts", [
    event("put", f"{x}{y}", id=f"{y}{x}", aggregate=x, scope=y, kind=x, cursor=y, traceparent=x, payload=f'"{y}"')
    for x in LETTERS for y in LETTERS
])  # fmt: skip
vector("crossing", "one event that is not ASCII among others", [event("put", "a", payload='{"a":1}'), event("put", "b", payload='{"a":"ü"}'), event("put", "c", payload='{"a":3}')])
vector("crossing", "a byte order mark is kept", [event("put", "\u00ff\u0080", payload='"\ufeff\u200d\u2028"', id="\ufeffid")])
vector("crossing", "times before 1970", [event("put", "a", at=-1), event("put", "b", at=-86_400_000_000 * 365 * 100)])
vector("crossing", "the first and the last time", [event("put", "a", at=I64_MIN), event("put", "b", at=I64_MAX), event("put", "c", at=1 << 53), event("put", "d", at=(1 << 53) + 1), event("put", "e", at=-(1 << 53) - 1)])
vector("crossing", "versions up to the last", [event("put", "a", version=1), event("put", "b", version=(1 << 53) + 1), event("put", "c", version=I64_MAX)])
vector("crossing", "positions beyond 2^53", [event("put", "a", position=(1 << 53) - 1), event("put", "b", position=(1 << 53) + 1), event("put", "c", position=(1 << 62) + 3)])
vector("crossing", "depths and schema versions", [event("put", "a", depth=1, schema_version=1), event("put", "b", depth=15, schema_version=0xFFFFFFFF), event("put", "c", depth=1_000, schema_version=0x80000000)])
vector("crossing", "one event", [event("put", "only")])
vector("crossing", "1,000 events", [event("put", "k", times=1000, payload='{"n":123456,"s":"text"}')])
vector("crossing", "1,000 events that are not ASCII", [event("put", "é", times=1000, payload='{"s":"€"}')])
vector("crossing", "a payload of 1 MiB", [event("nop", payload=json_text(1 << 20)), event("put", version=2)])
vector("crossing", "a batch of 4 MiB", [event("nop", f"a{n}", payload=json_text((1 << 20) - 40)) for n in range(4)] + [event("put", "last")])
vector("crossing", "names as long as they may be", [event("put", "k" * 512, id="i" * 512, aggregate="g" * 512, scope="s" * 63, kind="d" * 512, cursor="c" * 512)])
vector("crossing", "a type that it does not know", [event("unheard.of.ü", payload='{"x":1}'), event("put", "a")])

vector("effects", "a row with a cell of every type", [event("put", "row", version=3, payload='{"a":{"b":[true,false,null,1,"x"]}}')])
vector("effects", "a deleted row", [event("put", "row", version=3), event("del", "row", version=4)])
vector("effects", "a row deleted that nobody wrote", [event("del", "none", version=1)])
vector("effects", "an event with its id", [event("emit", "x", id="given", version=9, at=5, schema_version=4, payload='{"a":1}')])
vector("effects", "an event whose id is derived", [event("emit.derived", "x", id="given", version=9, at=-5, payload='{"a":1}')])
vector("effects", "an event without a time has that of the event at hand", [event("put", "a", at=100), event("emit.now", "x", id="given", at=7)], [event("emit.now", "y", at=-5), event("emit.now", "z", at=0)])
vector("effects", "an event is one deeper, and carries scope and trace on", [event("emit", "x", depth=3, scope="north", traceparent=TRACE), event("emit", "y", depth=0), event("emit", "z", depth=1, scope="south")])
vector("effects", "an emitted payload of 1 MiB", [event("emit", "x", payload=json_text(1 << 20))])
vector("effects", "entries of the keyed state", [event("sput", "k", payload='{"v":1}'), event("sput.until", "l", at=10 * SECOND, payload="2"), event("sdel", "k")])
vector("effects", "an entry with an empty value", [event("sput", "k", payload=""), event("sget", "k", version=2)])
vector("effects", "bits of floats", [event("put", f"f{n}", position=p) for n, p in enumerate([1, 0x000FFFFFFFFFFFFF, 0x0010000000000000, 0x3FD5555555555555, 0x3FF0000000000000, 0x400921FB54442D18, 0x7FEFFFFFFFFFFFFF])])
vector("effects", "whole numbers to both ends", [event("put", "a", version=I64_MAX, at=I64_MIN), event("put", "b", version=1, at=I64_MAX), event("put", "c", version=(1 << 31), at=-(1 << 31) - 1), event("put", "d", version=(1 << 32) + 1, at=-(1 << 32))])
vector("effects", "1,000 effects of one event", [event("many", "m", schema_version=1000), event("put", "after")])
vector("effects", "two writes of one row", [event("put", "row", version=1, payload='"first"'), event("put", "row", version=2, payload='"second"'), event("put", "row", version=1, payload='"late"')])
vector("effects", "a row that is deleted and comes back", [event("put", "row", version=1), event("del", "row", version=2), event("put", "row", version=3)])
vector("effects", "keys of rows in all letters", [event("put", key) for key in ["é", "€/😀", "a b", "'\"\\", "\u00a0", "k" * 512]])
vector("effects", "a row of almost 1 MiB", [event("put", "large", payload=json_text(500_000))])
vector("effects", "numbers that no float holds, in JSON", [event("put", "a", payload='{"n":9007199254740993}'), event("put", "b", payload='{"n":-9223372036854775808,"m":18446744073709551615}'), event("emit", "c", payload='{"n":9007199254740993}')])
vector("effects", "JSON that must be written as it was read", [event("put", "a", payload='{"z":1,"a":2,"é":"\\n\\"\\\\\\t"}'), event("put", "b", payload='[0.1,1.5,-0.25,[],{},[[[]]]]')])
for type_ in ("data", "end", "error"):
    entry = f"append.{type_}"
    vector("effects", f"an entry, {type_}, with and without a payload", [event(entry, "p-1", aggregate="words", payload='"hello"'), event(entry, "p-1", aggregate="words", payload=""), event(entry, "p-1", aggregate="words", schema_version=2)])
vector("effects", "an entry that answers another", [event("append.data", "p", aggregate="c", depth=1), event("append.data", "p", aggregate="c", depth=0), event("append.end", "p", aggregate="c", depth=15, schema_version=2)])
vector("effects", "an entry with the text of an error", [event("append.error", "p", aggregate="c", cursor="no: é € 😀"), event("append.error", "p", aggregate="c", cursor="x" * 512, payload=""), event("append.error", "p", aggregate="c", cursor="gone", schema_version=2)])
vector("effects", "an entry carries scope and trace on, in names as long as they may be", [event("append.data", "p" * 128, aggregate="c" * 64, scope="north", traceparent=TRACE, depth=3)])
vector("effects", "an entry of 256 KiB", [event("append.data", "p", aggregate="c", payload=json_text(256 << 10))])
vector("failures", "an entry of a failing event is left out", [event("append.data", "p", aggregate="c"), event("reject", "b", payload='"no"')], [event("append.end", "p", aggregate="c")])
vector("effects", "all kinds one after the other", [event("put", "a"), event("emit", "a", version=2), event("sput", "a", version=3), event("many", "a", version=4, schema_version=3), event("del", "a", version=5), event("sdel", "a", version=6), event("log", "a", version=7), event("cfg", "a", version=8)], [event("emit", "a", version=9), event("put", "a", version=10)])

for kind in ("retry", "reject", "fatal"):
    for place in range(3):
        events = [event("put", f"k{n}", version=n + 1) for n in range(3)]
        events[place] = event(kind, f"k{place}", version=place + 1, payload=f'"{kind} at {place}"')
        vector("failures", f"{kind}, {('first', 'in the middle', 'last')[place]}", events, [event("put", "next", version=9)])
vector("failures", "the only event of a batch", [event("reject", payload='"only"')], [event("nop", payload="1")])
vector("failures", "what the failing event asked for is left out", [event("sput", "a", payload='"kept"'), event("retry", "a", payload='"fails"')], [event("sget", "a"), event("sscan", "", id="all")])
vector("failures", "it goes on where the failure was", [event("put", "a"), event("retry", "b", payload='"wait"'), event("put", "c")], [event("put", "b", payload='"again"'), event("put", "c")])
vector("failures", "one failure after the other", [event("retry", payload='"1"')], [event("reject", payload='"2"')], [event("retry", payload='"3"')], [event("put")])
vector("failures", "a message of 10 KiB", [event("reject", payload=json_text(10 << 10))])
vector("failures", "a long message is cut between letters", [event("reject", payload=['"', repeat("€", 3_000), '"'])], [event("retry", payload=['"xy', repeat("😀", 2_000), '"'])])
vector("failures", "a message in all letters", [event("fatal", payload='"no: é € 😀 \\" <&>"')])
vector("failures", "an empty message", [event("reject", payload="")])

vector("keyed", "a write is read in its batch", [event("sput", "k", payload='"one"'), event("sget", "k"), event("sput", "k", payload='"two"'), event("sget", "k", version=2), event("sget", "other")])
vector("keyed", "a write is read in the next batch", [event("sput", "k", payload='"one"')], [event("sget", "k")])
vector("keyed", "a write is read after a restart", [event("sput", "k", payload='"one"')], "restart", [event("sget", "k"), event("sdel", "k")], "restart", [event("sget", "k", version=2)])
vector("keyed", "a deleted entry is not read", [event("sput", "k"), event("sdel", "k"), event("sget", "k")], [event("sget", "k", version=2), event("sput", "k", payload='"new"')], [event("sget", "k", version=3)])
vector("keyed", "an entry ends at its time", [event("sput.until", "k", at=5 * SECOND, payload='"short"'), event("sget", "k", at=6 * SECOND - 1), event("sget", "k", at=6 * SECOND, version=2), event("sget", "k", at=6 * SECOND - 1, version=3)])
vector("keyed", "an entry ends in another batch", [event("sput.until", "k", at=5 * SECOND), event("sput.until", "l", at=6 * SECOND)], [event("sget", "k", at=7 * SECOND - 1), event("sget", "l", at=7 * SECOND - 1), event("sscan", "", id="s", at=7 * SECOND)], [event("sscan", "", id="t", at=0)])
vector("keyed", "an end before 1970 is one in 1970", [event("sput.until", "k", at=-9 * SECOND), event("sget", "k", at=-8 * SECOND), event("sget", "k", at=0, version=2), event("sget", "k", at=1, version=3)])
vector("keyed", "an ended entry is written anew", [event("sput.until", "k", at=0)], [event("sput", "k", at=9 * SECOND, payload='"new"'), event("sget", "k", at=9 * SECOND)])
vector("keyed", "a scan over pages", [event("sput", "p/", times=1_300, payload="[1]")], [event("sscan", "p/", id="s"), event("sscan", "p/00", id="t"), event("sscan", "q", id="u")])
vector("keyed", "a scan over what one batch wrote", [event("sput", "p/", times=20), event("sscan", "p/", id="s"), event("sscan", "p/0001", id="t")])
vector("keyed", "a scan sees writes and deletes of its batch", [event("sput", "p/", times=30, payload='"old"')], [
    event("sput", "p/00003", payload='"new"'), event("sdel", "p/00005"), event("sput", "p/00005x"), event("sput", "a"),
    event("sput", "p/"), event("sdel", "p/00029"), event("sput", "p/99999"), event("sput", "q"), event("sscan", "p/", id="s"),
    event("sdel", "p/"), event("sscan", "p/", id="t"), event("sscan", "", id="u"),
])  # fmt: skip
vector("keyed", "a scan ends after so many", [event("sput", "p/", times=30)], [event("sscan", "p/", id=f"s{n}", depth=n) for n in (1, 2, 9, 29, 30, 31)], [event("sput", "p/00000x"), event("sdel", "p/00001"), event("sscan", "p/", id="t", depth=3)])
vector("keyed", "binary keys in the order of their bytes", [event("sput", key, schema_version=2, payload=f'"{n}"') for n, key in enumerate(["\x7f", "\x7f\x7f", "a", "é", "\x01", "\x7f\x7f\x00"])], [event("sget", "é", schema_version=2), event("sscan", "\x7f\x7f", schema_version=2, id="s"), event("sscan", "\x7f", schema_version=2, id="t"), event("sput", "\x7f\x01", schema_version=2), event("sscan", "\x7f", schema_version=2, id="u"), event("sscan", "", id="v")])
vector("keyed", "a scan passes over ended entries and deletes some", [event("sput.until", "p/", times=100, at=0), event("sput", "p/x", times=3)], [event("sscan", "p/", id="s", at=9 * SECOND)], [event("sscan", "p/", id="t", at=9 * SECOND), event("sscan", "p/", id="u", at=9 * SECOND)])
vector("keyed", "a limit counts what is not over", [event("sput.until", "p/", times=12, at=0), event("sput", "p/x", times=5)], [event("sscan", "p/", id="s", at=9 * SECOND, depth=2), event("sscan", "p/", id="t", at=9 * SECOND, depth=20)])
vector("keyed", "values of 1 MiB", [event("sput", "k", payload=json_text(1 << 20)), event("sget", "other")], [event("sscan", "", id="s")])

SETTINGS = {"name": "value", "empty": "", "é": "€ 😀", "long": "x" * 10_000}
vector("config", "settings that are there, and one that is not", [event("cfg", name, version=n + 1) for n, name in enumerate([*SETTINGS, "none"])], config=SETTINGS)
vector("config", "no settings at all", [event("cfg", "name")])
vector("config", "settings after a restart", [event("cfg", "name")], "restart", [event("cfg", "name", version=2)], config=SETTINGS)
vector("config", "a message for the operator ends nothing", [event("log", f"m{n}", payload=p) for n, p in enumerate(['"plain"', '"é € 😀"', '""', "", json_text(20_000)])] + [event("put", "after")])

vector("flush", "with something to say", flush(), flush("shutdown"), flush("swap"))
for n in range(1, 4):
    vector("flush", f"after {n} events", [event("nop", f"a{i}", payload=f'{{"n":{i}}}') for i in range(n)], flush(), [event("put", "next")], flush("swap"))
vector("flush", "with nothing to say", flush(), saved=state(5, 2))
vector("flush", "of a large count", flush("shutdown"), saved=state((1 << 53) + 5, 3))
vector("flush", "that fails", [event("put")], flush(), [event("put", "b")], flush("shutdown"), config={"flush_fails": "not now: é"})
vector("flush", "after a failed event", [event("put"), event("reject", payload='"x"')], flush())
vector("flush", "after a restart", [event("put")], "restart", flush(), "restart", flush("swap"))

vector("snapshot", "of nothing")
vector("snapshot", "of some events", [event("nop", payload='{"n":1}'), event("nop", payload='{"n":2}'), event("nop", payload='"é"')])
vector("snapshot", "a failed event is not in it", [event("nop", payload="1"), event("retry", payload="2")])
vector("snapshot", "of restarts in a row", [event("nop", payload="1")], "restart", "restart", [event("nop", payload="2")], "restart")
vector("snapshot", "of the largest numbers", [event("nop", payload="1")], saved=state((1 << 62) - 2, 0xFFFFFFFF))


def written(vector) -> str:
    """One call, event, effect and entry a line."""

    def block(values, indent):
        if not isinstance(values, list) or not values:
            return plain(values)
        pad = " " * indent
        return "[\n" + ",\n".join(f"{pad}  {plain(value)}" for value in values) + f"\n{pad}]"

    def plain(value):
        return json.dumps(value, ensure_ascii=False)

    def call(value):
        if isinstance(value, dict) and "handle" in value:
            return f'{{"handle": {block(value["handle"], 6)}}}'
        return plain(value)

    def answer(value):
        rest = ", ".join(f'"{name}": {plain(value[name])}' for name in ("handled", "failure"))
        return f'{{{rest}, "effects": {block(value["effects"], 8)}}}'

    lines = [f'    "{name}": {plain(vector[name])}' for name in ("name", "config", "saved") if name in vector]
    lines.append('    "calls": [' + ", ".join(call(value) for value in vector["calls"]) + "]")
    found = vector["expect"]
    inner = [f'      "load": {plain(found["load"])}']
    if "calls" in found:
        inner.append('      "calls": [' + ", ".join(answer(value) for value in found["calls"]) + "]")
        inner.append(f'      "snapshot": {plain(found["snapshot"])}')
        inner.append(f'      "entries": {block(found["entries"], 6)}')
    lines.append('    "expect": {\n' + ",\n".join(inner) + "\n    }")
    return "  {\n" + ",\n".join(lines) + "\n  }"


if __name__ == "__main__":
    folder = Path(__file__).parent / "vectors"
    folder.mkdir(exist_ok=True)
    for group, vectors in VECTORS.items():
        text = "[\n" + ",\n".join(map(written, vectors)) + "\n]\n"
        json.loads(text)
        (folder / f"{group}.json").write_text(text)
        print(group, len(vectors))
