import unittest
from datetime import datetime, timezone

from millrace import (
    Failure,
    Processor,
    Table,
    bool_,
    bytes_,
    float_,
    int_,
    json_,
    text,
    timestamp,
)
from millrace.limits import EVENT_PAYLOAD_BYTES_MAX, ROW_BYTES_MAX
from millrace.testing import Driver, Failed, batch_equals_singles, event

ALL = Table(
    "all_types",
    {
        "b": bool_().nullable(),
        "i": int_().nullable(),
        "f": float_().nullable(),
        "t": text().nullable(),
        "y": bytes_().nullable(),
        "j": json_().nullable(),
        "at": timestamp().nullable(),
    },
)
NAMED = Table("named", {"name": text().filterable(), "note": text().nullable(), "j": json_()}, versioned=True)


def driver(do, tables=(ALL, NAMED), **manifest):
    class Doing(Processor):
        def handle(self, event, out):
            do(event, out)

    Doing.manifest = dict(name="doing", version="0.1.0", tables=list(tables), **manifest)
    return Driver(Doing)


def put(row, table=ALL, key="k", version=1):
    one = driver(lambda event, out: out.put(table, key, version, row))
    one.send(event("x.y"))
    return one.row(table.name, key)


class EffectTests(unittest.TestCase):
    def failure(self, kind, says, do):
        one = driver(do)
        with self.assertRaises(Failed) as raised:
            one.send(event("x.y"))
        failure = raised.exception.failure
        self.assertEqual(failure.kind, kind, failure)
        self.assertIn(says, failure.message)
        self.assertEqual([one.rows("all_types"), one.rows("named"), one.emitted, one.appended], [{}, {}, [], []])

    def test_cells_of_every_type(self):
        row = dict(b=True, i=-(1 << 63), f=0.1, t="é", y=b"\0\xff", j={"a": [1, None]}, at=-1)
        self.assertEqual(put(row), row)
        self.assertEqual(put({}), dict.fromkeys("b i f t y j at".split()))
        self.assertEqual(put(dict.fromkeys(row)), dict.fromkeys(row))
        self.assertEqual(put(dict(i=(1 << 63) - 1, f=3, b=False))["i"], (1 << 63) - 1)
        for time in ("1970-01-01T00:00:01Z", "1970-01-01T01:00:01+01:00", datetime.fromtimestamp(1, timezone.utc)):
            self.assertEqual(put(dict(at=time))["at"], 1_000_000)

    def test_null_of_a_json_column_that_is_not_nullable_is_json(self):
        row = put({"name": "n", "j": None}, NAMED)
        self.assertEqual(row, {"name": "n", "note": None, "j": None})

    def test_a_value_that_its_column_cannot_hold_is_rejected(self):
        for row, says in (
            ({"i": 1 << 63}, "`i` of table `all_types` is 9223372036854775808"),
            ({"f": float("nan")}, "not finite"),
            ({"f": (1 << 53) + 1}, "does not hold exactly"),
            ({"t": "\ud800"}, "half a character"),
            ({"j": float("inf")}, "cannot be written"),
            ({"j": "\ud800"}, "half a character"),
            ({"at": "yesterday"}, "not an RFC 3339 time"),
            ({"at": datetime(2026, 1, 1)}, "without a zone"),
            ({"t": "x" * ROW_BYTES_MAX}, "row_bytes_max"),
        ):
            self.failure("reject", says, lambda event, out: out.put(ALL, "k", 0, row))

    def test_a_row_that_does_not_fit_the_declaration_is_fatal(self):
        for row, says in (
            ({"i": True}, "column `i` of table `all_types` is int and cannot hold a bool"),
            ({"i": 1.0}, "cannot hold a float"),
            ({"b": 1}, "cannot hold a int"),
            ({"t": b"x"}, "cannot hold a bytes"),
            ({"y": "x"}, "cannot hold a str"),
            ({"tt": 1}, "no column `tt`; did you mean `t`?"),
        ):
            self.failure("fatal", says, lambda event, out: out.put(ALL, "k", 0, row))
        self.failure("fatal", "no `name`", lambda event, out: out.put(NAMED, "k", 1, {"j": 1}))
        self.failure(
            "reject", "`name` of table `named` is null", lambda e, out: out.put(NAMED, "k", 1, dict(name=None, j=1))
        )

    def test_key_version_and_table_are_looked_at(self):
        good = {"name": "n", "j": 1}
        self.failure("reject", "row_key_bytes_max", lambda event, out: out.put(NAMED, "", 1, good))
        self.failure("reject", "1025 bytes", lambda event, out: out.put(NAMED, "k" * 1025, 1, good))
        self.failure("reject", "half a character", lambda event, out: out.put(NAMED, "\ud800", 1, good))
        self.failure("fatal", "version 0", lambda event, out: out.put(NAMED, "k", 0, good))
        self.failure("fatal", "version 9223372036854775808", lambda event, out: out.put(NAMED, "k", 1 << 63, good))
        self.failure("fatal", "does not name table `o`", lambda event, out: out.put(Table("o", {}), "k", 1, {}))
        self.failure("fatal", "a `Table` of the manifest is wanted, and not 't'", lambda event, out: out.put("t", "k", 1, {}))
        self.failure("fatal", "and not ['t']", lambda event, out: out.put(["t"], "k", 1, {}))
        self.failure("fatal", "and not None", lambda event, out: out.delete(None, "k", 1))

    def test_stale_writes_are_left_out_and_a_delete_is_remembered(self):
        def do(event, out):
            if event.type == "x.gone":
                out.delete(NAMED, event.agg_id, event.version)
            else:
                out.put(NAMED, event.agg_id, event.version, {"name": event.type, "j": 1})

        one = driver(do)
        one.send(event("x.a", "k", 2), event("x.b", "k", 1), event("x.gone", "k", 3), event("x.c", "k", 3))
        self.assertEqual((one.rows("named"), one.stale), ({}, 2))
        one.send(event("x.d", "k", 4))
        self.assertEqual((one.row("named", "k")["name"], one.row("named", "k").version), ("x.d", 4))

    def test_an_emitted_event_is_what_was_asked_for(self):
        def do(event, out):
            out.emit(aggregate="a", agg_id="1", type="a.b", payload={"n": 1 << 60, "t": "é"})
            out.emit(
                aggregate="a", agg_id="2", type="a.c", payload=b"[1]", at="1970-01-01T00:00:00Z", version=2, id="i"
            )

        one = driver(do)
        one.send(event("x.y", at=7, depth=2, scope="s"))
        first, second = one.emitted
        self.assertEqual((first.json(), first.at, first.depth, first.scope), ({"n": 1 << 60, "t": "é"}, 7, 3, "s"))
        self.assertEqual(first.payload, '{"n":1152921504606846976,"t":"é"}'.encode())
        self.assertEqual((second.payload, second.at, second.version, second.id), (b"[1]", 0, 2, "i"))

    def test_an_emitted_event_without_a_time_has_that_of_its_cause(self):
        class Undated(Processor):
            manifest = dict(name="undated", version="0.1.0")

            def handle(self, event, out):
                out.emit(aggregate="a", agg_id="b", type="c", payload=None)

            def flush(self, reason, out):
                self.handle(None, out)

        one = Driver(Undated)
        with self.assertRaises(Failure) as raised:
            one.flush()
        self.assertEqual(raised.exception.kind, "retry")
        self.assertIn("there is no time to emit at", raised.exception.message)
        one.send(event("x.y", at=7), event("x.y", at=5))
        one.flush()
        self.assertEqual([emitted.at for emitted in one.emitted], [7, 5, 7])

    def test_an_event_that_cannot_be_emitted_is_a_failure(self):
        def emit(**changed):
            return lambda event, out: out.emit(**{**dict(aggregate="a", agg_id="1", type="a.b", payload=1), **changed})

        for kind, says, changed in (
            ("fatal", "no `aggregate`", dict(aggregate="")),
            ("reject", "name_bytes_max", dict(agg_id="x" * 513)),
            ("reject", "control character", dict(type="a\nb")),
            ("reject", "half a character", dict(id="\ud800")),
            ("fatal", "is a NoneType", dict(agg_id=None)),
            ("fatal", "channel.data", dict(type="channel.data")),
            ("fatal", "both count from 1", dict(version=0)),
            ("fatal", "both count from 1", dict(schema_version=0)),
            ("fatal", "time of an emitted", dict(at="noon")),
            ("reject", "cannot be written", dict(payload=float("nan"))),
            ("reject", "cannot be written", dict(payload={1, 2})),
            ("reject", "half a character", dict(payload="\ud800")),
            ("reject", "event_payload_bytes_max", dict(payload="x" * EVENT_PAYLOAD_BYTES_MAX)),
        ):
            self.failure(kind, says, emit(**changed))

    def test_what_is_neither_text_nor_bytes_is_fatal_and_never_zeros(self):
        for what, do in (
            ("a state key is a int", lambda event, out: out.state.put(7, b"")),
            ("a state key is a int", lambda event, out: out.state.get(7)),
            ("a state key is a NoneType", lambda event, out: out.state.delete(None)),
            ("a state value is a int", lambda event, out: out.state.put("k", 10**9)),
            ("a state value is a list", lambda event, out: out.state.put("k", [1])),
            ("the payload of an entry is a int", lambda event, out: out.append("p", "c", 5)),
        ):
            self.failure("fatal", what, do)
        self.failure("reject", "half a character", lambda event, out: out.state.put("\ud800", b""))
        self.failure("reject", "half a character", lambda event, out: out.state.put("k", "\ud800"))
        one = driver(lambda event, out: (out.state.put("a", "é"), out.state.put(bytearray(b"b"), memoryview(b"x"))))
        one.send(event("x.y"))
        self.assertEqual(one.state, {b"a": "é".encode(), b"b": b"x"})

    def test_numbers_and_times_that_are_none_are_named(self):
        emitted = dict(aggregate="a", agg_id="b", type="c", payload={})
        for what, do in (
            ("version 1.5", lambda event, out: out.emit(**emitted, version=1.5)),
            ("schema version '1'", lambda event, out: out.emit(**emitted, schema_version="1")),
            ("`in_reply_to` is -1", lambda event, out: out.append("p", "c", in_reply_to=-1)),
            ("`in_reply_to` is 1.5", lambda event, out: out.append("p", "c", in_reply_to=1.5)),
            ("`until` of a state entry", lambda event, out: out.state.put("k", b"", until=1.5)),
            ("`until` of a state entry", lambda event, out: out.state.put("k", b"", until="soon")),
            ("`until` of a state entry", lambda event, out: out.state.put("k", b"", until=1 << 70)),
            ("`ttl` is 'long'", lambda event, out: out.state.put("k", b"", ttl="long")),
            ("`ttl` is nan", lambda event, out: out.state.put("k", b"", ttl=float("nan"))),
        ):
            self.failure("fatal", what, do)
        one = driver(lambda event, out: out.state.put("k", b"", until="1970-01-01T00:00:09Z"))
        one.send(event("x.y"))
        self.assertEqual(one._host.state, {b"k": (b"", 9_000_000)})

    def test_bytes_of_a_json_column_are_its_text(self):
        self.assertEqual(put({"j": b'{"a":1}'})["j"], {"a": 1})

    def test_entries_are_appended(self):
        def do(event, out):
            out.append("p", "c", "text", in_reply_to=4)
            out.append("p", "c", b"")
            out.append("p", "c", type="end")
            out.append("p", "c", type="error", error="broken")

        one = driver(do)
        one.send(event("x.y"))
        found = [(e.type, e.in_reply_to, e.error, e.payload) for e in one.appended]
        self.assertEqual(
            found,
            [
                ("data", 4, None, b"text"),
                ("data", None, None, b""),
                ("end", None, None, None),
                ("error", None, "broken", None),
            ],
        )
        self.failure("reject", "name of the channel has 65 bytes", lambda e, out: out.append("p", "c" * 65))
        self.failure("fatal", "type `error` only", lambda e, out: out.append("p", "c", error="x"))

    def test_a_failing_event_leaves_no_effect_and_those_before_it_stay(self):
        def do(event, out):
            out.put(NAMED, event.agg_id, 1, {"name": "é", "j": 1})
            out.emit(aggregate="a", agg_id=event.agg_id, type="a.b", payload=1)
            out.state.put(event.agg_id, b"1")
            if event.type == "x.bad":
                raise Failure.reject("bad\ud800" + "x" * 10_000)

        one = driver(do)
        with self.assertRaises(Failed) as raised:
            one.send(event("x.y", "a"), event("x.y", "b"), event("x.bad", "c"), event("x.y", "d"))
        self.assertEqual(raised.exception.index, 2)
        self.assertEqual(len(raised.exception.failure.message), 4096)
        self.assertEqual((list(one.rows("named")), [e.agg_id for e in one.emitted]), (["a", "b"], ["a", "b"]))
        self.assertEqual(one.state, {b"a": b"1", b"b": b"1"})
        one.send(event("x.y", "e"))
        self.assertEqual(list(one.rows("named")), ["a", "b", "e"])

    def test_a_batch_equals_its_events_one_by_one(self):
        class Counting(Processor):
            manifest = dict(name="c", version="0.1.0", tables=[NAMED], state_content_type="t")

            def load(self, context, saved):
                self.count = int(saved.state) if saved else 0

            def handle(self, event, out):
                if event.version % 7 == 6:
                    raise Failure.reject("every seventh")
                self.count += 1
                out.put(NAMED, event.agg_id, event.version, {"name": str(self.count), "j": len(event.agg_id)})

            def snapshot(self):
                return str(self.count)

        batch_equals_singles(Counting, [event("x.y", f"é{n % 3}", n) for n in range(1, 6)])
        batch_equals_singles(Counting, [event("x.y", f"é{n % 3}", n) for n in range(1, 20)])
