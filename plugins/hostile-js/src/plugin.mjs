// Misbehaves in the way that the setting `mode` names: on an event of type `poison`, on any, or in another of its calls. All
// other events are noted in a table and counted, so that a test sees who went on. Events of type `tally` are counted beside
// the state, whatever the mode: a restart forgets them. Under `as_told`, each event says itself what is to become of it, and
// the state keeps what was applied; under `mended`, none fails but those that are rejected. In `describe` it does what is
// written over the dashes of `NATURE` in the component.

import { Failure, config, log, processor, table, text } from '../millrace/index.mjs';

const SEEN = table('seen_js', { columns: { type: text() } });
const FOREIGN = table('seen_python', { columns: { type: text() } });

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
  foreign_table(out) {
    // The SDK would refuse a table that the manifest does not name.
    out._tables = [SEEN, FOREIGN];
    out.put(FOREIGN, 'mine', 0, { type: 'x' });
  },
  feeds_itself(out, event) {
    out.emit({ aggregate: 'thing', aggId: event.aggId, type: 'poison', version: 1_000 + event.position }, null);
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
  rejects() {
    throw Failure.reject('not this one');
  },
  stops() {
    throw Failure.fatal('no further');
  },
};

const NATURE = new TextEncoder().encode('hostile-nature:--------');

const IN_DESCRIBE = {
  loop: ON_POISON.loop,
  bomb: ON_POISON.bomb,
  error: ON_POISON.error,
  lies: () => ({ ...whole.describe(), name: '../hostile' }),
};

// Rounds of nothing, which take far longer than what else is done with an event.
const SLOW_ROUNDS = 5_000_000;
const LEAKED_BYTES = 1 << 19;
const TWICE = 'hostile-js.twice';

class Hostile {
  static manifest = {
    name: 'hostile-js', version: '1.0.0', stateContentType: 'application/json', tables: [SEEN], flushIntervalMs: 3_600_000,
  };

  constructor(_, saved) {
    this.mode = config.get('mode');
    this.snapshots = 0;
    this.tally = 0;
    this.leaked = [];
    this.tries = new Map();
    const { count = 0, applied = {} } = saved?.json() ?? {};
    this.count = count;
    this.applied = applied;
    if (this.mode === 'refuse') throw new Error('not with me');
    if (this.mode === 'load_falls') this.missing.member();
    if (this.mode === 'load_loops') for (;;);
  }

  handle(event, out) {
    if (event.type === TWICE) return;
    if (this.mode === 'as_told' || this.mode === 'mended') {
      this.obey(event, out);
      return;
    }
    if (event.type === 'poison') {
      if (this.mode === 'promise') return Promise.resolve();
      ON_POISON[this.mode]?.(out, event);
    }
    if (this.mode === 'slow') for (let round = 0; round < SLOW_ROUNDS; round += 1);
    if (this.mode === 'leaks') this.leaked.push(new Uint8Array(LEAKED_BYTES));
    out.put(SEEN, event.aggId, 0, { type: this.noted(event) });
    if (event.aggregate === 'flight') this.countFlight(event, out);
    this.count += 1;
  }

  /** `reject`, `trap` and `steal`, a row of another key's; `retry` fails as often as its payload says. All others count. */
  obey({ id, type, aggId, version, payloadText }, out) {
    if (type === 'reject') throw Failure.reject('told to reject');
    if (this.mode === 'as_told' && type === 'trap') throw new Error('told to fall');
    if (this.mode === 'as_told' && type === 'retry') {
      const tries = (this.tries.get(id) ?? 0) + 1;
      this.tries.set(id, tries);
      if (tries <= Number(payloadText)) throw Failure.retry('told to retry');
    }
    const applied = [...(this.applied[aggId] ?? []), version];
    this.applied[aggId] = applied;
    out.put(SEEN, type === 'steal' ? 'stolen' : aggId, 0, { type: String(applied.length) });
  }

  noted({ type }) {
    if (this.mode === 'wrong') return `not ${type}`;
    if (type !== 'tally') return type;
    this.tally += 1;
    return `tally ${this.tally}`;
  }

  /** What swaps must neither lose nor double: an entry for each flight, and an event at its second one. */
  countFlight(event, out) {
    const seen = (out.state.getJson(event.aggId) ?? 0) + 1;
    out.state.putJson(event.aggId, seen);
    if (seen !== 2) return;
    const twice = { aggregate: 'twice', aggId: event.aggId, type: TWICE, version: 1 };
    out.emit(twice, { version: event.version, wrong: this.mode === 'wrong' });
  }

  flush() {
    if (this.mode === 'flush_loops') for (;;);
    if (this.mode === 'flush_falls') throw new TypeError('no flush');
    if (this.mode === 'flush_fails') throw Failure.retry('later');
  }

  snapshot() {
    if (this.mode === 'snapshot_loops') for (;;);
    if (this.mode === 'snapshot_falls') return this.missing.member;
    if (this.mode === 'snapshot_is_none') return 7;
    if (this.mode?.startsWith('snapshots_differ')) this.snapshots += 1;
    if (this.mode === 'snapshot_is_large') return 'x'.repeat(9 << 20);
    // The host itself compares the first two.
    const snapshots = this.mode === 'snapshots_differ_later' && this.snapshots < 3 ? 0 : this.snapshots;
    const applied = Object.keys(this.applied).length > 0 ? this.applied : undefined;
    return JSON.stringify({ count: this.count, snapshots, applied });
  }
}

const whole = processor(Hostile);

export const handler = {
  ...whole,
  describe() {
    const nature = new TextDecoder().decode(NATURE).replaceAll('-', '').split(':')[1];
    return IN_DESCRIBE[nature]?.() ?? whole.describe();
  },
};
