import unittest

from millrace import ChannelEntry, Failure, Processor
from millrace.testing import Driver, Failed, TestEvent, event


class Reading(Processor):
    """Keeps what the entries that it handles are."""

    manifest = dict(name="reading", version="0.1.0", types=["channel.data", "channel.end", "channel.error"])

    def load(self, context, saved):
        self.entries = []

    def handle(self, event, out):
        self.entries.append(event.payload_as(ChannelEntry))


def entries(*events):
    driver = Driver(Reading)
    driver.send(*events)
    return driver.processor.entries


class Entries(unittest.TestCase):
    def test_an_entry_of_a_channel_is_read_from_its_event(self):
        written = TestEvent.entry("p-1", "requests", 4, "ada", 'hé\n"', at=5).executed_by("plugin:a")
        self.assertEqual((written.aggregate, written.agg_id, written.at), ("channel", "p-1_requests", 5))
        self.assertEqual((written.type, written.version), ("channel.data", 4))
        raw = TestEvent.entry("p-1", "requests", 5, "ada", b"\xff\0\1")
        empty = TestEvent.entry("p-1", "requests", 6, "ada", b"")
        failed = TestEvent.entry_error("p-1", "requests", 7, "ada", "no more")
        end = TestEvent.entry_end("p-1", "requests", 8, "bob")
        first, second, third, error, last = entries(written, raw, empty, failed, end)
        self.assertEqual((first.process, first.channel, first.sender), ("p-1", "requests", "ada"))
        self.assertEqual((first.position, first.sequence, first.epoch), (4, 4, 0))
        self.assertEqual((first.entry_type, first.in_reply_to, first.error), ("data", None, None))
        self.assertEqual((first.text, first.executor, first.bytes()), ('hé\n"', "plugin:a", 'hé\n"'.encode()))
        self.assertEqual((second.text, second.bytes(), second.executor), (None, b"\xff\0\1", None))
        self.assertEqual((third.text, third.bytes()), ("", b""))
        self.assertEqual((failed.type, error.entry_type, error.error), ("channel.error", "error", "no more"))
        self.assertEqual((error.payload, error.bytes()), (None, None))
        self.assertEqual((end.type, last.entry_type, last.sender, last.bytes()), ("channel.end", "end", "bob", None))
        self.assertEqual(first, ChannelEntry(written.json()))
        self.assertNotEqual(first, second)

    def test_an_entry_is_what_the_host_writes(self):
        # With a member that this version does not know.
        told = {
            "process": "p",
            "channel": "c",
            "position": (1 << 63) + 1,
            "epoch": 2,
            "sequence": 7,
            "inreplyto": 3,
            "senderid": "ada",
            "type": "data",
            "payload": "+/8A",
            "later": [1],
        }
        [entry] = entries(event("channel.data", "p_c", 1, told))
        self.assertEqual((entry.position, entry.in_reply_to, entry.epoch), ((1 << 63) + 1, 3, 2))
        self.assertEqual((entry.bytes(), entry.text), (b"\xfb\xff\0", None))

    def test_an_entry_that_is_none_is_rejected(self):
        good = TestEvent.entry("p", "c", 1, "ada", b"a").json()
        for changed, says in (
            ({"process": None}, "`process` of an entry is None"),
            ({"position": -1}, "`position` of an entry is -1"),
            ({"sequence": True}, "`sequence` of an entry is True"),
            ({"epoch": 1 << 32}, "`epoch` of an entry is 4294967296"),
            ({"type": "more"}, "`type` of an entry is 'more'"),
            ({"payload": 7}, "`payload` of an entry is 7"),
            (None, "a list is no entry"),
        ):
            with self.assertRaises(Failed) as raised:
                entries(event("channel.data", "p_c", 1, [] if changed is None else {**good, **changed}))
            failure = raised.exception.failure
            self.assertEqual(failure.kind, "reject")
            self.assertIn("the payload of `channel.data` p_c version 1 does not fit", failure.message)
            self.assertIn(says, failure.message)
        with self.assertRaisesRegex(Failure, "reject: the payload of entry 1 of `c` is not base64"):
            ChannelEntry({**good, "payload": "a"}).bytes()

    def test_a_payload_may_be_of_a_class_of_the_plugins(self):
        class Order:
            def __init__(self, payload):
                self.cents = int(payload["cents"])

        class Orders(Processor):
            manifest = dict(name="orders", version="0.1.0")

            def handle(self, event, out):
                out.state.put("cents", str(event.payload_as(Order).cents))

        driver = Driver(Orders)
        driver.send(event("order.paid", payload={"cents": "5"}))
        self.assertEqual(driver.state, {b"cents": b"5"})
        for payload in ({}, {"cents": "five"}, {"cents": None}):
            with self.assertRaises(Failed) as raised:
                driver.send(event("order.paid", payload=payload))
            self.assertEqual(raised.exception.failure.kind, "reject")
