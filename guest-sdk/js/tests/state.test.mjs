import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Failure, processor } from '../millrace/index.mjs';
import { Driver, batchEqualsSingles, event } from '../millrace/testing/driver.mjs';
import { of, payload } from './helpers.mjs';

const MINUTE = 60_000_000;

/** Runs steps, one an event: `[at, run]`. Answers what they answered. */
function steps(list, setup) {
  const found = [];
  const handler = of((each, out) => void found.push(list[each.json()][1](out.state)));
  const driver = new Driver(handler, setup);
  driver.send(list.map(([at], index) => payload(index, { at })));
  return { found, driver };
}

test('an_event_sees_what_was_committed_and_what_was_written_since', () => {
  const { found, driver } = steps(
    [
      [0, (state) => [state.getText('old'), state.get('none')]],
      [0, (state) => state.put('old', 'newer')],
      [0, (state) => state.getText('old')],
      [0, (state) => state.delete('old')],
      [0, (state) => state.get('old')],
      [0, (state) => state.putJson('ü', { n: 9007199254740993n })],
      [0, (state) => state.getJson('ü')],
    ],
    { state: [['old', 'value']] },
  );
  assert.deepEqual(found, [['value', undefined], undefined, 'newer', undefined, undefined, undefined, { n: 9007199254740993n }]);
  assert.deepEqual(driver.state(), { ü: '{"n":9007199254740993}' });
});

test('a_scan_is_of_both_and_in_the_order_of_bytes', () => {
  const state = ['a/1', 'a/2', 'a/4', 'b/1', 'a/\uffff'].map((key) => [key, 'stored']);
  const { found } = steps(
    [
      [
        0,
        (of) => {
          of.put('a/3', 'written');
          of.put('a/2', 'over');
          of.put('a/🛫', 'written');
          of.put('A', 'other');
          of.delete('a/4');
          return [...of.scan('a/')].map((entry) => [entry.key, entry.text()]);
        },
      ],
      [0, (of) => [...of.scan('a/', { after: 'a/1', limit: 2 })].map(({ key }) => key)],
      [0, (of) => [...of.scan()].map(({ key }) => key)],
    ],
    { state },
  );
  const last = [['a/\uffff', 'stored'], ['a/🛫', 'written']];
  assert.deepEqual(found[0], [['a/1', 'stored'], ['a/2', 'over'], ['a/3', 'written'], ...last]);
  assert.deepEqual(found[1], ['a/2', 'a/3']);
  assert.deepEqual(found[2], ['A', 'a/1', 'a/2', 'a/3', 'a/\uffff', 'a/🛫', 'b/1']);
});

test('a_scan_goes_over_pages', () => {
  const state = Array.from({ length: 2_500 }, (_, index) => [`k${String(index).padStart(5, '0')}`, 'v']);
  const { found } = steps([[0, (of) => [...of.scan('k')].length], [0, (of) => [...of.scan('k', { limit: 1_200 })].length]], { state });
  assert.deepEqual(found, [2_500, 1_200]);
});

test('entries_end_by_the_events_own_time', () => {
  const { found, driver } = steps([
    [0, (state) => state.put('a', 'x', { ttlMs: 60_000 })],
    [0, (state) => state.put('b', 'x', { until: 5 })],
    [MINUTE - 1, (state) => [state.getText('a'), state.getText('b')]],
    [MINUTE, (state) => [...state.scan()].length],
  ]);
  assert.deepEqual([found[2], found[3]], [['x', undefined], 0]);
  assert.deepEqual(driver.state(), {}, 'what was found to be gone is deleted');
});

test('batches_and_singles_meet_the_same_ends', () => {
  const handler = of((each, out) => {
    out.state.putJson('seen', [...out.state.scan('k')].map(({ key }) => key));
    out.state.put(`k${each.version}`, 'v', { ttlMs: 150_000 });
  });
  const events = Array.from({ length: 30 }, (_, index) => event('a', 'b', index + 1, 't', { at: index * MINUTE }));
  batchEqualsSingles(handler, events);
});

test('a_time_to_live_needs_a_time', () => {
  const flush = (_, out) => out.state.put('a', 'x', { ttlMs: 1 });
  const driver = new Driver(of(() => undefined, { flush }));
  assert.throws(() => driver.flush(), /retry: no event was handled since the start/);
  driver.send([payload(null, { at: 10 })]);
  driver.flush();
  assert.deepEqual(driver.state(), { a: 'x' });
});

test('an_end_is_a_time_like_any_other', () => {
  const write = (end) => {
    const driver = new Driver(of((_, out) => out.state.put('a', 'x', end)));
    driver.send([payload(null)]);
    return [...driver._host.entries.values()][0].expiresAt;
  };
  const times = [9_000_000, 9_000_000n, new Date(9_000), '1970-01-01T00:00:09Z'].map((until) => write({ until }));
  assert.deepEqual(times, [9_000_000n, 9_000_000n, 9_000_000n, 9_000_000n]);
  for (const until of [1.5, 'soon', NaN, 1n << 70n, null]) assert.throws(() => write({ until }), /fatal: `until` of a state entry/);
  for (const ttlMs of ['long', NaN, Infinity]) assert.throws(() => write({ ttlMs }), /fatal: `ttlMs` is/);
});

test('keys_and_values_have_their_bounds', () => {
  const write = (run) => new Driver(of((_, out) => run(out.state))).send([payload(null)]);
  assert.throws(() => write((state) => state.get('')), /reject.*state_key_bytes_max/);
  assert.throws(() => write((state) => state.put('ü'.repeat(257), '')), /reject.*514 bytes/);
  assert.throws(() => write((state) => state.put('a', new Uint8Array((1 << 20) + 1))), /reject.*state_value_bytes_max/);
  assert.throws(() => write((state) => state.put('a', 7)), /fatal.*neither text nor a Uint8Array/);
});

test('the_state_can_be_read_while_loading', () => {
  const handler = processor(
    class {
      static manifest = { name: 'probe', version: '0.1.0' };

      constructor(context) {
        this.known = [...context.state.scan('k')].map(({ key }) => key);
        if (context.state.get('k1') === undefined) throw Failure.fatal('it is not there');
      }

      handle() {}
    },
  );
  assert.deepEqual(new Driver(handler, { state: [['k1', ''], ['k2', ''], ['l', '']] }).processor.known, ['k1', 'k2']);
});
