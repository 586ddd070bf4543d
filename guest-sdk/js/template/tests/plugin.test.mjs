import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Driver, batchEqualsSingles, event } from '../millrace/testing/driver.mjs';
import { handler } from '../src/plugin.mjs';

function orders(count) {
  return Array.from({ length: count }, (_, index) => event('order', 'o-1', index + 1, 'order.changed'));
}

test('an order is counted and its tenth event is told', () => {
  const driver = new Driver(handler);
  driver.send(orders(12));
  assert.equal(driver.row('plugin_name', 'o-1').events, 12);
  assert.equal(driver.emitted.length, 1);
});

test('a restart goes on where it was', () => {
  const driver = new Driver(handler);
  driver.send(orders(9));
  driver.restart();
  driver.send(orders(11).slice(9));
  assert.equal(driver.row('plugin_name', 'o-1').events, 11);
  assert.equal(driver.emitted.length, 1);
});

test('a batch means the same as its events', () => {
  batchEqualsSingles(handler, orders(25));
});
