"""Misbehaves in the way that the setting `mode` names: on an event of type `poison`, on any, or in another of its calls. All
other events are noted in a table and counted, so that a test sees who went on. Events of type `tally` are counted beside the
state, whatever the mode: a restart forgets them."""

import os
import random
import re
import sys
import time

from millrace import Failure, Processor, Refused, Table, config, export, log, text

SEEN = Table("seen_python", {"type": text()})


def loop(_):
    while True:
        pass


def bomb(_):
    kept = []
    while True:
        kept.append(bytearray(1 << 20))


def bomb_of_objects(_):
    kept = None
    while True:
        kept = {"kept": kept, "and": [1, 2, 3]}


def deep(n):
    return 1 + deep(n + 1)


def recursion(_):
    deep(0)


def recursion_without_a_limit(_):
    sys.setrecursionlimit(1_000_000_000)
    deep(0)


def effects(out):
    for n in range(100_001):
        out.put(SEEN, f"k{n}", 0, {"type": "x"})


def output(out):
    for n in range(20):
        out.put(SEEN, f"k{n}", 0, {"type": "x" * 1_000_000})


def logs(_):
    for _ in range(5_000):
        log.info("again and again")


def prints(_):
    for _ in range(5_000):
        print("again and again")


def large_log(_):
    log.info("x" * 20_000_000)


def error(_):
    raise ValueError("as asked")


def error_without_a_message(_):
    raise ValueError


def large_error(_):
    raise ValueError("no " * 1_000_000)


class Lying(Exception):
    def __str__(self):
        raise ValueError("loud")


def error_that_lies(_):
    raise Lying


def exits(_):
    sys.exit("enough")


def exits_at_once(_):
    os._exit(3)


def aborts(_):
    os.abort()


def regex(_):
    re.match("(a+)+$", "a" * 40 + "b")


def large_text(_):
    return len("x" * (1 << 30))


def large_number(_):
    return 7 ** 7 ** 7 ** 7


def reads_a_file(_):
    with open("app.py") as file:
        return file.read()


def imports_late(_):
    import wave

    return wave


def clock(_):
    return time.time(), time.monotonic()


def chance(_):
    return random.random()


def evaluates(_):
    return eval("6 * 7")


def rejects(_):
    raise Failure.reject("not this one")


def stops(_):
    raise Failure.fatal("no further")


ON_POISON = {
    act.__name__: act
    for act in (
        loop, bomb, bomb_of_objects, recursion, recursion_without_a_limit, effects, output, logs, prints, large_log,
        error, error_without_a_message, large_error, error_that_lies, exits, exits_at_once, aborts, regex, large_text,
        large_number, reads_a_file, imports_late, clock, chance, evaluates, rejects, stops,
    )
}  # fmt: skip


# Rounds of nothing, which take far longer than what else is done with an event.
SLOW_ROUNDS = 3_000_000
LEAKED_BYTES = 1 << 19
TWICE = "hostile-python.twice"


@export
class Hostile(Processor):
    manifest = dict(
        name="hostile-python",
        version="1.0.0",
        state_content_type="application/json",
        tables=[SEEN],
        flush_interval_ms=3_600_000,
    )

    def load(self, context, saved):
        self.mode = config.get("mode")
        self.snapshots = self.tally = 0
        self.leaked = []
        self.count = 0 if saved is None else saved.json("application/json")["count"]
        if self.mode == "refuse":
            raise Refused("not with me")
        if self.mode == "load_falls":
            self.missing.member()
        if self.mode == "load_loops":
            loop(None)

    def handle(self, event, out):
        if event.type == TWICE:
            return
        if event.type == "poison" and self.mode in ON_POISON:
            ON_POISON[self.mode](out)
        if self.mode == "slow":
            for _ in range(SLOW_ROUNDS):
                pass
        if self.mode == "leaks":
            self.leaked.append(bytearray(LEAKED_BYTES))
        out.put(SEEN, event.agg_id, 0, {"type": self.noted(event.type)})
        if event.aggregate == "flight":
            self.count_flight(event, out)
        self.count += 1

    def noted(self, type_):
        if self.mode == "wrong":
            return f"not {type_}"
        if type_ != "tally":
            return type_
        self.tally += 1
        return f"tally {self.tally}"

    def count_flight(self, event, out):
        """What swaps must neither lose nor double: an entry for each flight, and an event at its second one."""
        seen = (out.state.get_json(event.agg_id) or 0) + 1
        out.state.put_json(event.agg_id, seen)
        if seen == 2:
            payload = {"version": event.version, "wrong": self.mode == "wrong"}
            out.emit(aggregate="twice", agg_id=event.agg_id, type=TWICE, payload=payload)

    def flush(self, reason, out):
        if self.mode == "flush_falls":
            raise TypeError("no flush")
        if self.mode == "flush_fails":
            raise Failure.retry("later")

    def snapshot(self):
        if self.mode == "snapshot_falls":
            return self.missing.member
        if self.mode == "snapshot_is_none":
            return None
        if self.mode in ("snapshots_differ", "snapshots_differ_later"):
            self.snapshots += 1
        if self.mode == "snapshot_is_large":
            return "x" * (9 << 20)
        # The host itself compares the first two.
        snapshots = 0 if self.mode == "snapshots_differ_later" and self.snapshots < 3 else self.snapshots
        return f'{{"count":{self.count},"snapshots":{snapshots}}}'
