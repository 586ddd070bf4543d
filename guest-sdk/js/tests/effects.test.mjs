import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Failure, bool, bytes, float, int, json, table, text, timestamp } from '../millrace/index.mjs';
import { CHANNEL_PAYLOAD_BYTES_MAX } from '../millrace/limits.mjs';
import { Driver, Failed, batchEqualsSingles, event } from '../millrace/testing/driver.mjs';
import { of, payload } from './helpers.mjs';

const ALL = table('all_types', {
  columns: {
    flag: bool().nullable(),
    whole: int().nullable(),
    real: float().nullable(),
    words: text().nullable().filterable(),
    raw: bytes().nullable(),
    any: json().nullable(),
    time: timestamp().nullable().sortable(),
  },
});
const COUNTS = table('counts', { columns: { name: text(), seen: int() }, versioned: true });

/** A driver of a processor that writes this row. */
function putting(row, of_ = ALL) {
  const handler = of((_, out) => out.put(of_, 'key', 1, row), { manifest: { tables: [ALL, COUNTS] } });
  const driver = new Driver(handler);
  driver.send([payload(null)]);
  return driver.row(of_.name, 'key');
}

function refused(call, kind, message) {
  assert.throws(call, (error) => error instanceof Failed && error.kind === kind && message.test(error.message));
}

test('every_type_of_cell_crosses', () => {
  const empty = { flag: null, whole: null, real: null, words: null, raw: null, any: null, time: null };
  const rows = [
    [{}, {}],
    [{ flag: true }, { flag: true }],
    [{ flag: false, whole: -1 }, { flag: false, whole: -1 }],
    [{ whole: 2 ** 53 - 1 }, { whole: 2 ** 53 - 1 }],
    [{ whole: -(2 ** 53) + 1 }, { whole: -(2 ** 53) + 1 }],
    [{ whole: 4_294_967_296 }, { whole: 4_294_967_296 }],
    [{ whole: -(2n ** 63n) }, { whole: -(2n ** 63n) }],
    [{ whole: 2n ** 63n - 1n }, { whole: 2n ** 63n - 1n }],
    [{ real: 0.1 }, { real: 0.1 }],
    [{ real: -0 }, { real: -0 }],
    [{ real: 5e-324 }, { real: 5e-324 }],
    [{ words: '' }, { words: '' }],
    [{ words: 'ä 字 🛫 and so on, longer than what a loop writes' }, { words: 'ä 字 🛫 and so on, longer than what a loop writes' }],
    [{ words: 'x'.repeat(40_000) }, { words: 'x'.repeat(40_000) }],
    [{ raw: new Uint8Array([0, 255]) }, { raw: new Uint8Array([0, 255]) }],
    [{ any: { a: [1, 9007199254740993n] } }, { any: { a: [1, 9007199254740993n] } }],
    [{ any: new TextEncoder().encode('{"as": "it is"}') }, { any: { as: 'it is' } }],
    [{ time: 1_500_000 }, { time: '1970-01-01T00:00:01.5Z' }],
    [{ time: -1n }, { time: '1969-12-31T23:59:59.999999Z' }],
    [{ time: '2013-01-01T08:15:00.25+01:00' }, { time: '2013-01-01T07:15:00.25Z' }],
    [{ time: new Date('2013-01-01T08:15:00Z') }, { time: '2013-01-01T08:15:00Z' }],
    [{ time: new Date('2400-02-29T12:00:00.001Z') }, { time: '2400-02-29T12:00:00.001Z' }],
  ];
  for (const [row, cells] of rows) assert.deepEqual(putting(row), { ...empty, ...cells });
});

test('a_row_that_does_not_fit_its_table_is_fatal', () => {
  for (const [row, message] of [
    [{ nam: 'x', name: 'a', seen: 1 }, /no column `nam`; it has name, seen/],
    [{ name: 'a' }, /has no `seen`/],
    [{ name: 7, seen: 1 }, /`name` is text and cannot hold number 7/],
    [{ name: 'a', seen: '1' }, /`seen` is int and cannot hold string "1"/],
    [{ name: 'a', seen: 1.5 }, /1.5 is no whole number that is exact/],
    [{ name: 'a', seen: 2 ** 53 }, /a BigInt is/],
    [null, /a row is an object/],
  ]) {
    refused(() => putting(row, COUNTS), 'fatal', message);
  }
});

test('a_row_is_written_to_a_table_of_the_manifest_and_not_to_a_name', () => {
  refused(() => putting({}, table('other', { columns: {} })), 'fatal', /the manifest does not name table `other`/);
  refused(() => putting({}, 'counts'), 'fatal', /a table of the manifest is wanted, and not "counts"/);
  refused(() => putting({}, null), 'fatal', /and not null/);
  refused(() => putting({}, {}), 'fatal', /and not \[object Object\]/);
});

test('a_value_that_its_column_cannot_hold_is_rejected', () => {
  for (const [row, message] of [
    [{ real: NaN }, /not finite/],
    [{ whole: 2n ** 63n }, /does not hold/],
    [{ time: 'yesterday' }, /not an RFC 3339 time/],
    [{ time: new Date(NaN) }, /no time/],
    [{ any: new Set([1]) }, /a Set cannot be written as JSON/],
    [{ words: 'x'.repeat((1 << 20) + 1) }, /row_bytes_max/],
    [{ any: { a: '\ud800' } }, /half a surrogate pair/],
  ]) {
    refused(() => putting(row), 'reject', message);
  }
  refused(() => putting({ name: null, seen: 1 }, COUNTS), 'reject', /not nullable/);
});

test('lone_surrogate_is_refused', () => {
  const write = (run) => new Driver(of((_, out) => run(out), { manifest: { tables: [ALL] } })).send([payload(null)]);
  const emitted = { aggregate: 'a', aggId: 'b', type: 'c', at: 0 };
  for (const text of ['\ud800', 'long enough for the other way of writing \udfff']) {
    for (const run of [
      (out) => out.put(ALL, 'key', 0, { words: text }),
      (out) => out.put(ALL, text, 0, {}),
      (out) => out.emit({ ...emitted, aggId: text }, null),
      (out) => out.emit(emitted, { text }),
      (out) => out.state.put(text, 'value'),
      (out) => out.state.put('key', text),
      (out) => out.append('process', 'channel', { payload: text }),
    ]) {
      refused(() => write(run), 'reject', /half a surrogate pair/);
    }
    write((out) => out.put(ALL, 'key', 0, { words: text.toWellFormed() }));
  }
});

test('failing_event_leaves_no_effect', () => {
  const handler = of(
    (each, out) => {
      out.put(COUNTS, each.aggId, each.version, { name: each.aggId, seen: 1 });
      out.state.put(each.aggId, 'seen');
      out.emit({ aggregate: 'told', aggId: each.aggId, type: 'told', at: each.at }, null);
      if (each.json() === 'bad') throw Failure.reject('it is bad');
    },
    { manifest: { tables: [COUNTS] } },
  );
  const events = [
    event('thing', 'a', 1, 't', { payload: 'good' }),
    event('thing', 'b', 1, 't', { payload: 'bad' }),
    event('thing', 'c', 1, 't', { payload: 'good' }),
  ];
  const driver = new Driver(handler);
  assert.throws(() => driver.send(events), (error) => error.index === 1 && error.kind === 'reject');
  assert.deepEqual([Object.keys(driver.rows('counts')), driver.state(), driver.emitted.length], [['a'], { a: 'seen' }, 1]);
  batchEqualsSingles(handler, events);
  driver.send(events.slice(2));
  assert.deepEqual(Object.keys(driver.rows('counts')), ['a', 'c']);
});

test('a_put_that_was_caught_leaves_nothing_behind', () => {
  const handler = of(
    (_, out) => {
      assert.throws(() => out.put(COUNTS, 'key', 1, { name: 'a', seen: 'no number' }), Failure);
      assert.throws(() => out.emit({ aggregate: 'a', aggId: 'b', type: 'c', at: 0 }, undefined), Failure);
      assert.deepEqual([out.bytes, out.length], [0, 0]);
      out.put(COUNTS, 'other', 1, { name: 'b', seen: 2 });
    },
    { manifest: { tables: [COUNTS] } },
  );
  const driver = new Driver(handler);
  driver.send([payload(null)]);
  assert.deepEqual(driver.rows('counts'), { other: { name: 'b', seen: 2 } });
});

test('an_event_that_cannot_be_emitted_names_what_is_wrong', () => {
  const emit = (parts, value = null) =>
    new Driver(of((_, out) => out.emit({ aggregate: 'a', aggId: 'b', type: 'c', at: 0, ...parts }, value))).send([payload(null)]);
  refused(() => emit({ aggId: '' }), 'fatal', /`aggId`/);
  refused(() => emit({ version: 0 }), 'fatal', /version 0/);
  refused(() => emit({ schemaVersion: 1.5 }), 'fatal', /schema version 1.5/);
  refused(() => emit({ at: 1.5 }), 'fatal', /`at` of an emitted `c`/);
  refused(() => emit({ at: new Date(NaN) }), 'fatal', /`at` of an emitted `c` is Invalid Date, which is no time/);
  refused(() => emit({ version: Object.create(null) }), 'fatal', /version object/);
  for (const id of [7, true, {}, new Uint8Array(1), Symbol('x')]) refused(() => emit({ id }), 'fatal', /`id` is .* and not text/);
  refused(() => emit({}, { a: [NaN] }), 'reject', /NaN cannot be written as JSON/);
  refused(() => emit({ type: 'channel.data' }), 'fatal', /append to a channel/);
  refused(() => emit({ aggId: 'x'.repeat(513) }), 'reject', /name_bytes_max/);
  refused(() => emit({ id: 'a\nb' }), 'reject', /control character/);
  for (const lost of [new Map([[1, 2]]), { seen: new Set('a') }, new ArrayBuffer(2)]) {
    refused(() => emit({}, lost), 'reject', /a (Map|Set|ArrayBuffer) cannot be written as JSON/);
  }
  refused(() => emit({}, 'x'.repeat(1 << 20)), 'reject', /event_payload_bytes_max/);
});

test('an_emitted_event_without_a_time_has_that_of_its_cause', () => {
  const emit = (_, out) => out.emit({ aggregate: 'a', aggId: 'b', type: 'c' }, {});
  const driver = new Driver(of(emit, { flush: emit }));
  refused(() => driver.flush(), 'retry', /no event was handled/);
  driver.send([payload(null, { at: 7 }), payload(null, { at: 5 })]);
  driver.flush();
  assert.deepEqual(driver.emitted.map(({ at }) => at), [7n, 5n, 7n]);
});

test('a_part_that_is_null_is_absent', () => {
  const handler = of((_, out) => {
    out.emit({ aggregate: 'a', aggId: 'b', type: 'c', id: null, at: null, version: null, schemaVersion: null }, {});
    out.append('p', 'c', { type: null, payload: null, error: null, inReplyTo: null });
    out.append('p', 'c', null);
  });
  const driver = new Driver(handler);
  driver.send([payload(null, { at: 7 })]);
  const [{ id, at, version, schemaVersion }] = driver.emitted;
  assert.deepEqual([id, at, version, schemaVersion], ['a/b/1', 7n, 1n, 1]);
  const bare = { process: 'p', channel: 'c', type: 'data' };
  assert.deepEqual(driver.appended, [bare, bare]);
});

test('a_date_beyond_the_exact_numbers_is_an_exact_time', () => {
  const text = '2400-02-29T12:00:00.001Z';
  const handler = of((_, out) => {
    for (const at of [text, new Date(text), new Date(8.64e15), new Date(-8.64e15)]) out.emit({ aggregate: 'a', aggId: 'b', type: 'c', at }, {});
  });
  const driver = new Driver(handler);
  driver.send([payload(null)]);
  const most = 8_640_000_000_000_000_000n;
  assert.deepEqual(driver.emitted.map(({ at }) => at), [13_574_606_400_001_000n, 13_574_606_400_001_000n, most, -most]);
});

test('an_emitted_event_has_what_it_was_given', () => {
  const handler = of((each, out) => {
    out.emit({ aggregate: 'sum', aggId: 'ü', type: 'sum.done', version: 2n ** 53n, at: each.at, schemaVersion: 3, id: 'own' }, { a: 1 });
    out.emit({ aggregate: 'sum', aggId: 'v', type: 'sum.done', at: '2013-01-01T00:00:00Z' }, new TextEncoder().encode('{"a": 1}'));
  });
  const driver = new Driver(handler);
  driver.send([payload(null, { at: -5, depth: 2, scope: 'north' })]);
  const [own, derived] = driver.emitted;
  assert.deepEqual([own.aggId, own.version, own.at, own.schemaVersion, own.id], ['ü', 2n ** 53n, -5n, 3, 'own']);
  assert.deepEqual([own.depth, own.scope, own.json()], [3, 'north', { a: 1 }]);
  assert.deepEqual([derived.id, derived.at], ['sum/v/1', 1_356_998_400_000_000n]);
  assert.equal(new TextDecoder().decode(derived.payload), '{"a": 1}');
});

test('entries_of_channels_cross', () => {
  const handler = of((_, out) => {
    out.append('p', 'c', { payload: 'ü' });
    out.append('p', 'c', { payload: new Uint8Array(), inReplyTo: 7 });
    out.append('p', 'c', { type: 'end' });
    out.append('p', 'c', { type: 'error', error: 'broken' });
  });
  const driver = new Driver(handler);
  driver.send([payload(null)]);
  assert.deepEqual(driver.appended, [
    { process: 'p', channel: 'c', type: 'data', payload: new TextEncoder().encode('ü') },
    { process: 'p', channel: 'c', type: 'data', inReplyTo: 7, payload: new Uint8Array() },
    { process: 'p', channel: 'c', type: 'end' },
    { process: 'p', channel: 'c', type: 'error', error: 'broken' },
  ]);
  const append = (entry) => new Driver(of((_, out) => out.append('p', 'c', entry))).send([payload(null)]);
  refused(() => append({ type: 'data', error: 'x' }), 'fatal', /type `error` only/);
  refused(() => append({ type: 'begin' }), 'fatal', /no type of an entry/);
  refused(() => append({ payload: 'x'.repeat(CHANNEL_PAYLOAD_BYTES_MAX + 1) }), 'reject', /payload of the entry has \d+ bytes/);
});

test('an_entry_is_made_of_text_and_bytes_only', () => {
  const append = (...parts) => new Driver(of((_, out) => out.append(...parts))).send([payload(null)]);
  for (const value of [{ a: 1 }, 7, true, [1], new ArrayBuffer(2), new Float64Array(1), Object.create(null)]) {
    refused(() => append('p', 'c', { payload: value }), 'fatal', /payload of the entry is .* neither text nor a Uint8Array/);
    refused(() => append('p', 'c', { type: 'error', error: value }), 'fatal', /text of the error is .* and not text/);
  }
  for (const name of [undefined, null, 7, {}, new Uint8Array([97])]) {
    refused(() => append(name, 'c'), 'fatal', /name of the process is .* and not text/);
    refused(() => append('p', name), 'fatal', /name of the channel is .* and not text/);
  }
  for (const entry of ['text', new Uint8Array(1), 7]) refused(() => append('p', 'c', entry), 'fatal', /an entry is an object/);
  const caught = of((_, out) => {
    assert.throws(() => out.append('p', 'c', { payload: 7 }), Failure);
    assert.deepEqual([out.bytes, out.length], [0, 0]);
  });
  new Driver(caught).send([payload(null)]);
});

test('many_effects_and_large_ones_keep_their_bytes', () => {
  const handler = of(
    (_, out) => {
      for (let number = 0; number < 5_000; number += 1) out.put(ALL, `k${number}`, 0, { whole: number, words: 'y'.repeat(number % 300) });
      out.delete(ALL, 'k7', 0);
    },
    { manifest: { tables: [ALL] } },
  );
  const driver = new Driver(handler);
  for (const round of [1, 2]) {
    driver.send([payload(round)]);
    const rows = driver.rows('all_types');
    assert.equal(Object.keys(rows).length, 4_999);
    assert.ok(Object.entries(rows).every(([key, { whole, words }]) => key === `k${whole}` && words.length === whole % 300));
  }
});
