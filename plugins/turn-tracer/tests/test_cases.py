"""One test for each case."""

import pathlib
import unittest

import cases
from app import TurnTracer
from millrace.testing import batch_equals_singles, read_events


class Cases(unittest.TestCase):
    maxDiff = None

    def test_the_recorded_events_mean_the_same_one_by_one(self):
        batch_equals_singles(TurnTracer, read_events(pathlib.Path(__file__).with_name("events.ndjson")))


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
