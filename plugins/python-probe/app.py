"""For the host's own tests: asks for what Python programs take for granted, as the event's type says. What it is told
stands in the table `probed`, under the event's aggregate."""

import datetime
import random
import sys
import time
import uuid

from millrace import ChannelEntry, Processor, Table, export, text

PROBED = Table("probed", {"answer": text()})


@export
class Probe(Processor):
    manifest = dict(name="python-probe", version="0.1.0", tables=[PROBED], flush_interval_ms=1_000)

    def handle(self, event, out):
        verb = event.type.rpartition(".")[2]
        self.event = event
        out.put(PROBED, event.agg_id, 0, {"answer": str(getattr(self, verb)())})

    def flush(self, reason, out):
        out.put(PROBED, f"flush/{reason}", 0, {"answer": str(self.time())})

    def time(self):
        return time.time_ns() // 1_000

    def now(self):
        return datetime.datetime.now(datetime.timezone.utc).isoformat()

    def parse(self):
        return datetime.datetime.strptime("2026-05-19", "%Y-%m-%d").date()

    def data(self):
        return self.event.payload_as(ChannelEntry).bytes()

    def chance(self):
        return random.random(), random.randrange(1 << 60), uuid.uuid4()

    def speak(self):
        print("a line for", "the log")
        print("and one for its errors", file=sys.stderr)
        return "spoken"

    def late(self):
        try:
            import wave
        except ImportError as error:
            return f"{type(error).__name__}: {error}"
        return wave

    def file(self):
        try:
            return open("/etc/hostname")
        except OSError as error:
            return f"{type(error).__name__}: {error}"

    def sleep(self):
        try:
            return time.sleep(1)
        except RuntimeError as error:
            return error

    def fall(self):
        return {}["missing"]

    def leave(self):
        sys.exit("enough")
