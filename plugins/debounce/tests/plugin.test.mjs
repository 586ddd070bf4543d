import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { formatTime } from '../millrace/index.mjs';
import { Driver, Failed, batchEqualsSingles, event, readEvents } from '../millrace/testing/driver.mjs';
import { handler } from '../src/plugin.mjs';

const START = Date.parse('2013-01-01T08:00:00Z') * 1_000;
const SECOND = 1_000_000;

/** An event of a key so many seconds after eight. */
function at(seconds, key, version = 1) {
  return event('thing', key, version, 'thing.changed', { at: START + seconds * SECOND, payload: { seconds } });
}

function reasons(driver) {
  return driver.emitted.map((of) => `${of.json().key} ${of.json().events} ${of.json().reason}`);
}

/** Something like chance, and the same at every run. */
function* numbers(seed) {
  for (let state = seed; ; ) {
    state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fff_ffff;
    yield state >>> 8;
  }
}

function busy(count) {
  const chance = numbers(7);
  const next = (below) => chance.next().value % below;
  let now = 0;
  return Array.from({ length: count }, (_, index) => {
    now += next(12);
    // Some keys are busier than others, and some events come late.
    const key = `k${Math.floor(next(100) ** 2 / 900)}`;
    return at(now - (next(10) === 0 ? next(90) : 0), key, index + 1);
  });
}

const TIGHT = { quiet_ms: '30000', age_ms_max: '100000', events_max: '6', windows_max: '5' };

test('window_closes_at_exactly_the_quiet_period', () => {
  const driver = new Driver(handler);
  driver.send([at(0, 'a'), at(10, 'a', 2), at(69.999999, 'b')]);
  assert.deepEqual(reasons(driver), []);
  driver.send([at(70, 'b', 2)]);
  assert.deepEqual(reasons(driver), ['thing/a 2 quiet']);
  assert.deepEqual(driver.row('batches', 'thing/a'), {
    events: 2,
    first_at: '2013-01-01T08:00:00Z',
    last_at: '2013-01-01T08:00:10Z',
    reason: 'quiet',
  });
  const [batch] = driver.emitted;
  assert.deepEqual([batch.aggregate, batch.aggId, batch.type], ['debounce', 'thing/a', 'debounce.batch']);
  assert.equal(batch.at, BigInt(START + 70 * SECOND), 'it happened when the window ended');
});

test('the_event_that_comes_at_the_end_opens_the_next_window', () => {
  const driver = new Driver(handler);
  driver.send([at(0, 'a'), at(60, 'a', 2), at(120, 'b')]);
  assert.deepEqual(reasons(driver), ['thing/a 1 quiet', 'thing/a 1 quiet']);
  assert.deepEqual(driver.emitted.map((of) => of.version), [1n, 2n]);
  assert.equal(driver.version('batches', 'thing/a'), 2);
});

test('age_closes_before_quiet', () => {
  const driver = new Driver(handler);
  driver.send([0, 50, 100, 150, 200, 250, 299].map((seconds, index) => at(seconds, 'a', index + 1)));
  assert.deepEqual(reasons(driver), []);
  driver.send([at(300, 'a', 8)]);
  assert.deepEqual(reasons(driver), ['thing/a 7 age']);
  assert.equal(driver.emitted[0].at, BigInt(START + 300 * SECOND));
});

test('a_full_window_closes_at_once', () => {
  const driver = new Driver(handler, { config: { events_max: '3' } });
  driver.send([at(0, 'a'), at(1, 'a', 2), at(2, 'a', 3), at(3, 'a', 4)]);
  assert.deepEqual(reasons(driver), ['thing/a 3 count']);
});

test('the_oldest_window_goes_at_the_cap', () => {
  const driver = new Driver(handler, { config: { windows_max: '2' } });
  driver.send([at(0, 'b'), at(1, 'a'), at(2, 'b', 2), at(3, 'c')]);
  assert.deepEqual(reasons(driver), ['thing/b 2 limit']);
  driver.restart();
  driver.send([at(4, 'd')]);
  assert.deepEqual(reasons(driver), ['thing/b 2 limit', 'thing/a 1 limit']);
});

test('what_it_emitted_opens_no_window', () => {
  const driver = new Driver(handler, { config: { events_max: '1' } });
  driver.send([at(0, 'a')]);
  driver.send(driver.emitted.slice());
  assert.equal(driver.emitted.length, 1);
});

test('a_late_window_that_is_over_closes_in_flush', () => {
  const driver = new Driver(handler);
  driver.flush();
  driver.send([at(600, 'a'), at(0, 'b')]);
  assert.deepEqual(reasons(driver), []);
  driver.flush();
  assert.deepEqual(reasons(driver), ['thing/b 1 quiet']);
});

test('one_event_from_the_future_closes_nothing', () => {
  const driver = new Driver(handler);
  const years = 200 * 365 * 86_400;
  driver.send([at(0, 'a'), at(years, 'far'), at(1, 'a', 2)]);
  assert.match(driver.messages[0].text, /time waits for another one/);
  driver.restart();
  driver.flush();
  driver.send([at(2, 'a', 3), at(3, 'b'), at(4, 'a', 4)]);
  assert.deepEqual(reasons(driver), []);
  driver.send([at(70, 'c')]);
  assert.deepEqual(reasons(driver), ['thing/b 1 quiet', 'thing/a 4 quiet']);
});

test('a_stream_that_was_quiet_for_days_goes_on_with_its_second_event', () => {
  const driver = new Driver(handler);
  const days = 3 * 86_400;
  driver.send([at(0, 'a'), at(days, 'b')]);
  assert.deepEqual(reasons(driver), []);
  driver.send([at(days + 1, 'b', 2)]);
  assert.deepEqual(reasons(driver), ['thing/a 1 quiet']);
  driver.send([at(days + 61, 'c')]);
  assert.deepEqual(reasons(driver), ['thing/a 1 quiet', 'thing/b 2 quiet']);
});

test('names_that_run_together_are_two_keys', () => {
  const driver = new Driver(handler);
  const of = (aggregate, aggId, seconds) => event(aggregate, aggId, 1, 'x.y', { at: START + seconds * SECOND, payload: {} });
  driver.send([of('a/b', 'c', 0), of('a', 'b/c', 1), of('a%2Fb', 'c', 2), of('z', 'z', 100)]);
  assert.deepEqual(reasons(driver), ['a%2Fb/c 1 quiet', 'a/b/c 1 quiet', 'a%252Fb/c 1 quiet']);
});

test('wall_time_without_its_grant_is_refused', () => {
  assert.throws(() => new Driver(handler, { config: { clock: 'wall' } }), /built with the grant `clock`/);
  assert.throws(() => new Driver(handler, { config: { clock: 'mine' } }), /it may be `events`, `wall`/);
});

test('batch_equals_singles', () => {
  batchEqualsSingles(handler, busy(600), { config: TIGHT });
  const seen = new Driver(handler, { config: TIGHT });
  seen.send(busy(600));
  const kinds = new Set(seen.emitted.map((of) => of.json().reason));
  assert.deepEqual([...kinds].sort(), ['age', 'count', 'limit', 'quiet'], 'the events close windows in every way');
});

test('it_does_not_matter_when_ticks_come', () => {
  const told = (ticks) => {
    const driver = new Driver(handler, { config: TIGHT });
    for (const of of busy(600)) {
      driver.send([of]);
      if (ticks) driver.flush();
    }
    driver.flush();
    const emitted = driver.emitted.map((of) => [of.aggId, of.version, of.at, of.json()]);
    return [emitted, driver.rows('batches'), driver.saved(), driver.state()];
  };
  assert.deepEqual(told(true), told(false));
});

test('restarts_change_nothing', () => {
  const [whole, restarted] = [new Driver(handler, { config: TIGHT }), new Driver(handler, { config: TIGHT })];
  whole.send(busy(600));
  for (const of of busy(600)) {
    restarted.send([of]);
    restarted.restart();
  }
  assert.deepEqual(restarted.emitted, whole.emitted);
  assert.deepEqual(restarted.rows('batches'), whole.rows('batches'));
  assert.deepEqual(restarted.saved(), whole.saved());
});

test('every_event_is_in_one_batch', () => {
  const driver = new Driver(handler, { config: TIGHT });
  driver.send(busy(600));
  const told = driver.emitted.reduce((sum, of) => sum + of.json().events, 0);
  const open = JSON.parse(new TextDecoder().decode(driver.saved().state)).windows;
  assert.equal(told + open.reduce((sum, [, window]) => sum + window.events, 0), 600);
  assert.equal(driver.stale, 0);
});

test('full_windows_leave_nothing_behind', () => {
  const driver = new Driver(handler, { config: { events_max: '1' } });
  driver.send(Array.from({ length: 5_000 }, (_, index) => at(0, 'a', index + 1)));
  assert.ok(driver.processor.queue.length <= 1_002, `${driver.processor.queue.length} places wait`);
});

test('snapshot_twice_is_equal', () => {
  const driver = new Driver(handler);
  driver.send(busy(50));
  // The driver compares two in a row, and the one after a restart with the one before.
  driver.restart();
  assert.deepEqual(driver.saved(), driver.saved());
});

test('a_key_that_is_too_long_is_rejected_and_changes_nothing', () => {
  const driver = new Driver(handler);
  driver.send([at(0, 'a')]);
  const before = driver.saved();
  assert.throws(() => driver.send([at(500, 'ü'.repeat(300))]), (error) => error instanceof Failed && error.kind === 'reject');
  assert.deepEqual(driver.saved(), before);
  assert.equal(driver.emitted.length, 0);
});

test('a_setting_that_is_no_number_is_refused', () => {
  assert.throws(() => new Driver(handler, { config: { quiet_ms: 'soon' } }), /setting `quiet_ms` is `soon`/);
  assert.throws(() => new Driver(handler, { config: { events_max: '0' } }), /at least 1/);
});

test('a_state_of_another_kind_is_refused', () => {
  const saved = { contentType: 'text/plain', state: new Uint8Array() };
  assert.throws(() => new Driver(handler, { saved }), /has content type `text\/plain`, this version reads/);
});

test('the_recorded_events_give_what_is_expected', () => {
  const driver = new Driver(handler, { config: { quiet_ms: '60000', events_max: '4' } });
  driver.send(readEvents(new URL('events.ndjson', import.meta.url)));
  const expected = JSON.parse(readFileSync(new URL('expected.json', import.meta.url), 'utf8'));
  const versioned = ([key, row]) => ({ key, version: driver.version('batches', key), ...row });
  assert.deepEqual(Object.entries(driver.rows('batches')).map(versioned), expected.rows.batches);
  const told = driver.emitted.map(({ type, aggregate, aggId, version, at, payload }) => {
    const text = new TextDecoder().decode(payload);
    return { type, aggregate, agg_id: aggId, version: Number(version), at: formatTime(at), payload: JSON.parse(text) };
  });
  assert.deepEqual(told, expected.emitted);
  assert.deepEqual(JSON.parse(new TextDecoder().decode(driver.saved().state)), expected.state.value);
  const kept = Object.fromEntries(expected.keyed.map(({ key, value }) => [key, String(value)]));
  assert.deepEqual(driver.state(), kept);
});
