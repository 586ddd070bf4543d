// Misbehaves in the way that the setting `mode` names: on an event of type `poison`, or in another of its calls. All other
// events are noted in a table and counted, so that a test sees who went on.

import { Failure, config, log, processor, table, text } from '../millrace/index.mjs';

const SEEN = table('seen_js', { columns: { type: text() } });

const ON_POISON = {
  loop() {
    for (;;);
  },
  bomb() {
    const kept = [];
    for (;;) kept.push(new Uint8Array(1 << 20).fill(7));
  },
  bomb_of_objects() {
    let kept = null;
    for (;;) kept = { kept, and: [1, 2, 3] };
  },
  recursion() {
    const deep = (n) => 1 + deep(n + 1);
    return deep(0);
  },
  effects(out) {
    for (let n = 0; n < 100_001; n += 1) out.put(SEEN, `k${n}`, 0, { type: 'x' });
  },
  output(out) {
    const large = 'x'.repeat(1_000_000);
    for (let n = 0; n < 20; n += 1) out.put(SEEN, `k${n}`, 0, { type: large });
  },
  logs() {
    for (let n = 0; n < 5_000; n += 1) log.info('again and again');
  },
  large_log() {
    log.info('x'.repeat(20_000_000));
  },
  error() {
    throw new RangeError('as asked');
  },
  error_without_a_message() {
    throw new Error();
  },
  large_error() {
    throw new Error('no '.repeat(1_000_000));
  },
  thrown_text() {
    throw 'as asked';
  },
  thrown_nothing() {
    throw undefined;
  },
  error_that_lies() {
    throw Object.defineProperty(new Error('quiet'), 'stack', { get: () => { throw new Error('loud'); } });
  },
  regex() {
    return /^(a+)+$/.test(`${'a'.repeat(40)}b`);
  },
  text() {
    const large = 'x'.repeat(2 ** 29);
    return large.split('').length;
  },
  later(out) {
    const save = async () => {
      await null;
      out.put(SEEN, 'later', 0, { type: 'x' });
    };
    save();
  },
  timer() {
    setTimeout(() => {}, 1);
  },
  request() {
    return fetch('http://127.0.0.1:1/');
  },
  clock() {
    return [Date.now(), new Date(), performance.now()];
  },
  chance() {
    return [Math.random(), crypto.getRandomValues(new Uint8Array(8))];
  },
  evaluates() {
    return new Function('return 6 * 7')();
  },
};

class Hostile {
  static manifest = {
    name: 'hostile-js', version: '1.0.0', stateContentType: 'application/json', tables: [SEEN], flushIntervalMs: 3_600_000,
  };

  constructor(_, saved) {
    this.mode = config.get('mode');
    this.snapshots = 0;
    this.count = saved === undefined ? 0 : saved.json().count;
    if (this.mode === 'refuse') throw new Error('not with me');
    if (this.mode === 'load_falls') this.missing.member();
    if (this.mode === 'load_loops') for (;;);
  }

  handle(event, out) {
    if (event.type === 'poison') {
      if (this.mode === 'promise') return Promise.resolve();
      ON_POISON[this.mode]?.(out);
    }
    out.put(SEEN, event.aggId, 0, { type: event.type });
    this.count += 1;
  }

  flush() {
    if (this.mode === 'flush_falls') throw new TypeError('no flush');
    if (this.mode === 'flush_fails') throw Failure.retry('later');
  }

  snapshot() {
    if (this.mode === 'snapshot_falls') return this.missing.member;
    if (this.mode === 'snapshot_is_none') return 7;
    if (this.mode === 'snapshots_differ') this.snapshots += 1;
    if (this.mode === 'snapshot_is_large') return 'x'.repeat(9 << 20);
    return JSON.stringify({ count: this.count, snapshots: this.snapshots });
  }
}

export const handler = processor(Hostile);
