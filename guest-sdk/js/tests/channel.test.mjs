import assert from 'node:assert/strict';
import { test } from 'node:test';

import { ChannelEntry, Failure } from '../millrace/index.mjs';
import { Failed, TestEvent, event } from '../millrace/testing/driver.mjs';
import { payload, seen } from './helpers.mjs';

const entries = (events) => seen(events, (each) => each.payloadAs(ChannelEntry));

test('an_entry_of_a_channel_is_read_from_its_event', () => {
  const written = TestEvent.entry('p-1', 'requests', 4, 'ada', 'hé\n"', { at: 5 }).executedBy('plugin:a');
  assert.deepEqual([written.aggregate, written.aggId, written.at], ['channel', 'p-1_requests', 5n]);
  assert.deepEqual([written.type, written.version, written.id], ['channel.data', 4n, 'channel/p-1_requests/4']);
  const raw = TestEvent.entry('p-1', 'requests', 5, 'ada', Uint8Array.of(0xff, 0, 1));
  const empty = TestEvent.entry('p-1', 'requests', 6, 'ada', '');
  const failed = TestEvent.entryError('p-1', 'requests', 7, 'ada', 'no more');
  const end = TestEvent.entryEnd('p-1', 'requests', 8, 'bob');
  const [first, second, third, error, last] = entries([written, raw, empty, failed, end]);
  assert.deepEqual([first.process, first.channel, first.sender], ['p-1', 'requests', 'ada']);
  assert.deepEqual([first.position, first.sequence, first.epoch], [4, 4, 0]);
  assert.deepEqual([first.entryType, first.inReplyTo, first.error], ['data', undefined, undefined]);
  assert.deepEqual([first.text, first.executor], ['hé\n"', 'plugin:a']);
  assert.deepEqual(first.bytes(), new TextEncoder().encode('hé\n"'));
  assert.deepEqual([second.text, second.bytes(), second.executor], [undefined, Uint8Array.of(0xff, 0, 1), undefined]);
  assert.deepEqual([third.text, third.bytes()], ['', new Uint8Array()]);
  assert.deepEqual([failed.type, error.entryType, error.error], ['channel.error', 'error', 'no more']);
  assert.deepEqual([error.payload, error.bytes()], [undefined, undefined]);
  assert.deepEqual([end.type, last.entryType, last.sender, last.bytes()], ['channel.end', 'end', 'bob', undefined]);
  assert.deepEqual(first, new ChannelEntry(written.json()));
});

test('an_entry_is_what_the_host_writes', () => {
  // With a member that this version does not know.
  const told = { process: 'p', channel: 'c', position: 2n ** 63n + 1n, epoch: 2, sequence: 7, inreplyto: 3, senderid: 'ada', type: 'data', payload: '+/8A', later: [1] };
  const [entry] = entries([event('channel', 'p_c', 1, 'channel.data', { payload: told })]);
  assert.deepEqual([entry.position, entry.inReplyTo, entry.epoch], [2n ** 63n + 1n, 3, 2]);
  assert.deepEqual([entry.bytes(), entry.text], [Uint8Array.of(0xfb, 0xff, 0), undefined]);
});

test('an_entry_that_is_none_is_rejected', () => {
  const good = TestEvent.entry('p', 'c', 1, 'ada', 'a').json();
  for (const [told, says] of [
    [{ ...good, process: null }, /`process` of an entry is null/],
    [{ ...good, position: -1 }, /`position` of an entry is -1/],
    [{ ...good, sequence: true }, /`sequence` of an entry is true/],
    [{ ...good, epoch: 2 ** 32 }, /`epoch` of an entry is 4294967296/],
    [{ ...good, type: 'more' }, /`type` of an entry is "more"/],
    [{ ...good, payload: 7 }, /`payload` of an entry is 7/],
    [null, /null is no entry/],
  ]) {
    assert.throws(
      () => entries([payload(told)]),
      (error) => error instanceof Failed && error.kind === 'reject' && says.test(error.message) && /the payload of `thing.changed` a version 1 does not fit: /.test(error.message),
      String(says),
    );
  }
  const bent = new ChannelEntry({ ...good, payload: 'a' });
  assert.throws(() => bent.bytes(), (error) => error instanceof Failure && /entry 1 of `c` is not base64/.test(error.message));
});

test('a_payload_may_be_of_a_class_of_the_plugins', () => {
  class Order {
    constructor({ cents }) {
      if (cents === undefined) throw new Error('it has no cents');
      if (cents < 0) throw Failure.fatal('cents below zero');
      this.cents = BigInt(cents);
    }
  }
  const look = (each) => each.payloadAs(Order).cents;
  assert.deepEqual(seen([payload({ cents: 5 })], look), [5n]);
  for (const [told, kind] of [[{}, 'reject'], [null, 'reject'], [{ cents: 'five' }, 'reject'], [{ cents: -1 }, 'fatal']]) {
    assert.throws(() => seen([payload(told)], look), (error) => error instanceof Failed && error.kind === kind);
  }
});

test('a_time_of_a_test_event_is_text_a_date_or_microseconds', () => {
  const at = '2013-01-01T08:15:00.250Z';
  for (const time of [at, new Date(at), 1_357_028_100_250_000, 1_357_028_100_250_000n]) {
    assert.equal(new TestEvent('a', 'b', 1, 't', { at: time }).at, 1_357_028_100_250_000n);
  }
  assert.throws(() => new TestEvent('a', 'b', 1, 't', { at: 'soon' }), TypeError);
});
