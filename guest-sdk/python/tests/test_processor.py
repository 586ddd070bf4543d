import datetime
import os
import random
import sys
import time
import unittest
import uuid

import millrace
from millrace import Failure, Processor, Refused, Saved, Table, change_field, config, export, int_, log, payload_field
from millrace import ambient, manifest, plain
from millrace.instance import Instance
from millrace.testing import Driver, Failed, event


class Rules(unittest.TestCase):
    def test_a_manifest_says_what_is_wrong_with_it(self):
        good = dict(name="a", version="0.1.0")
        for changed, says in (
            (dict(tabels=[]), "no `tabels`; did you mean `tables`?"),
            (dict(name=None), "no `name`"),
            (dict(types="x.*"), "`types` of the manifest is a str and not a list"),
            (dict(ordering_key="lane"), "the ordering key is 'lane'"),
            (dict(changes={"a": ["ids"]}), "a scope of changes is 'ids'"),
        ):
            with self.assertRaisesRegex(ValueError, says.replace("?", r"\?")):
                manifest.to_wire({**good, **changed})
            with self.assertRaises(ValueError):
                export(type("P", (Processor,), dict(manifest={**good, **changed})))

    def test_a_manifest_crosses_as_it_is(self):
        wire = manifest.to_wire(
            dict(
                name="a",
                version="1.2.3",
                summary="s",
                state_content_type="t",
                ordering_key=payload_field("m"),
                types=["x.*"],
                aggregates=("x",),
                tables=[Table("t", {"c": int_().sortable()}, window_rows_max=5)],
                grants=["channels"],
                flush_interval_ms=10,
                changes={"x": ["id", "tenant", change_field("m", "n")]},
            )
        )
        self.assertEqual((wire.ordering_key.value, wire.flush_interval_ms, wire.grants), ("m", 10, ["channels"]))
        self.assertEqual((wire.tables[0].window_rows_max, wire.tables[0].columns[0].sortable), (5, True))
        field = wire.changes[0].scopes[2].value
        self.assertEqual((field.name, field.member), ("n", "m"))

    def test_a_class_that_cannot_be_a_processor_is_told_so(self):
        with self.assertRaisesRegex(TypeError, "has no `load`"):
            export(type("P", (), dict(manifest=dict(name="a", version="1.0.0"))))

        class Late(Processor):
            manifest = dict(name="a", version="1.0.0")

            async def handle(self, event, out):
                pass

        with self.assertRaisesRegex(TypeError, "`handle` of Late is async"):
            export(Late)
        good = dict(manifest=dict(name="a", version="1.0.0"), handle=lambda self, event, out: None)

        def yields(self, event, out):
            yield out

        async def both(self, event, out):
            yield out

        for changed, says in (
            (dict(handle=yields), "`handle` of P has a `yield`"),
            (dict(flush=both), "`flush` of P is async"),
            (dict(handle=Processor.handle), "P has no `handle` of its own"),
            (dict(manifest=dict(good["manifest"], state_content_type="t")), "has no `snapshot` of its own"),
        ):
            with self.assertRaisesRegex(TypeError, says):
                export(type("P", (Processor,), {**good, **changed}))

    def test_a_snapshot_that_is_a_number_is_no_state(self):
        class Counts(Processor):
            manifest = dict(name="a", version="1.0.0", state_content_type="t")

            def snapshot(self):
                return 3

        with self.assertRaisesRegex(Failure, "what `snapshot` answered is a int"):
            Driver(Counts).saved()

    def test_a_refusal_is_what_the_operator_reads(self):
        class Picky(Processor):
            manifest = dict(name="a", version="1.0.0", state_content_type="t")

            def load(self, context, saved):
                self.limit = config.whole("limit", 5)
                self.wait = config.duration("wait", "5m")
                self.mode = config.one_of("mode", ("fast", "slow"))
                self.loud = config.flag("loud", False)
                if saved:
                    saved.json("t")

        one = Driver(Picky, config=dict(limit="7", wait="1500ms", mode="slow", loud="true")).processor
        self.assertEqual((one.limit, one.wait, one.mode, one.loud), (7, 1_500_000, "slow", True))
        one = Driver(Picky).processor
        self.assertEqual((one.limit, one.wait, one.mode, one.loud), (5, 300_000_000, "fast", False))
        for name, value in (("limit", "many"), ("wait", "5"), ("mode", "odd"), ("loud", "yes")):
            with self.assertRaisesRegex(Refused, f"setting `{name}` is `{value}`"):
                Driver(Picky, config={name: value})
        with self.assertRaisesRegex(Refused, "content type `u`"):
            Driver(Picky, saved=Saved("u", b""))

    def test_the_driver_finds_an_event_that_failed_and_changed_the_state(self):
        class Leaky(Processor):
            manifest = dict(name="a", version="1.0.0", state_content_type="t")

            def load(self, context, saved):
                self.count = int(saved.state) if saved else 0

            def handle(self, event, out):
                self.count += 1
                raise millrace.Failure.reject("no")

            def snapshot(self):
                return str(self.count)

        with self.assertRaisesRegex(AssertionError, "has changed the state"):
            Driver(Leaky).send(event("x.y"))

    def test_a_failure_tells_of_the_exception_that_it_is_given(self):
        class Careful(Processor):
            manifest = dict(name="a", version="1.0.0")

            def handle(self, event, out):
                try:
                    raise ConnectionError("nobody answers")
                except ConnectionError as error:
                    raise getattr(Failure, event.type[2:])(error)

            def flush(self, reason, out):
                raise Failure.retry(None)

        for kind in ("retry", "reject", "fatal"):
            with self.assertRaises(Failed) as raised:
                Driver(Careful).send(event(f"x.{kind}"))
            failure = raised.exception.failure
            self.assertEqual((failure.kind, failure.message), (kind, "nobody answers"))
        with self.assertRaisesRegex(Failure, "^retry: None$"):
            Driver(Careful).flush()

    def test_a_kind_of_failure_that_is_none_is_refused_where_it_is_made(self):
        for kind in ("again", "Retry", "", None, ["retry"]):
            with self.assertRaisesRegex(ValueError, "is no kind of failure; there are: retry, reject, fatal"):
                Failure(kind, "no")

    def test_an_exception_names_its_line_in_the_log(self):
        class Falling(Processor):
            manifest = dict(name="a", version="1.0.0")

            def handle(self, event, out):
                self.deeper(event.json())

            def deeper(self, payload):
                return payload["missing"]

        driver = Driver(Falling)
        with self.assertRaises(KeyError):
            driver.send(event("x.y"), event("x.y", "b", 2))
        (message,) = driver.messages
        self.assertEqual(message.level, "error")
        self.assertRegex(
            message.text,
            r"^KeyError: 'missing' \(test_processor.py:\d+ in deeper, test_processor.py:\d+ in handle\) "
            r"at <event 1: x.y of x 1 version 1>$",
        )

    def test_an_exception_that_raises_when_it_is_looked_at_is_told_all_the_same(self):
        class Lying(Exception):
            def __str__(self):
                raise ValueError("loud")

        class Lies(Processor):
            manifest = dict(name="a", version="1.0.0")

            def handle(self, event, out):
                raise Lying

        driver = Driver(Lies)
        with self.assertRaises(Lying):
            driver.send(event("x.y"))
        self.assertIn("Lying: an exception that cannot be told", driver.messages[-1].text)

    def test_a_manifest_that_cannot_be_had_names_its_line_in_the_log(self):
        class Computed(type):
            @property
            def manifest(cls):
                raise ValueError("no manifest today")

        class Late(Processor, metaclass=Computed):
            pass

        instance = Instance(Late)
        for call in (instance.describe, lambda: instance.load(plain.Context("t", 0, 1), None)):
            host = plain.Host()
            plain.enter(host)
            try:
                with self.assertRaises(ValueError):
                    call()
            finally:
                plain.leave()
                ambient.end()
            ((level, text),) = host.messages
            self.assertEqual(level, "error")
            self.assertRegex(text, r"^ValueError: no manifest today \(test_processor.py:\d+ in manifest\)$")

    def test_messages_have_their_levels(self):
        class Talking(Processor):
            manifest = dict(name="a", version="1.0.0")

            def handle(self, event, out):
                log.debug(1), log.info("é"), log.warn("\ud800"), log.error("e")

        driver = Driver(Talking)
        driver.send(event("x.y"))
        self.assertEqual(
            [tuple(message) for message in driver.messages],
            [("debug", "1"), ("info", "é"), ("warn", "?"), ("error", "e")],
        )


class Ambient(unittest.TestCase):
    def asked(self, ask, *events, flush=False):
        class Asking(Processor):
            manifest = dict(name="a", version="1.0.0")

            def load(self, context, saved):
                self.answers = []

            def handle(self, event, out):
                self.answers.append(ask())

            def flush(self, reason, out):
                self.answers.append(ask())

        driver = Driver(Asking)
        driver.send(list(events))
        if flush:
            driver.flush()
        return driver.processor.answers

    def test_clocks_answer_by_the_event(self):
        at = ["2026-05-19T12:00:00.25Z", "2026-05-19T12:00:01Z", "2026-05-19T11:00:00Z"]
        events = [event("x.y", at=time) for time in at]
        seconds = 1779192000
        found = self.asked(time.time, *events, flush=True)
        self.assertEqual(found, [seconds + 0.25, seconds + 1, seconds - 3600, seconds + 1])
        self.assertEqual(self.asked(time.time_ns, events[0]), [(seconds * 1000 + 250) * 1_000_000])
        self.assertEqual(self.asked(time.monotonic, events[1]), [seconds + 1])
        self.assertEqual(self.asked(lambda: time.gmtime().tm_hour, events[2]), [11])
        self.assertEqual(self.asked(lambda: time.strftime("%H:%M"), events[2]), ["11:00"])
        self.assertEqual(self.asked(lambda: time.strftime("%H:%M", time.gmtime(60)), events[2]), ["00:01"])
        now = self.asked(lambda: datetime.datetime.now(datetime.timezone.utc), events[0])[0]
        self.assertEqual(now.isoformat(), "2026-05-19T12:00:00.250000+00:00")
        self.assertEqual(self.asked(lambda: datetime.datetime.utcnow().hour, events[2]), [11])
        self.assertEqual(self.asked(lambda: datetime.date.today().isoformat(), events[2]), ["2026-05-19"])

    def test_before_the_first_event_there_is_no_time_in_flush(self):
        def emit(out):
            out.emit(aggregate="a", agg_id="b", type="c", payload={})

        clocks = (time.time, time.monotonic_ns, time.gmtime, datetime.datetime.now, datetime.date.today)
        for ask in (*(lambda _, clock=clock: clock() for clock in clocks), emit):

            class Asks(Processor):
                manifest = dict(name="a", version="1.0.0")

                def handle(self, event, out):
                    pass

                def flush(self, reason, out):
                    ask(out)

            driver = Driver(Asks)
            with self.assertRaises(Failure) as raised:
                driver.flush()
            self.assertEqual(raised.exception.kind, "retry")
            self.assertIn("no event was handled since the start", raised.exception.message)
            driver.send(event("x.y", at=5))
            driver.flush()
        self.assertEqual([emitted.at for emitted in driver.emitted], [5])

    def test_chance_in_flush_is_the_same_after_a_restart(self):
        class Draws(Processor):
            manifest = dict(name="a", version="1.0.0")

            def load(self, context, saved):
                self.drawn = []

            def handle(self, event, out):
                pass

            def flush(self, reason, out):
                self.drawn.append((random.random(), random.random()))

        def drawn(*ats, flushes):
            driver = Driver(Draws)
            driver.send(*(event("x.y", at=at) for at in ats))
            for _ in range(flushes):
                driver.flush()
            return driver.processor.drawn

        self.assertEqual(drawn(7, flushes=2)[1], drawn(7, flushes=1)[0])
        self.assertEqual(drawn(3, 7, flushes=1), drawn(7, flushes=1))
        self.assertNotEqual(drawn(7, flushes=1), drawn(8, flushes=1))

    def test_outside_of_a_call_clocks_are_what_they_were(self):
        self.asked(time.time, event("x.y", at=0))
        self.assertGreater(time.time(), 1_600_000_000)
        self.assertGreater(datetime.datetime.now().year, 2020)
        self.assertIsInstance(
            datetime.datetime.fromisoformat("2026-01-01") - datetime.datetime(2026, 1, 1), datetime.timedelta
        )
        self.assertIsInstance(event("x.y"), object)

    def test_a_real_datetime_counts_as_one(self):
        real = datetime.datetime.strptime("2026", "%Y")
        self.assertIsInstance(real, datetime.datetime)
        self.assertIsInstance(real, datetime.date)
        self.assertTrue(issubclass(datetime.datetime, datetime.date))

        class Own(datetime.datetime):
            pass

        self.assertNotIsInstance(real, Own)
        self.assertIsInstance(Own(2026, 1, 1), Own)
        self.assertIsInstance(Own(2026, 1, 1), datetime.datetime)

    def test_chance_follows_from_the_event(self):
        events = [event("x.y", "a"), event("x.y", "b", 2)]

        def ask():
            return random.random(), random.randint(0, 1 << 60), uuid.uuid4(), os.urandom(4), random.Random().random()

        first, again = self.asked(ask, *events), self.asked(ask, *events)
        self.assertEqual(first, again)
        self.assertNotEqual(first[0], first[1])
        self.assertNotEqual(*self.asked(lambda: random.random() + random.random(), *events))
        self.assertEqual(random.Random(5).random(), random.Random(5).random())

    def test_a_processor_does_not_sleep(self):
        def ask():
            with self.assertRaisesRegex(RuntimeError, "does not sleep"):
                time.sleep(1)

        self.asked(ask, event("x.y"))

    def test_lines_go_to_the_log(self):
        written, outside = [], []

        class Outside:
            write = staticmethod(outside.append)

        lines = ambient.Lines(written.append, Outside)
        print("outside", file=lines)
        ambient.begin(None)
        try:
            print("one", 1, file=lines)
            print("half", end="", file=lines)
            self.assertEqual(written, ["one 1"])
            lines.write("\n\nx" + "y" * 10_000)
            lines.write("z")
            lines.flush()
        finally:
            ambient.end()
        self.assertEqual([line[:4] for line in written], ["one ", "half", "xyyy", "z"])
        self.assertEqual("".join(outside), "outside\n")
        self.assertFalse(lines.isatty())


class Times(unittest.TestCase):
    def test_times_are_read_and_written(self):
        for text, micros in (
            ("1970-01-01T00:00:00Z", 0),
            ("1969-12-31T23:59:59.999999Z", -1),
            ("2026-05-19T12:00:00.1234567+02:30", 1779183000123456),
            ("2016-12-31t23:59:60z", 1483228799000000),
            ("0001-01-01T00:00:00Z", -62135596800000000),
        ):
            self.assertEqual(millrace.parse_time(text), micros, text)
        for text in (
            "",
            "2026-02-30T00:00:00Z",
            "2026-01-01",
            "2026-01-01T00:00:00",
            "2026-01-01T24:00:00Z",
            "２026-01-01T00:00:00Z",
        ):
            with self.assertRaises(ValueError):
                millrace.parse_time(text)
        self.assertEqual(millrace.format_time(1779183000123400), "2026-05-19T09:30:00.1234Z")
        self.assertEqual(millrace.format_time(-62135596800000000), "0001-01-01T00:00:00Z")


if __name__ == "__main__":
    sys.exit(unittest.main())
