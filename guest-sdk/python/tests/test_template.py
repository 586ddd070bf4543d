"""The project that `millrace plugin new` writes, over the events that it comes with."""

import json
import pathlib
import sys
import unittest

from millrace import format_time
from millrace.testing import Driver, batch_equals_singles, read_events

TEMPLATE = pathlib.Path(__file__).parent.parent / "template"
sys.path.insert(0, str(TEMPLATE))

from app import Counter


class Template(unittest.TestCase):
    def test_it_gives_what_it_says(self):
        expected = json.loads((TEMPLATE / "tests/expected.json").read_text())
        driver = Driver(Counter)
        driver.send(read_events(TEMPLATE / "tests/events.ndjson"))
        rows = [
            {"key": key, "version": row.version, "events": row["events"], "last_at": format_time(row["last_at"])}
            for key, row in sorted(driver.rows("plugin_name").items())
        ]
        self.assertEqual(rows, expected["rows"]["plugin_name"])
        emitted = [(e.type, e.agg_id, e.version, format_time(e.at), e.json()) for e in driver.emitted]
        (told,) = expected["emitted"]
        self.assertEqual(emitted, [tuple(told[name] for name in ("type", "agg_id", "version", "at", "payload"))])
        saved = driver.saved()
        self.assertEqual(saved.content_type, expected["state"]["content_type"])
        self.assertEqual(json.loads(saved.state), expected["state"]["value"])

    def test_batches_of_any_size_give_the_same(self):
        batch_equals_singles(Counter, read_events(TEMPLATE / "tests/events.ndjson"))
