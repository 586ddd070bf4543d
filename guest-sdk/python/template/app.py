"""Counts the events of each order: one row an order, and an event of its own at every tenth."""

import json

from millrace import Processor, Table, export, int_, timestamp

# What the saved state is. Another layout gets another name, and `load` reads the former one, too.
STATE = "application/vnd.plugin-name.v1+json"

COUNTS = Table("plugin_name", {"events": int_().sortable(), "last_at": timestamp().sortable()})


@export
class Counter(Processor):
    manifest = dict(
        name="plugin-name",
        version="0.1.0",
        summary="Counts the events of each order",
        types=["order.*"],
        state_content_type=STATE,
        tables=[COUNTS],
    )

    def load(self, context, saved):
        self.events = saved.json(STATE) if saved else {}

    def handle(self, event, out):
        key = event.agg_id
        events = self.events.get(key, 0) + 1
        # What can fail comes before the state changes.
        out.put(COUNTS, key, 0, {"events": events, "last_at": event.at})
        if events % 10 == 0:
            out.emit(
                aggregate="plugin-name",
                agg_id=key,
                type="plugin-name.tenth",
                version=events // 10,
                payload={"events": events},
            )
        self.events[key] = events

    def snapshot(self):
        return json.dumps(self.events, sort_keys=True, separators=(",", ":"))
