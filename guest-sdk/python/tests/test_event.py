import unittest
from datetime import datetime, timezone

from millrace import Failure, Processor
from millrace.testing import Driver, Failed, event


class Seen(Processor):
    """Keeps what a look at each event gives."""

    manifest = dict(name="seen", version="0.1.0")
    look = staticmethod(lambda event: event.json())

    def load(self, context, saved):
        self.seen = []

    def handle(self, event, out):
        self.seen.append(self.look(event))


def looked(look, *events):
    driver = Driver(type("Looking", (Seen,), {"look": staticmethod(look)}))
    driver.send(*events)
    return driver.processor.seen


class Events(unittest.TestCase):
    def test_every_part_is_what_was_sent(self):
        sent = event(
            "thing.changed",
            "a-1",
            3,
            [1],
            at=-5,
            id="i",
            schema_version=2,
            depth=1,
            scope="s",
            kind="k",
            cursor="c",
            traceparent="t",
        )
        names = (
            "id aggregate agg_id type scope kind cursor traceparent version at schema_version depth payload position"
        )
        for around in (event("x.y", "é", 1, "ü"), event("x.y", "e", 1, "u")):
            found = looked(lambda e: [getattr(e, name) for name in names.split()], around, sent)[1]
            self.assertEqual(found, ["i", "thing", "a-1", "thing.changed", "s", "k", "c", "t", 3, -5, 2, 1, b"[1]", 2])

    def test_an_absent_part_is_none(self):
        found = looked(lambda e: [e.scope, e.kind, e.cursor, e.traceparent], event("x.y"))
        self.assertEqual(found, [[None] * 4])

    def test_text_of_one_to_four_bytes_a_character_at_the_borders_of_parts(self):
        text = "aé€😀"
        found = looked(
            lambda e: (e.agg_id, e.type, e.kind, e.cursor, e.json()),
            *(event(f"x.{t}", t, 1, t, kind=t, cursor=t) for t in (text, text[::-1])),
        )
        self.assertEqual(found, [(t, f"x.{t}", t, t, t) for t in (text, text[::-1])])

    def test_numbers_beyond_2_53_are_exact(self):
        big = (1 << 63) - 1
        sent = event("x.y", "a", big, b'{"n":9007199254740993,"m":123456789012345678901234567890}', at=-(1 << 63))
        found = looked(lambda e: (e.version, e.at, e.json()), sent)
        self.assertEqual(found, [(big, -(1 << 63), {"n": 9007199254740993, "m": 123456789012345678901234567890})])

    def test_a_payload_ends_where_it_ends(self):
        # The next event's id begins with digits: read on, it would be part of the number.
        events = [event("x.y", "a", 1, b"1"), event("x.y", "a", 2, b" [2] ", id="23"), event("x.y", "a", 3, b"4")]
        self.assertEqual(looked(lambda e: e.json(), *events), [1, [2], 4])

    def test_what_is_no_json_is_rejected_with_its_place(self):
        for payload in (b"", b"{", b"1 2", b"\xc3\xa9", '{"é"'.encode(), b"[" * 100_000):
            with self.assertRaises(Failed) as raised:
                looked(lambda e: e.json(), event("x.y", "a"), event("x.y", "b", 7, payload))
            failed = raised.exception
            self.assertEqual((failed.index, failed.failure.kind), (1, "reject"))
            self.assertIn("`x.y` b version 7", failed.failure.message)

    def test_an_event_is_borrowed_and_a_copy_stays(self):
        borrowed = looked(lambda e: e, event("x.y", "a"), event("x.y", "b"))
        self.assertIs(borrowed[0], borrowed[1])
        copies = looked(lambda e: e.copy(), event("x.y", "a", 1, "é"), event("x.y", "b", 2, [2]))
        self.assertEqual([(copy.agg_id, copy.json()) for copy in copies], [("a", "é"), ("b", [2])])

    def test_time_is_a_datetime_in_utc(self):
        sent = event("x.y", at="2026-05-19T12:00:00.000001+02:00")
        self.assertEqual(looked(lambda e: e.time, sent), [datetime(2026, 5, 19, 10, 0, 0, 1, timezone.utc)])

    def test_a_failure_says_its_kind(self):
        self.assertEqual(str(Failure.fatal("no")), "fatal: no")
