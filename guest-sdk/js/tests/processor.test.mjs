import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Failure, formatTime, parseTime, processor, table, text } from '../millrace/index.mjs';
import { Driver, Failed, event } from '../millrace/testing/driver.mjs';
import { of, payload } from './helpers.mjs';

const LATE = table('late_rows', { columns: {} });
const raise = (error) => {
  throw error;
};
const EIGHT = '2013-01-01T08:00:00.25Z';

test('time_stands_at_the_event', () => {
  const handler = of((each) => {
    const times = [Date.now(), new Date().getTime(), performance.now(), Date.parse(Date())];
    const millis = Math.floor(each.at / 1_000);
    assert.deepEqual(times, [millis, millis, each.at / 1_000, Math.floor(millis / 1_000) * 1_000]);
    const made = new Date(0);
    assert.ok(made instanceof Date && made.constructor === Date && new Date(made).getTime() === 0);
  });
  new Driver(handler).send([payload(null, { at: EIGHT }), payload(null, { at: 5 })]);
  assert.ok(Date.now() > Date.parse('2020-01-01T00:00:00Z'), 'outside of the plugin it goes on');
});

test('flush_has_the_latest_time_and_none_before_the_first_event', () => {
  const seen = [];
  const driver = new Driver(of(() => undefined, { flush: () => void seen.push(Date.now()) }));
  assert.throws(() => driver.flush(), /retry: no event was handled since the start/);
  driver.send([payload(null, { at: 9_000 }), payload(null, { at: 3_000 })]);
  driver.send([payload(null, { at: 4_000 })]);
  driver.flush();
  assert.deepEqual(seen, [9]);
});

test('there_is_no_time_while_loading', () => {
  class Early {
    static manifest = { name: 'early', version: '0.1.0' };

    constructor() {
      this.started = Date.now();
    }

    handle() {}
  }
  assert.throws(() => new Driver(processor(Early)), /time comes with events/);
});

test('chance_is_the_same_in_a_replay_and_another_for_each_event', () => {
  const draw = () => {
    const drawn = [];
    const driver = new Driver(of(() => void drawn.push([Math.random(), Math.random(), crypto.randomUUID(), crypto.getRandomValues(new Uint8Array(4)).join()])));
    driver.send([payload(null), payload(null)]);
    return drawn;
  };
  const drawn = draw();
  assert.deepEqual(draw(), drawn);
  assert.equal(new Set(drawn.flat()).size, 8);
  assert.match(drawn[0][2], /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  assert.ok(drawn.every(([number]) => number >= 0 && number < 1));
});

test('console_is_the_operators_log', () => {
  const driver = new Driver(
    of(() => {
      console.log('seen', { n: 1 }, 7n);
      console.warn(new TypeError('bad'));
    }),
  );
  driver.send([payload(null)]);
  assert.deepEqual(driver.messages, [
    { level: 'info', text: 'seen {"n":1} 7' },
    { level: 'warn', text: 'TypeError: bad' },
  ]);
});

test('console_fills_in_and_shows_whole_numbers_of_any_length', () => {
  const driver = new Driver(
    of(() => {
      console.log('%s is %d of %i, %j%%', 'a', 1.5, '7 of 8', { b: 2n ** 60n }, 'and more');
      console.log({ b: 1n }, '%s');
      console.time('a');
      console.timeEnd('a');
    }),
  );
  driver.send([payload(null)]);
  assert.deepEqual(driver.messages, [
    { level: 'info', text: 'a is 1.5 of 7, {"b":1152921504606846976}% and more' },
    { level: 'info', text: '{"b":1} %s' },
  ]);
});

test('what_would_wait_says_so', () => {
  const ways = [() => setTimeout(() => {}, 1), () => setInterval(() => {}, 1), () => AbortSignal.timeout(5), () => fetch('http://127.0.0.1:1/')];
  for (const [place, name] of ['setTimeout', 'setInterval', 'AbortSignal.timeout', 'fetch'].entries()) {
    const driver = new Driver(of(() => ways[place]()));
    assert.throws(() => driver.send([payload(null)]), { name: 'Error', message: new RegExp(`^${name}: a processor waits`) });
    assert.match(driver.messages[0].text, new RegExp(`^Error: ${name}: .*\\n {2}.*processor\\.test\\.mjs:\\d+:\\d+`));
  }
  const origins = [];
  new Driver(of(() => void origins.push(performance.timeOrigin))).send([payload(null)]);
  assert.deepEqual(origins, [0]);
});

test('effects_after_the_call_are_refused_and_end_the_next_call', async () => {
  const asks = {
    put: (out) => out.put(LATE, 'late', 0, {}),
    delete: (out) => out.delete(LATE, 'late', 0),
    emit: (out) => out.emit({ aggregate: 'a', aggId: 'b', type: 'c', at: 0 }, {}),
    append: (out) => out.append('p', 'c'),
    'state.get': (out) => out.state.get('late'),
    'state.put': (out) => out.state.put('late', ''),
    'state.delete': (out) => out.state.delete('late'),
    'state.scan': (out) => [...out.state.scan()],
  };
  for (const [name, ask] of Object.entries(asks)) {
    const chains = [];
    const handle = (each, out) => {
      const save = async () => {
        await null;
        ask(out);
      };
      if (each.json() === 'late') chains.push(save());
    };
    const driver = new Driver(of(handle, { manifest: { tables: [LATE] }, flush: () => undefined }));
    driver.send([payload('late')]);
    await assert.rejects(chains[0], { name: 'Failure', kind: 'fatal' });
    assert.deepEqual(driver.messages.map(({ level }) => level), ['error'], name);
    const says = (error) => error instanceof Failed && error.kind === 'fatal' && error.message.includes(`\`${name}\` was called after`);
    assert.throws(() => driver.send([payload('next')]), says);
    assert.throws(() => driver.flush(), says);
    assert.deepEqual([driver.rows('late_rows'), driver.emitted, driver.appended, driver.state()], [{}, [], [], {}], name);
  }
});

test('an_error_that_throws_when_it_is_looked_at_is_told_all_the_same', () => {
  const driver = new Driver(of(() => {
    throw Object.defineProperty(new Error('quiet'), 'stack', { get: () => raise(new Error('loud')) });
  }));
  assert.throws(() => driver.send([payload(null)]));
  assert.match(driver.messages[0].text, /cannot be told/);
});

test('an_error_that_nobody_catches_is_logged_with_its_place_and_goes_on', () => {
  const driver = new Driver(of((each) => each.json().missing.member));
  assert.throws(() => driver.send([payload({})]), TypeError);
  const [{ level, text: said }] = driver.messages;
  assert.equal(level, 'error');
  assert.match(said, /^TypeError: .*\n {2}.*processor\.test\.mjs:\d+:\d+/);
  assert.doesNotMatch(said, /initializer/);
  assert.throws(() => new Driver(of(() => {
    throw 'text';
  })).send([payload({})]), (error) => error === 'text');
});

test('a_failure_of_flush_has_its_kind_and_leaves_no_effect', () => {
  const flush = (_, out) => {
    out.state.put('a', 'x');
    throw Failure.retry('later');
  };
  const driver = new Driver(of(() => undefined, { flush }));
  assert.throws(() => driver.flush(), (error) => error instanceof Failed && error.kind === 'retry');
  assert.deepEqual(driver.state(), {});
});

test('a_long_message_is_cut_at_a_letter', () => {
  const driver = new Driver(of(() => {
    throw Failure.reject('🛫'.repeat(3_000));
  }));
  assert.throws(() => driver.send([payload(null)]), (error) => error.message === `event 0: reject: ${'🛫'.repeat(1_024)}`);
});

test('a_failing_event_that_changed_the_state_is_found_out', () => {
  class Counts {
    static manifest = { name: 'counts', version: '0.1.0', stateContentType: 'application/json' };

    constructor(_, saved) {
      this.count = saved?.json() ?? 0;
    }

    handle(each) {
      this.count += 1;
      if (each.json() === 'bad') throw Failure.reject('bad');
    }

    snapshot() {
      return String(this.count);
    }
  }
  const driver = new Driver(processor(Counts));
  assert.throws(() => driver.send([payload('good'), payload('bad')]), /has changed the state/);
});

test('two_snapshots_that_differ_are_found_out', () => {
  let count = 0;
  const handler = of(() => undefined, { manifest: { stateContentType: 'text/plain' }, snapshot: () => String((count += 1)) });
  assert.throws(() => new Driver(handler).saved(), /two snapshots in a row differ/);
});

test('what_waits_for_something_is_refused', () => {
  class Waits {
    static manifest = { name: 'waits', version: '0.1.0' };

    async handle() {}
  }
  assert.throws(() => processor(Waits), /`handle` is async/);
  const driver = new Driver(of(() => Promise.resolve()));
  assert.throws(() => driver.send([payload(null)]), /fatal: `handle` answered a promise/);
});

test('a_generator_is_refused_since_nothing_of_it_would_run', () => {
  const manifest = { name: 'yields', version: '0.1.0' };
  class Yields {
    static manifest = manifest;

    *handle() {}
  }
  class Both {
    static manifest = manifest;

    handle() {}

    async *flush() {}
  }
  assert.throws(() => processor(Yields), /class Yields: `handle` is a generator/);
  assert.throws(() => processor(Both), /class Both: `flush` is async/);
});

test('chance_in_flush_is_the_same_after_a_restart', () => {
  const drawn = (ats, flushes) => {
    const found = [];
    const driver = new Driver(of(() => undefined, { flush: () => void found.push(Math.random(), Math.random()) }));
    driver.send(ats.map((at) => payload(null, { at })));
    for (let flush = 0; flush < flushes; flush += 1) driver.flush();
    return found;
  };
  const once = drawn([7], 1);
  assert.deepEqual(drawn([7], 2), [...once, ...once]);
  assert.deepEqual(drawn([3, 7], 1), once);
  assert.notDeepEqual(drawn([8], 1), once);
});

test('settings_are_read_as_what_they_are', () => {
  const read = (config) => {
    let found;
    class Reads {
      static manifest = { name: 'reads', version: '0.1.0' };

      constructor({ config: of }) {
        found = [of.integer('n', 5), of.flag('f'), of.oneOf('o', ['a', 'b']), of.durationMs('d', '5m')];
      }

      handle() {}
    }
    new Driver(processor(Reads), { config });
    return found;
  };
  assert.deepEqual(read({}), [5, false, 'a', 300_000]);
  assert.deepEqual(read({ n: '7', f: 'true', o: 'b', d: '500ms' }), [7, true, 'b', 500]);
  for (const [name, value] of [['n', '1.5'], ['f', 'yes'], ['o', 'c'], ['d', '5'], ['d', '1w'], ['d', '99999999999999d']]) {
    assert.throws(() => read({ [name]: value }), new RegExp(`setting \`${name}\` is \`${value}\``));
  }
});

test('a_manifest_with_a_mistake_says_which', () => {
  const make = (manifest, functions = {}) => {
    class Made {
      static manifest = manifest;

      handle() {}
    }
    Object.assign(Made.prototype, functions);
    return processor(Made).describe();
  };
  const name = { name: 'made', version: '1.0.0' };
  for (const [manifest, message] of [
    [undefined, /static manifest/],
    [{ version: '1.0.0' }, /`name`/],
    [{ ...name, name: 'Made' }, /lower-case/],
    [{ name: 'made' }, /`version`/],
    [{ ...name, flush: 5 }, /no member `flush`; it may have name, version/],
    [{ ...name, grants: ['disk'] }, /`disk` is not a grant/],
    [{ ...name, tables: [{}] }, /what `table\(…\)` answers/],
    [{ ...name, orderingKey: 'carrier' }, /payloadField/],
    [{ ...name, stateContentType: 'text/plain' }, /no `snapshot\(\)`/],
  ]) {
    assert.throws(() => make(manifest), message);
  }
  assert.throws(() => table('Counts', { columns: {} }), /lower-case/);
  assert.throws(() => table('counts', { columns: { name: 'text' } }), /not a column/);
  assert.throws(() => table('counts', { column: {} }), /there is no `column`/);
});

test('a_manifest_crosses_with_all_it_says', () => {
  const rows = table('rows', { columns: { a: text().filterable().nullable() }, versioned: true, windowRowsMax: 5 });
  class Full {
    static manifest = {
      name: 'full',
      version: '1.0.0',
      summary: 'all of it',
      stateContentType: 'text/plain',
      orderingKey: { payloadField: 'carrier' },
      types: ['a.*'],
      aggregates: ['a'],
      tables: [rows],
      grants: ['clock'],
      flushIntervalMs: 5,
      changes: { flight: ['id', 'tenant', { field: 'carrier' }, { field: 'dest', name: 'to' }] },
    };

    handle() {}

    snapshot() {
      return '';
    }
  }
  assert.deepEqual(processor(Full).describe(), {
    name: 'full',
    version: '1.0.0',
    summary: 'all of it',
    stateContentType: 'text/plain',
    orderingKey: { tag: 'payload-field', val: 'carrier' },
    subscription: { types: ['a.*'], aggregates: ['a'] },
    tables: [{ name: 'rows', columns: [{ name: 'a', type: 'text', nullable: true, filterable: true, sortable: false }], versioned: true, windowRowsMax: 5 }],
    grants: ['clock'],
    flushIntervalMs: 5,
    changes: [
      {
        aggregate: 'flight',
        scopes: [{ tag: 'id' }, { tag: 'tenant' }, { tag: 'field', val: { name: 'carrier', member: 'carrier' } }, { tag: 'field', val: { name: 'to', member: 'dest' } }],
      },
    ],
  });
});

test('a_state_of_an_older_kind_is_taken_over', () => {
  class Counts {
    static manifest = { name: 'counts', version: '0.2.0', stateContentType: 'counts.v2' };

    constructor(_, saved) {
      this.counts = saved?.migrate({ 'counts.v2': (counts) => counts, 'counts.v1': (count) => ({ all: count }) }) ?? {};
    }

    handle() {}

    snapshot() {
      return JSON.stringify(this.counts);
    }
  }
  const handler = processor(Counts);
  const start = (contentType, state) => new Driver(handler, { saved: { contentType, state: new TextEncoder().encode(state) } });
  assert.deepEqual(start('counts.v1', '7').processor.counts, { all: 7 });
  assert.deepEqual(start('counts.v2', '{"a":1}').processor.counts, { a: 1 });
  assert.throws(() => start('counts.v3', '{}'), /`counts.v3`, this version reads `counts.v2`, `counts.v1`/);
  assert.throws(() => start('counts.v2', '{'), /the saved state cannot be read/);
});

test('rfc_3339_times_are_read_and_written', () => {
  for (const [written, micros, again = written] of [
    ['1970-01-01T00:00:00Z', 0],
    ['1969-12-31T23:59:59.999999Z', -1],
    ['2013-01-01T08:15:00Z', 1_357_028_100_000_000],
    ['2000-02-29t12:00:00z', 951_825_600_000_000, '2000-02-29T12:00:00Z'],
    ['2013-01-01T08:15:00.25+01:00', 1_357_024_500_250_000, '2013-01-01T07:15:00.25Z'],
    ['2013-01-01 08:15:00.1234567-00:30', 1_357_029_900_123_456, '2013-01-01T08:45:00.123456Z'],
    ['2016-12-31T23:59:60Z', 1_483_228_799_000_000, '2016-12-31T23:59:59Z'],
    ['9999-12-31T23:59:59.999999Z', 253_402_300_799_999_999n],
  ]) {
    assert.equal(parseTime(written), micros, written);
    assert.equal(formatTime(micros), again);
  }
  for (const bad of ['', '2013-01-01', '2013-01-01T08:15:00', '2013-02-29T08:15:00Z', '2013-13-01T08:15:00Z', '2013-01-01T24:00:00Z', '2013-01-01T08:15:00.Z', '2013-01-01T08:15:00+1:00']) {
    assert.equal(parseTime(bad), undefined, bad);
  }
  for (let micros = -62_167_219_200_000_000n; micros < 253_402_300_800_000_000n; micros += 97_654_321_987_654_321n / 100n) {
    assert.equal(BigInt(parseTime(formatTime(micros))), micros);
  }
});

test('an_event_of_a_file_is_as_it_was_published', async () => {
  const { readEvents } = await import('../millrace/testing/driver.mjs');
  const [first] = readEvents(new URL('../../../plugins/debounce/tests/events.ndjson', import.meta.url));
  assert.deepEqual([first.aggregate, first.aggId, first.version, first.id], ['order', 'a', 1n, 'order/a/1']);
  assert.deepEqual(first.json(), { n: 1 });
  assert.deepEqual(event('order', 'a', 1, 'order.changed', { at: first.at, payload: { n: 1 } }), first);
});
