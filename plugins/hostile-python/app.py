"""Misbehaves in the way that the setting `mode` names: on an event of type `poison`, on any, or in another of its calls. All
other events are noted in a table and counted, so that a test sees who went on. Events of type `tally` are counted beside the
state, whatever the mode: a restart forgets them. Under `as_told`, each event says itself what is to become of it, and the
state keeps what was applied; under `mended`, none fails but those that are rejected. When it is asked what it is, it does
what is written over the dashes of `NATURE` in the component."""

import json
import os
import random
import re
import sys
import time

from millrace import Failure, Processor, Refused, Table, config, export, log, text

SEEN = Table("seen_python", {"type": text()})
FOREIGN = Table("seen_js", {"type": text()})


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


def foreign_table(out):
    # The SDK would refuse a table that the manifest does not name.
    out._tables[FOREIGN] = 1
    out.put(FOREIGN, "mine", 0, {"type": "x"})


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
        loop, bomb, bomb_of_objects, recursion, recursion_without_a_limit, effects, foreign_table, output, logs, prints,
        large_log, error, error_without_a_message, large_error, error_that_lies, exits, exits_at_once, aborts, regex,
        large_text, large_number, reads_a_file, imports_late, clock, chance, evaluates, rejects, stops,
    )
}  # fmt: skip


NATURE = bytearray(b"hostile-nature:--------")


def lies(_):
    return dict(name="../hostile", version="1.0.0")


IN_DESCRIBE = {act.__name__: act for act in (loop, bomb, error, lies)}
MANIFEST = dict(
    name="hostile-python",
    version="1.0.0",
    state_content_type="application/json",
    tables=[SEEN],
    flush_interval_ms=3_600_000,
)


class Described(type):
    @property
    def manifest(cls):
        act = IN_DESCRIBE.get(NATURE.decode().replace("-", "").split(":")[1])
        return (act and act(None)) or MANIFEST


# Rounds of nothing, which take far longer than what else is done with an event.
SLOW_ROUNDS = 3_000_000
LEAKED_BYTES = 1 << 19
TWICE = "hostile-python.twice"


@export
class Hostile(Processor, metaclass=Described):
    def load(self, context, saved):
        self.mode = config.get("mode")
        self.snapshots = self.tally = 0
        self.leaked = []
        self.tries = {}
        state = {} if saved is None else saved.json("application/json")
        self.count, self.applied = state.get("count", 0), state.get("applied", {})
        if self.mode == "refuse":
            raise Refused("not with me")
        if self.mode == "load_falls":
            self.missing.member()
        if self.mode == "load_loops":
            loop(None)

    def handle(self, event, out):
        if event.type == TWICE:
            return
        if self.mode in ("as_told", "mended"):
            return self.obey(event, out)
        if event.type == "poison" and self.mode in ON_POISON:
            ON_POISON[self.mode](out)
        if event.type == "poison" and self.mode == "feeds_itself":
            version = 1_000 + event.position
            out.emit(aggregate="thing", agg_id=event.agg_id, type="poison", version=version, payload=None)
        if self.mode == "slow":
            for _ in range(SLOW_ROUNDS):
                pass
        if self.mode == "leaks":
            self.leaked.append(bytearray(LEAKED_BYTES))
        out.put(SEEN, event.agg_id, 0, {"type": self.noted(event.type)})
        if event.aggregate == "flight":
            self.count_flight(event, out)
        self.count += 1

    def obey(self, event, out):
        """`reject`, `trap` and `steal`, a row of another key's; `retry` fails as often as its payload says. All others
        count."""
        if event.type == "reject":
            raise Failure.reject("told to reject")
        if self.mode == "as_told" and event.type == "trap":
            raise ValueError("told to fall")
        if self.mode == "as_told" and event.type == "retry":
            self.tries[event.id] = self.tries.get(event.id, 0) + 1
            if self.tries[event.id] <= int(event.payload):
                raise Failure.retry("told to retry")
        applied = self.applied.setdefault(event.agg_id, [])
        applied.append(event.version)
        out.put(SEEN, "stolen" if event.type == "steal" else event.agg_id, 0, {"type": str(len(applied))})

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
        if self.mode == "flush_loops":
            loop(None)
        if self.mode == "flush_falls":
            raise TypeError("no flush")
        if self.mode == "flush_fails":
            raise Failure.retry("later")

    def snapshot(self):
        if self.mode == "snapshot_loops":
            loop(None)
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
        applied = {"applied": self.applied} if self.applied else {}
        return json.dumps({"count": self.count, "snapshots": snapshots, **applied}, separators=(",", ":"))
