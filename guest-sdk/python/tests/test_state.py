import json
import unittest

from millrace import Failure, Processor, Refused, Saved
from millrace.limits import STATE_EXPIRED_DELETES_MAX
from millrace.testing import Driver, Failed, event

SECOND = 1_000_000


class Asking(Processor):
    """Does what the payload says and keeps what it read."""

    manifest = dict(name="asking", version="0.1.0", ordering_key="single")

    def load(self, context, saved):
        self.read, self.loaded = [], list(context.state_scan("l/"))
        self.one = context.state_get("l/1")

    def handle(self, event, out):
        for verb, *words in event.json():
            if verb == "put":
                out.state.put(words[0], words[1].encode(), **(words[2] if len(words) > 2 else {}))
            elif verb == "delete":
                out.state.delete(words[0])
            elif verb == "get":
                self.read.append(out.state.get(words[0]))
            else:
                self.read.append([key.decode() for key, _ in out.state.scan(*words)])

    def flush(self, reason, out):
        self.read.append(out.state.get("t"))
        out.state.put("flushed", reason.encode(), ttl=1)


def step(*verbs, at=0):
    return event("x.y", "a", 1, list(verbs), at=at)


class StateTests(unittest.TestCase):
    def reads(self, *steps, state=None):
        driver = Driver(Asking, state=state)
        driver.send(list(steps))
        return driver.processor.read, driver

    def test_what_was_written_in_the_batch_is_read(self):
        read, driver = self.reads(
            step(["put", "a", "1"], ["get", "a"]),
            step(["get", "a"], ["delete", "a"], ["get", "a"]),
            step(["get", "b"]),
            state={b"b": b"host"},
        )
        self.assertEqual(read, [b"1", b"1", None, b"host"])
        self.assertEqual(driver.state, {b"b": b"host"})

    def test_a_scan_sees_both_in_order(self):
        state = {f"k/{n:04}".encode(): b"h" for n in range(2500)} | {b"j": b"", b"l": b""}
        read, _ = self.reads(
            step(["put", "k/0001x", "m"], ["delete", "k/0002"], ["put", "k/0003", "m"], ["scan", "k/", None, 4]),
            step(["scan", "k/"], ["scan", "k/", "k/2498"], ["scan", "k/", "k/0001", 1], ["scan", "none"]),
            state=state,
        )
        self.assertEqual(read[0], ["k/0000", "k/0001", "k/0001x", "k/0003"])
        self.assertEqual(len(read[1]), 2500)
        self.assertEqual(read[1], sorted(read[1]))
        self.assertEqual(read[2:], [["k/2499"], ["k/0001x"], []])

    def test_an_entry_is_gone_by_the_events_time(self):
        read, driver = self.reads(
            step(["put", "t", "1", {"ttl": 1}], at=0),
            step(["get", "t"], ["scan", "t"], at=SECOND - 1),
            step(["get", "t"], ["scan", "t"], at=SECOND),
        )
        self.assertEqual(read, [b"1", ["t"], None, []])
        self.assertEqual(driver.state, {}, "what is found to be gone is deleted")

    def test_an_event_deletes_no_more_than_its_share_of_what_is_gone(self):
        state = {f"{n:03}".encode(): (b"", 1) for n in range(100)}
        read, driver = self.reads(step(["scan", ""], at=5), state=state)
        self.assertEqual((read, len(driver.state)), ([[]], 100 - STATE_EXPIRED_DELETES_MAX))

    def test_flush_counts_from_the_latest_event(self):
        driver = Driver(Asking)
        with self.assertRaises(Failure) as raised:
            driver.flush()
        self.assertEqual(raised.exception.kind, "retry")
        driver.send(step(["put", "t", "1", {"until": 9 * SECOND}], at=8 * SECOND), step(at=2 * SECOND))
        driver.flush("shutdown")
        driver.send(step(at=10 * SECOND))
        driver.flush()
        self.assertEqual(driver.processor.read, [None, b"1", None])
        self.assertEqual(driver._host.state[b"flushed"], (b"tick", 11 * SECOND))

    def test_bounds_of_keys_and_values(self):
        for verbs, says in (
            ([["put", "", "1"]], "state_key_bytes_max"),
            ([["put", "k" * 513, "1"]], "513 bytes"),
            ([["put", "k", "v" * ((1 << 20) + 1)]], "state_value_bytes_max"),
        ):
            with self.assertRaises(Failed) as raised:
                self.reads(step(*verbs))
            self.assertIn(says, raised.exception.failure.message)

    def test_json_that_this_plugin_did_not_write_is_fatal(self):
        class Reading(Processor):
            manifest = dict(name="r", version="0.1.0")

            def handle(self, event, out):
                out.state.put_json("k", {"n": 1})
                assert out.state.get_json("k") == {"n": 1} and out.state.get_json("none") is None
                out.state.get_json("bad")

        with self.assertRaises(Failed) as raised:
            Driver(Reading, state={b"bad": b"{"}).send(event("x.y"))
        self.assertEqual(raised.exception.failure.kind, "fatal")

    def test_load_reads_what_is_there(self):
        driver = Driver(Asking, state={b"l/1": b"1", b"l/2": b"2", b"m": b""})
        self.assertEqual(driver.processor.loaded, [(b"l/1", b"1"), (b"l/2", b"2")])
        self.assertEqual(driver.processor.one, b"1")

    def test_a_saved_state_of_another_type_is_refused(self):
        saved = Saved("a/b", b"{")
        with self.assertRaisesRegex(Refused, "`a/b`, this version reads `c/d`, `e/f`"):
            saved.json("c/d", "e/f")
        for state in (b"{", b"\xff", b"[" * 100_000):
            with self.assertRaisesRegex(Refused, "the saved state cannot be read"):
                Saved("a/b", state).json("a/b")

    def test_a_state_of_an_older_kind_is_taken_over(self):
        class Counts(Processor):
            manifest = dict(name="counts", version="0.2.0", state_content_type="counts.v2")

            def load(self, context, saved):
                ways = {"counts.v2": lambda counts: counts, "counts.v1": lambda count: {"all": count}}
                self.counts = saved.migrate(ways) if saved else {}

            def handle(self, event, out):
                pass

            def snapshot(self):
                return json.dumps(self.counts)

        def start(content_type, state):
            return Driver(Counts, saved=Saved(content_type, state)).processor.counts

        self.assertEqual(start("counts.v1", b"7"), {"all": 7})
        self.assertEqual(start("counts.v2", b'{"a":1}'), {"a": 1})
        with self.assertRaisesRegex(Refused, "`counts.v3`, this version reads `counts.v2`, `counts.v1`"):
            start("counts.v3", b"{}")
        with self.assertRaisesRegex(Refused, "the saved state cannot be read"):
            start("counts.v2", b"{")
