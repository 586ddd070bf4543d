// Collects the events of each key and tells of them in one go once the key has been quiet for a while.
//
// A window opens with a key's first event. It closes when the key has been quiet for `quiet_ms`, when it is `age_ms_max`
// old, when it has `events_max` events, or, the oldest first, when there are more than `windows_max`. What it held is a row
// and one emitted event.
//
// Time is the events' own: a window closes with the first event of any key that happened at its end or later. So a replay
// closes the same windows at the same times; and on a stream where nothing happens, nothing closes. With the setting
// `clock = wall`, in a component that was built with the grant `clock`, `flush` closes what is over by the clock on the
// wall, too: the last burst is told of without another event, and a replay may cut otherwise. Name the grant in
// `plugin.toml`, and the manifest follows.
//
// One event that is further ahead than `ahead_ms_max` does not move the time: it counts when another one is as far.

import { Failure, formatTime, hasClock, int, log, processor, table, text, timestamp } from '../millrace/index.mjs';
import { Queue } from './queue.mjs';

const EMITTED = 'debounce';
// What goes before a key in the keyed state and in an event's name has room beside it.
const KEY_BYTES_MAX = 480;
// In the queue, beside one or two for each window.
const PLACES_UNUSED_MAX = 1_000;
const CONTENT_TYPE = 'application/vnd.millrace.debounce.v1+json';

const BATCHES = table('batches', {
  columns: {
    events: int(),
    first_at: timestamp(),
    last_at: timestamp().sortable(),
    reason: text().filterable(),
  },
  versioned: true,
});

const encoder = new TextEncoder();

/** An aggregate in a key: the first `/` is where it ends. */
function nameOf(aggregate) {
  return /[%/]/.test(aggregate) ? aggregate.replaceAll('%', '%25').replaceAll('/', '%2F') : aggregate;
}

class Debounce {
  static manifest = {
    name: 'debounce',
    version: '0.1.0',
    summary: 'One event for all that happened to a key until it was quiet',
    stateContentType: CONTENT_TYPE,
    types: ['*'],
    tables: [BATCHES],
    grants: hasClock() ? ['clock'] : [],
    flushIntervalMs: 1_000,
  };

  constructor({ config }, saved) {
    this.quiet = config.integer('quiet_ms', 60_000, 1) * 1_000;
    this.age = config.integer('age_ms_max', 300_000, 1) * 1_000;
    this.eventsMax = config.integer('events_max', 24, 1);
    this.windowsMax = config.integer('windows_max', 1_000, 1);
    this.aheadMax = config.integer('ahead_ms_max', 86_400_000, 1) * 1_000;
    this.wall = config.oneOf('clock', ['events', 'wall']) === 'wall';
    if (this.wall && !hasClock()) {
      throw new Error('setting `clock` is `wall`, which needs a component that was built with the grant `clock`');
    }
    const { latest = null, ahead = null, windows = [] } = saved?.json(CONTENT_TYPE) ?? {};
    this.latest = latest;
    // The time of an event that was too far ahead to be believed alone.
    this.ahead = ahead;
    // In the order in which they were opened.
    this.windows = new Map(windows);
    this.fillQueue();
  }

  handle(event, out) {
    // What this plugin emitted would open windows for ever.
    if (event.aggregate === EMITTED) return;
    const key = `${nameOf(event.aggregate)}/${event.aggId}`;
    if (key.length * 3 > KEY_BYTES_MAX && encoder.encode(key).length > KEY_BYTES_MAX) {
      throw Failure.reject(`the key \`${key.slice(0, 40)}…\` has more than ${KEY_BYTES_MAX} bytes`);
    }
    const { at } = event;
    this.moveTime(at);
    this.closeDue(out, this.latest);
    let window = this.windows.get(key);
    if (window === undefined) {
      const [oldest] = this.windows.keys();
      if (this.windows.size >= this.windowsMax) this.close(out, oldest, 'limit', this.latest);
      window = this.open(out, key, at);
    }
    window.events += 1;
    window.lastAt = Math.max(window.lastAt, at);
    if (at < window.firstAt) {
      window.firstAt = at;
      this.wait(key, window);
    }
    if (window.events >= this.eventsMax) this.close(out, key, 'count', window.lastAt);
  }

  flush(_reason, out) {
    // An event that came late may have opened a window that is over by now.
    if (this.wall || this.latest !== null) this.closeDue(out, this.wall ? Date.now() * 1_000 : this.latest);
  }

  snapshot() {
    return JSON.stringify({ latest: this.latest, ahead: this.ahead ?? undefined, windows: [...this.windows] });
  }

  /** Time is that of the latest event; of two that are far ahead, the nearer one's. */
  moveTime(at) {
    const { latest, ahead, aheadMax } = this;
    if (latest === null || (at > latest && at <= latest + aheadMax)) {
      this.latest = at;
    } else if (at > latest) {
      if (ahead === null || ahead === at) {
        if (ahead === null) log.warn(`an event is at ${formatTime(at)}, and the latest at ${formatTime(latest)}: time waits for another one as far ahead`);
        this.ahead = at;
        return;
      }
      this.latest = Math.min(ahead, at);
      this.ahead = Math.max(ahead, at);
    }
    if (this.ahead !== null && this.ahead <= this.latest + aheadMax) {
      this.latest = Math.max(this.latest, this.ahead);
      this.ahead = null;
    }
  }

  /** Opens a window with the next number of its key, which outlives every window and is never deleted. */
  open(out, key, at) {
    const number = (out.state.getJson(`windows/${key}`) ?? 0) + 1;
    out.state.putJson(`windows/${key}`, number);
    const window = { number, events: 0, firstAt: at, lastAt: at };
    this.windows.set(key, window);
    this.wait(key, window);
    return window;
  }

  /** Each window waits at its end or before it: what it gains is seen when its turn comes. */
  fillQueue() {
    this.queue = new Queue();
    for (const [key, window] of this.windows) this.wait(key, window);
  }

  wait(key, window) {
    this.queue.push(this.due(window), key, window.number);
    // Windows that were full leave their places behind.
    if (this.queue.length > 2 * this.windows.size + PLACES_UNUSED_MAX) this.fillQueue();
  }

  due({ firstAt, lastAt }) {
    return Math.min(lastAt + this.quiet, firstAt + this.age);
  }

  /** Closes what is over at this time, in the order of the ends. */
  closeDue(out, now) {
    while (this.queue.earliest <= now) {
      const { at, key, number } = this.queue.pop();
      const window = this.windows.get(key);
      if (window?.number !== number) continue;
      const due = this.due(window);
      if (due > at) {
        this.wait(key, window);
      } else {
        this.close(out, key, window.firstAt + this.age < window.lastAt + this.quiet ? 'age' : 'quiet', due);
      }
    }
  }

  close(out, key, reason, at) {
    const { number, events, firstAt, lastAt } = this.windows.get(key);
    this.windows.delete(key);
    const row = { events, first_at: firstAt, last_at: lastAt, reason };
    out.put(BATCHES, key, number, row);
    const payload = { key, events, first_at: formatTime(firstAt), last_at: formatTime(lastAt), reason };
    out.emit({ aggregate: EMITTED, aggId: key, type: 'debounce.batch', version: number, at }, payload);
  }
}

export const handler = processor(Debounce);
