// What benchmarks give to each language to do: it reads a departure, counts by carrier and adds up delays; with the setting
// `rows` it also writes a row for each event. `plugins/misbehaving/guests/fold.rs` has the same in Rust.

import { int, processor, stableJson, table, text } from '../millrace/index.mjs';

const STATE = 'application/vnd.millrace.fold.v1+json';

const FOLDED = table('folded_js', {
  columns: { carrier: text().filterable(), departures: int().sortable(), minutes: int() },
});

class Fold {
  static manifest = {
    name: 'fold-js',
    version: '1.0.0',
    summary: 'Counts departures of each carrier, and adds up their delays',
    stateContentType: STATE,
    tables: [FOLDED],
  };

  constructor({ config }, saved) {
    this.writesRows = config.get('rows') === 'true';
    this.carriers = new Map(Object.entries(saved?.json(STATE) ?? {}));
  }

  handle(event, out) {
    const { carrier, dep_delay_minutes: delay } = event.json();
    const kept = this.carriers.get(carrier);
    const departures = (kept?.[0] ?? 0) + 1;
    const minutes = (kept?.[1] ?? 0) + delay;
    if (this.writesRows) out.put(FOLDED, event.aggId, 0, { carrier, departures, minutes });
    if (kept === undefined) {
      this.carriers.set(carrier, [departures, minutes]);
    } else {
      kept[0] = departures;
      kept[1] = minutes;
    }
  }

  snapshot() {
    return stableJson(this.carriers);
  }
}

export const handler = processor(Fold);
