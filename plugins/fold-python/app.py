"""What benchmarks give to each language to do: it reads a departure, counts by carrier and adds up delays; with the setting
`rows` it also writes a row for each event. `plugins/misbehaving/guests/fold.rs` has the same in Rust."""

import json

from millrace import Processor, Table, config, export, int_, text

STATE = "application/vnd.millrace.fold.v1+json"

FOLDED = Table(
    "folded_python",
    {"carrier": text().filterable(), "departures": int_().sortable(), "minutes": int_()},
)


@export
class Fold(Processor):
    manifest = dict(
        name="fold-python",
        version="1.0.0",
        summary="Counts departures of each carrier, and adds up their delays",
        state_content_type=STATE,
        tables=[FOLDED],
    )

    def load(self, context, saved):
        self.writes_rows = config.flag("rows", False)
        self.carriers = saved.json(STATE) if saved else {}

    def handle(self, event, out):
        departure = event.json()
        carrier = departure["carrier"]
        kept = self.carriers.get(carrier)
        departures, minutes = kept or (0, 0)
        departures, minutes = departures + 1, minutes + departure["dep_delay_minutes"]
        if self.writes_rows:
            out.put(FOLDED, event.agg_id, 0, {"carrier": carrier, "departures": departures, "minutes": minutes})
        self.carriers[carrier] = (departures, minutes)

    def snapshot(self):
        return json.dumps(self.carriers, sort_keys=True, separators=(",", ":"))
