"""What the peer can be told to do wrong, and what it has been asked. One lock guards all of it."""

import json
import os
import threading
import time


class Bucket:
    """A rate: so many at once, so many a minute."""

    def __init__(self, burst, per_minute):
        self.burst, self.rate = burst, per_minute / 60
        self.left, self.at = burst, time.monotonic()

    def take(self):
        now = time.monotonic()
        self.left = min(self.burst, self.left + (now - self.at) * self.rate)
        self.at = now
        if self.left < 1:
            return (1 - self.left) / self.rate
        self.left -= 1
        return None


class World:
    """Events, checkpoints, and the faults that are on."""

    MODES = (
        "summary_live",
        "duplicate_at_switch",
        "end_at_once",
        "no_outbox",
        "no_phases",
        "limits",
    )

    def __init__(self, path):
        self.lock = threading.Condition()
        self.path = path
        self.rows = []
        self.next = 1
        self.checkpoints = {}
        self.modes = {mode: False for mode in self.MODES}
        self.refusals = []
        self.tokens = {}
        self.refused = 0
        self.hangs = None
        self.streams = {}
        self.asked = {"subscribe": [], "get": [], "put": []}
        self.requests, self.opens = Bucket(200, 1200), Bucket(5, 30)
        if path and os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                kept = json.load(file)
            self.rows, self.next, self.checkpoints = kept["rows"], kept["next"], kept["checkpoints"]

    def keep(self):
        """Survives a kill, as the real one's outbox does."""
        if not self.path:
            return
        with open(self.path + ".new", "w", encoding="utf-8") as file:
            json.dump({"rows": self.rows, "next": self.next, "checkpoints": self.checkpoints}, file)
        os.replace(self.path + ".new", self.path)

    def publish(self, kind, event, data, summary=None, silent=False):
        """Into the outbox, and to live streams unless that is to be missed. Data is text, and goes out as it is."""
        row = {"kind": kind, "event": event, "data": data, "summary": summary, "cursor": str(self.next)}
        self.next += 1
        self.rows.append(row)
        if not silent:
            for inbox in self.streams.values():
                inbox.append(("event", row))
        return row["cursor"]

    def tell(self, *item):
        for inbox in self.streams.values():
            inbox.append(item)

    def refusal(self, method):
        """The status that the next call of a method gets, if any."""
        for index, (of, code, message, retry_ms) in enumerate(self.refusals):
            if of == method:
                del self.refusals[index]
                return code, message, retry_ms
        if method in self.tokens:
            left, retry_ms = self.tokens[method]
            if left == 0:
                self.refused += 1
                return "RESOURCE_EXHAUSTED", "rate limit exceeded", retry_ms
            self.tokens[method] = (left - 1, retry_ms)
        if self.modes["limits"]:
            wait = self.requests.take()
            if wait is None and method == "subscribe":
                wait = self.opens.take()
            if wait is not None:
                return "RESOURCE_EXHAUSTED", "rate limit exceeded", int(wait * 1000) + 1
        return None

    def control(self, command):
        """Carries out one line of standard input."""
        do = command["do"]
        with self.lock:
            answer = getattr(self, "do_" + do)(command)
            self.keep()
            self.lock.notify_all()
        return answer or {}

    def do_publish(self, command):
        count = command.get("count", 1)
        cursors = []
        for number in range(count):
            data, summary = command["data"], command.get("summary")
            if count > 1:
                data = data.replace("%d", str(number))
                summary = summary.replace("%d", str(number)) if summary else summary
            made = self.publish(command["kind"], command["event"], data, summary, command.get("silent", False))
            cursors.append(made)
        return {"cursors": cursors}

    def do_big(self, command):
        data = json.dumps({"conversation": "big", "text": "x" * command["bytes"]})
        return {"cursors": [self.publish("response", "created", data)]}

    def do_mode(self, command):
        for mode, value in command["modes"].items():
            if mode not in self.modes:
                raise KeyError(mode)
            self.modes[mode] = value

    def do_trim(self, command):
        self.rows = [row for row in self.rows if int(row["cursor"]) > command["upto"]]

    def do_refuse(self, command):
        refusal = (command["method"], command["code"], command.get("message", "told to"), command.get("retry_ms"))
        self.refusals.extend([refusal] * command.get("times", 1))

    def do_tokens(self, command):
        """So many calls of a method are taken until it is told again; what is refused may come back after a time."""
        self.tokens[command["method"]] = (command["tokens"], command.get("retry_ms", 1000))

    def do_hang(self, command):
        """Calls of this method about checkpoints are taken and not answered, until it is told again; none with null."""
        self.hangs = command["method"]

    def do_abort(self, command):
        self.tell("abort", command["code"], command.get("message", "told to"))

    def do_end(self, command):
        self.tell("end")

    def do_invalidate(self, command):
        self.tell("invalidate", command["reason"])

    def do_evict(self, command):
        """A cursor is that of an event that streams were not shown, being of no interest to them."""
        self.tell("evict", command.get("reason", "slow consumer"), command.get("cursor"))

    def do_asked(self, command):
        return {"asked": self.asked, "refused": self.refused, "streams": len(self.streams)}

    def do_checkpoint(self, command):
        return {"checkpoint": self.checkpoints.get(command["client"])}

    def do_set_checkpoint(self, command):
        self.checkpoints[command["client"]] = {
            "content_type": command["content_type"],
            "value": command["value"],
            "updated_at": time.time(),
        }
