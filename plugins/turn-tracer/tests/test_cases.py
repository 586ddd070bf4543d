"""One test for each case, and what is too large to be written down."""

import json
import pathlib
import random
import unittest

import cases
from app import TurnTracer
from millrace import format_time
from millrace.testing import Driver, Failed, batch_equals_singles, event, read_events
from turns import moved_time


RECORDED = read_events(pathlib.Path(__file__).with_name("events.ndjson"))


class Cases(unittest.TestCase):
    maxDiff = None

    def test_the_recorded_events_mean_the_same_one_by_one(self):
        batch_equals_singles(TurnTracer, RECORDED, config={"max_open_turns": "2"})

    def test_the_recorded_events_give_what_is_expected(self):
        driver = Driver(TurnTracer, config={"max_open_turns": "2"})
        driver.send(RECORDED)
        expected = cases.read(pathlib.Path(__file__).with_name("expected.json"))
        self.assertEqual([e.json() for e in driver.emitted], [emitted["payload"] for emitted in expected["emitted"]])
        self.assertEqual(json.loads(driver.saved().state), expected["state"]["value"])
        reasons = {row["reason"] for row in driver.rows("turns").values()}
        self.assertLessEqual({"idle_timeout", "checkpoint_window_limit"}, reasons)


def entry(number, role, channel, text):
    at = f"2026-05-19T12:00:{number % 60:02}Z"
    payload = {
        "id": f"e{number}",
        "conversationId": "conv-1",
        "channel": channel,
        "contentType": "history",
        "content": [{"role": role, "text": text}],
        "createdAt": at,
    }
    return event("entry.created", "1", number, payload, at=at, kind="entry", cursor=str(number))


class Times(unittest.TestCase):
    def test_time_follows_two_events_and_not_one(self):
        newest, ahead = moved_time(0, 0, 100, 10)
        for at, expected in (
            (90, (100, 0)),
            (110, (110, 0)),
            (200, (110, 200)),
            (200, (110, 200)),
            (115, (115, 200)),
            (900, (200, 900)),
            (205, (205, 900)),
            (895, (900, 0)),
        ):
            newest, ahead = moved_time(newest, ahead, at, 10)
            self.assertEqual((newest, ahead), expected, at)


def busy(count):
    """Entries and archives of some conversations at a time: answered, abandoned, late, and more than may be open."""
    chance, now = random.Random(7), 1_779_192_000_000_000
    for number in range(1, count + 1):
        now += chance.choice((1, 5, 20, 90)) * 1_000_000
        at = now - (chance.randrange(300) * 1_000_000 if chance.random() < 0.1 else 0)
        conversation = f"c{number // 8 + chance.randrange(6)}"
        if chance.random() < 0.05:
            payload = {"id": conversation, "ownerUserId": "owner", "archivedAt": format_time(at)}
            yield event("conversation.updated", "1", number, payload, at=at, kind="conversation", cursor=str(number))
            continue
        role, channel = chance.choice((("USER", "history"), ("AI", "history"), ("USER", "context")))
        payload = {
            "id": f"e{number}",
            "conversationId": conversation,
            "channel": channel,
            "contentType": "history",
            "content": [{"role": role, "text": f"words {number}"}],
            "createdAt": format_time(at),
        }
        yield event("entry.created", "1", number, payload, at=at, kind="entry", cursor=str(number))


class Ticks(unittest.TestCase):
    def told(self, ticks_every):
        driver = Driver(TurnTracer, config={"max_open_turns": "4", "max_turn_age": "8m"})
        for number, one in enumerate(busy(2_000)):
            driver.send(one)
            if ticks_every and number % ticks_every == 0:
                driver.flush()
        driver.flush()
        emitted = sorted((e.agg_id, e.at, e.payload) for e in driver.emitted)
        return {key: dict(row) for key, row in driver.rows("turns").items()}, emitted, driver.saved()

    def test_it_does_not_matter_when_ticks_come(self):
        never = self.told(None)
        reasons = {row["reason"] for row in never[0].values()}
        self.assertEqual(
            reasons,
            {
                "agent_history_entry",
                "new_user_input",
                "conversation_archived",
                "idle_timeout",
                "max_turn_age",
                "checkpoint_window_limit",
            },
            "turns end in every way",
        )
        for every in (1, 7):
            for one, other in zip(never, self.told(every)):
                self.assertEqual(one, other)


class Large(unittest.TestCase):
    def exported(self, words, context):
        """The attributes of root and generation, and the row."""
        driver = Driver(TurnTracer)
        driver.send(entry(1, "USER", "history", words))
        driver.send([entry(number, "USER", "context", text) for number, text in enumerate(context, 2)])
        driver.send(entry(50, "AI", "history", words))
        [closed], [row] = driver.emitted, driver.rows("turns").values()
        payload = closed.json()
        self.assertLessEqual(len(json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()), 1_000_000)
        self.assertEqual(payload["endReason"], "agent_history_entry")
        self.assertEqual(driver.rows("passed_entries"), {})
        return payload["span"]["attributes"], payload["generation"]["attributes"], row

    def test_r21_a_turn_with_a_mebibyte_of_context_is_exported(self):
        for letter in ("a", "é", '"', "\n", "\1"):
            context = [f"{number} {letter * 25_000}" for number in range(20)]
            words = f"w{letter * 32_767}"
            root, generation, row = self.exported(words, context)
            self.assertEqual(generation["langfuse.observation.metadata.truncated"], True, repr(letter))
            messages = json.loads(generation["input.value"])
            self.assertTrue(messages[-1]["content"].startswith("19 "), "the newest is there")
            self.assertNotIn("e2: 0 ", generation["gen_ai.prompt"], "the oldest is not")
            self.assertEqual(generation["langfuse.observation.metadata.context_entry_count"], 20)
            self.assertEqual((row["input"], row["output"]), (words, words))
            self.assertTrue(root["input.value"].startswith(f"w{letter}"))

    def test_what_fits_is_not_cut(self):
        root, generation, _ = self.exported("words", ["a" * 30_000] * 3)
        for attributes in (root, generation):
            self.assertNotIn("langfuse.observation.metadata.truncated", attributes)
        self.assertEqual([len(message["content"]) for message in json.loads(generation["input.value"])], [30_000] * 3)

    def test_a_time_that_cannot_be_written_is_rejected(self):
        driver = Driver(TurnTracer)
        for at in (-(1 << 62), 1 << 62):
            with self.assertRaises(Failed) as raised:
                driver.send(event("entry.created", "1", 1, {}, at=at, kind="entry", cursor="1"))
            self.assertEqual(raised.exception.failure.kind, "reject")
        driver.restart()


def _add(path):
    def test(self):
        case = cases.read(path)
        self.assertEqual(cases.run(case, TurnTracer), case["expected"])
        self.assertEqual(cases.run(case, TurnTracer, singly=True), case["expected"], "one by one")

    setattr(Cases, f"test_{path.stem}", test)


for _path in sorted(cases.FOLDER.glob("*.json")):
    _add(_path)

if __name__ == "__main__":
    unittest.main()
