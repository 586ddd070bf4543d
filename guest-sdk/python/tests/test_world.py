"""What stands in for the generated modules has the shapes of the world."""

import dataclasses
import enum
import pathlib
import re
import unittest

from millrace import plain
from millrace.effects import RECORD as EFFECT
from millrace.event import RECORD as EVENT

WIT = pathlib.Path(__file__).parents[3] / "wit" / "v0.1"


def blocks(kind):
    """Members of every `record`, `enum` or `variant`, by its name in Python."""
    found = {}
    for path in sorted(WIT.glob("*.wit")):
        text = re.sub(r"//.*", "", path.read_text(encoding="utf-8"))
        for name, body in re.findall(kind + r" ([a-z0-9-]+) \{(.*?)\}", text, re.DOTALL):
            members = [member.split(":")[0].strip(" \n%").replace("-", "_") for member in body.split(",")]
            found["".join(part.title() for part in name.split("-"))] = [member for member in members if member]
    return found


class World(unittest.TestCase):
    def test_records_have_their_members_in_order(self):
        records = blocks("record")
        compared = 0
        for name, shape in vars(plain).items():
            if dataclasses.is_dataclass(shape) and name in records:
                self.assertEqual([field.name for field in dataclasses.fields(shape)], records[name], name)
                compared += 1
        self.assertGreaterEqual(compared, 13)

    def test_enums_have_their_numbers(self):
        enums = blocks("enum")
        compared = 0
        for name, shape in vars(plain).items():
            if isinstance(shape, type) and issubclass(shape, enum.Enum) and name in enums:
                self.assertEqual([case.name.lower() for case in shape], enums[name], name)
                self.assertEqual([case.value for case in shape], list(range(len(shape))), name)
                compared += 1
        self.assertEqual(compared, 4)
        kinds = ["put", "delete", "state_put", "state_delete", "emit", "append"]
        self.assertEqual(enums["EffectKind"], kinds)

    def test_every_case_of_a_variant_has_its_class(self):
        for name, cases in blocks("variant").items():
            for case in cases:
                case = case.partition("(")[0]
                self.assertTrue(hasattr(plain, f"{name}_{case.title().replace('_', '')}"), f"{name} {case}")

    def test_records_have_the_size_that_crosses(self):
        self.assertEqual((EVENT.size, EFFECT.size), (72, 56))
