// Collects the events of each key and tells of them in one go once the key has been quiet for a while.
//
// A window opens with a key's first event. It closes when the key has been quiet for `quiet_ms`, when it is `age_ms_max`
// old, when it has `events_max` events, or, the oldest first, when there are more than `windows_max`. What it held is a row
// and one emitted event.
//
// Time is the events' own: a window closes with the first event of any key that happened at its end or later. So a replay
// closes the same windows at the same times; and on a stream where nothing happens, nothing closes.

import { Failure, formatTime, int, processor, stableJson, table, text, timestamp } from '../millrace/index.mjs';

const EMITTED = 'debounce';
// What goes before a key in the keyed state and in an event's name has room beside it.
const KEY_BYTES_MAX = 480;
const CONTENT_TYPE = 'application/vnd.millrace.debounce.v1+json';

const BATCHES = table('batches', {
  columns: {
    key: text().filterable(),
    events: int(),
    first_at: timestamp(),
    last_at: timestamp().sortable(),
    reason: text().filterable(),
  },
  versioned: true,
});

const encoder = new TextEncoder();

class Debounce {
  static manifest = {
    name: 'debounce',
    version: '0.1.0',
    summary: 'One event for all that happened to a key until it was quiet',
    stateContentType: CONTENT_TYPE,
    types: ['*'],
    tables: [BATCHES],
    flushIntervalMs: 1_000,
  };

  constructor({ config }, saved) {
    this.quiet = config.integer('quiet_ms', 60_000, 1) * 1_000;
    this.age = config.integer('age_ms_max', 300_000, 1) * 1_000;
    this.eventsMax = config.integer('events_max', 24, 1);
    this.windowsMax = config.integer('windows_max', 1_000, 1);
    const { latest = null, windows = {} } = saved?.json(CONTENT_TYPE) ?? {};
    this.latest = latest;
    this.windows = new Map(Object.entries(windows));
    this.looked();
  }

  handle(event, out) {
    // What this plugin emitted would open windows for ever.
    if (event.aggregate === EMITTED) return;
    const key = `${event.aggregate}/${event.aggId}`;
    if (key.length * 3 > KEY_BYTES_MAX && encoder.encode(key).length > KEY_BYTES_MAX) {
      throw Failure.reject(`the key \`${key.slice(0, 40)}…\` has more than ${KEY_BYTES_MAX} bytes`);
    }
    const { at } = event;
    if (this.latest === null || at > this.latest) this.latest = at;
    this.closeDue(out);
    let window = this.windows.get(key);
    if (window === undefined) {
      if (this.windows.size >= this.windowsMax) this.close(out, this.oldest(), 'limit', this.latest);
      window = this.open(out, key, at);
    }
    window.events += 1;
    window.firstAt = Math.min(window.firstAt, at);
    window.lastAt = Math.max(window.lastAt, at);
    if (window.events >= this.eventsMax) this.close(out, key, 'count', window.lastAt);
    else this.nextDue = Math.min(this.nextDue, this.due(window));
  }

  flush(_reason, out) {
    // An event that came late may have opened a window that is over by now.
    this.closeDue(out);
  }

  snapshot() {
    return stableJson({ latest: this.latest, windows: this.windows });
  }

  /** Opens a window with the next number of its key, which outlives every window. */
  open(out, key, at) {
    const number = (out.state.getJson(`windows/${key}`) ?? 0) + 1;
    out.state.putJson(`windows/${key}`, number);
    const window = { number, events: 0, firstAt: at, lastAt: at };
    this.windows.set(key, window);
    return window;
  }

  due({ firstAt, lastAt }) {
    return Math.min(lastAt + this.quiet, firstAt + this.age);
  }

  /** Notes the earliest time at which a window may be due: nobody looks at them all before. */
  looked() {
    this.nextDue = Infinity;
    for (const window of this.windows.values()) this.nextDue = Math.min(this.nextDue, this.due(window));
  }

  closeDue(out) {
    if (this.latest === null || this.latest < this.nextDue) return;
    const due = [...this.windows].filter(([, window]) => this.due(window) <= this.latest);
    due.sort(([a, x], [b, y]) => this.due(x) - this.due(y) || (a < b ? -1 : 1));
    for (const [key, window] of due) {
      const reason = window.firstAt + this.age < window.lastAt + this.quiet ? 'age' : 'quiet';
      this.close(out, key, reason, this.due(window));
    }
    this.looked();
  }

  /** The key of the window that was opened first; of two, the one whose key is first. */
  oldest() {
    let found = null;
    for (const [key, { firstAt }] of this.windows) {
      const isOlder = found === null || firstAt < found.firstAt || (firstAt === found.firstAt && key < found.key);
      if (isOlder) found = { key, firstAt };
    }
    return found.key;
  }

  close(out, key, reason, at) {
    const { number, events, firstAt, lastAt } = this.windows.get(key);
    this.windows.delete(key);
    const row = { key, events, first_at: firstAt, last_at: lastAt, reason };
    out.put(BATCHES, key, number, row);
    const payload = { key, events, first_at: formatTime(firstAt), last_at: formatTime(lastAt), reason };
    out.emit({ aggregate: EMITTED, aggId: key, type: 'debounce.batch', version: number, at }, payload);
  }
}

export const handler = processor(Debounce);
