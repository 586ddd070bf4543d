import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Driver, Failed, event } from '../millrace/testing/driver.mjs';
import { of, payload, seen } from './helpers.mjs';

const PARTS = ['id', 'aggregate', 'aggId', 'type', 'scope', 'kind', 'cursor', 'traceparent', 'payloadText'];

function parts(each) {
  return Object.fromEntries(PARTS.map((name) => [name, each[name]]));
}

test('every_part_of_an_event_is_read', () => {
  const full = event('ag', 'key', 7, 'ag.done', {
    id: 'the-id',
    scope: 'north',
    kind: 'entry',
    cursor: '12',
    traceparent: '00-ab-cd-01',
    payload: { a: [1, 2.5, null, true] },
  });
  const bare = event('x', 'y', 1, 'z', { payload: null });
  const expected = [
    { id: 'the-id', aggregate: 'ag', aggId: 'key', type: 'ag.done', scope: 'north', kind: 'entry', cursor: '12', traceparent: '00-ab-cd-01', payloadText: '{"a":[1,2.5,null,true]}' },
    { id: 'x/y/1', aggregate: 'x', aggId: 'y', type: 'z', scope: undefined, kind: undefined, cursor: undefined, traceparent: undefined, payloadText: 'null' },
  ];
  assert.deepEqual(seen([full, bare], parts), expected);
});

test('text_of_one_to_four_bytes_a_letter_is_cut_at_its_borders', () => {
  const texts = ['a', 'ä', '字', '🛫', '\ufeffmark', 'mixed ä 字 🛫 and more than four and twenty letters'];
  const events = texts.flatMap((left) => texts.map((right) => event(left, right, 1, left, { id: right, payload: left })));
  const found = seen(events, (each) => [each.aggregate, each.aggId, each.type, each.id, each.json()]);
  const expected = texts.flatMap((left) => texts.map((right) => [left, right, left, right, left]));
  assert.deepEqual(found, expected);
});

test('long_and_short_text_of_a_plain_batch_is_cut_at_its_borders', () => {
  const texts = ['a', 'b'.repeat(24), 'c'.repeat(25), 'd'.repeat(500)];
  const events = texts.map((text) => event(text, text, 1, text, { payload: { text } }));
  const expected = texts.map((text) => [text, text, text, { text }]);
  assert.deepEqual(seen(events, (each) => [each.aggregate, each.aggId, each.type, each.json()]), expected);
});

test('numbers_of_an_event_are_exact', () => {
  const most = 2n ** 63n - 1n;
  const events = [
    event('a', 'b', 5, 'c', { at: '1969-12-31T23:59:59.999999Z', schemaVersion: 4_000_000_000, depth: 3 }),
    event('a', 'b', most, 'c', { at: -(2n ** 63n) }),
    event('a', 'b', 2n ** 53n, 'c', { at: most }),
  ];
  const found = seen(events, ({ versionBig, atBig, positionBig, schemaVersion, depth }) => [versionBig, atBig, positionBig, schemaVersion, depth]);
  assert.deepEqual(found, [
    [5n, -1n, 1n, 4_000_000_000, 3],
    [most, -(2n ** 63n), 2n, 1, 0],
    [2n ** 53n, most, 3n, 1, 0],
  ]);
  assert.deepEqual(seen(events.slice(0, 1), ({ version, at, position, atText }) => [version, at, position, atText]), [
    [5, -1, 1, '1969-12-31T23:59:59.999999Z'],
  ]);
});

test('a_number_that_would_not_be_exact_is_rejected', () => {
  const driver = new Driver(of((each) => void each.version));
  driver.send([event('a', 'b', 2n ** 53n - 1n, 'c')]);
  assert.throws(() => driver.send([event('a', 'b', 2n ** 53n, 'c')]), /reject: `version` is 9007199254740992.*versionBig/);
  const times = new Driver(of((each) => void each.at));
  assert.throws(() => times.send([event('a', 'b', 1, 'c', { at: -(2n ** 53n) })]), /reject: `at` is -9007199254740992/);
});

test('number_beyond_2_53_is_exact', () => {
  const text = '{"id":9007199254740993,"small":9007199254740991,"list":[-12345678901234567890, 1.5e3],"text":"12345678901234567890"}';
  const [found] = seen([payload(new TextEncoder().encode(text))], (each) => each.json());
  assert.deepEqual(found, {
    id: 9007199254740993n,
    small: 9007199254740991,
    list: [-12345678901234567890n, 1500],
    text: '12345678901234567890',
  });
  const driver = new Driver(of((each, out) => out.emit({ aggregate: 'a', aggId: 'b', type: 'c', at: 0 }, each.json())));
  driver.send([payload(new TextEncoder().encode(text))]);
  const again = '{"id":9007199254740993,"small":9007199254740991,"list":[-12345678901234567890,1500],"text":"12345678901234567890"}';
  assert.equal(new TextDecoder().decode(driver.emitted[0].payload), again);
});

test('a_payload_is_parsed_once_and_what_is_no_json_is_rejected', () => {
  const [same] = seen([payload({ a: 1 })], (each) => each.json() === each.json());
  assert.ok(same);
  const driver = new Driver(of((each) => void each.json()));
  const bad = payload(new TextEncoder().encode('{"a":'));
  assert.throws(() => driver.send([payload(1), bad]), (error) => error instanceof Failed && error.index === 1 && error.kind === 'reject');
});

test('an_empty_batch_is_one_too', () => {
  const driver = new Driver(of(() => assert.fail('there is no event')));
  driver.send([]);
});
