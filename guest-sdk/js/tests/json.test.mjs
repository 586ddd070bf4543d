import assert from 'node:assert/strict';
import { test } from 'node:test';

import { parse, stableJson, stringify } from '../millrace/json.mjs';

// Each holds a long number somewhere, so that it is read the slow way.
const LONG = '12345678901234567';
const TEXTS = [
  '{}',
  '[]',
  '[[],{},[{}]]',
  '{"a":1,"b":[true,false,null],"c":{"d":"e"}}',
  ' { "a" : [ 1 , -2.5 , 1e3 , -0 , 0.1E-2 ] } ',
  '"text"',
  '"with \\"quotes\\", \\\\ and \\u00e4\\ud83d\\udeeb"',
  '{"quote\\"":"\\\\","back\\\\":"\\\\\\""}',
  '{"__proto__":{"a":1},"constructor":2}',
  '{"a":1,"a":2}',
];

test('what_is_read_exactly_is_what_json_parse_reads', () => {
  for (const text of TEXTS) {
    const [beside, long] = parse(`[${text}, ${LONG}]`);
    assert.deepEqual(beside, JSON.parse(text), text);
    assert.equal(long, BigInt(LONG));
  }
  assert.ok(Object.is(parse(`[-0,${LONG}]`)[0], -0));
});

test('long_numbers_are_found_wherever_they_stand', () => {
  const big = 9007199254740993n;
  assert.equal(parse('9007199254740993'), big);
  assert.equal(parse('-9007199254740993'), -big);
  assert.deepEqual(parse('[9007199254740993]'), [big]);
  assert.deepEqual(parse('{"a":9007199254740993}'), { a: big });
  assert.deepEqual(parse('[1, 9007199254740993]'), [1, big]);
  assert.deepEqual(parse('[1,\n9007199254740992]'), [1, big - 1n]);
  assert.deepEqual(parse('[9007199254740991,1357028100000000]'), [9007199254740991, 1357028100000000]);
});

test('what_is_no_json_is_refused_in_both_ways', () => {
  for (const text of ['', '{', `[${LONG}`, `[${LONG},]`, `{"a":${LONG} "b":1}`, `0${LONG}`, `[0${LONG}]`]) {
    assert.throws(() => parse(text), SyntaxError, text);
  }
});

test('a_big_integer_is_written_as_a_number', () => {
  const value = { a: 9007199254740993n, list: [1n, undefined, () => 1], none: undefined, nested: { date: new Date(0), 'q"': 'x' } };
  const text = '{"a":9007199254740993,"list":[1,null,null],"nested":{"date":"1970-01-01T00:00:00.000Z","q\\"":"x"}}';
  assert.equal(stringify(value), text);
  assert.equal(stringify({ a: 1.5, b: [null] }), '{"a":1.5,"b":[null]}');
});

test('what_has_no_json_is_rejected', () => {
  const round = { big: 1n };
  round.self = round;
  for (const value of [undefined, () => 1, round]) {
    assert.throws(() => stringify(value), (error) => error.kind === 'reject');
  }
});

test('a_number_that_is_not_finite_is_rejected_and_null_is_none', () => {
  const numbers = [NaN, [Infinity], { a: { b: -Infinity } }, { big: 1n, a: NaN }, parse('{"a":1e400}'), new Number(NaN)];
  for (const value of numbers) {
    assert.throws(() => stringify(value), (error) => error.kind === 'reject' && /NaN|Infinity/.test(error.message));
  }
  assert.equal(stringify({ a: null, b: 'null', c: [undefined, 1n] }), '{"a":null,"b":"null","c":[null,1]}');
});

test('what_has_content_that_is_no_members_is_rejected', () => {
  const buffer = new ArrayBuffer(1);
  for (const lost of [new Map([['a', 1]]), new Map(), new Set([1]), new Set(), buffer, new DataView(buffer)]) {
    const message = new RegExp(`a ${lost.constructor.name} cannot be written as JSON`);
    for (const value of [lost, [lost], { a: { b: lost } }, { big: 1n, a: lost }, { toJSON: () => ({ a: lost }) }]) {
      assert.throws(() => stringify(value), (error) => error.kind === 'reject' && message.test(error.message));
    }
    if (lost instanceof Map) continue;
    for (const value of [lost, { a: [lost] }]) assert.throws(() => stableJson(value), message);
  }
  class Seen extends Set {
    toJSON() {
      return [...this];
    }
  }
  const fine = { empty: {}, text: '{}', list: [{}, new Seen([1])], bare: Object.create(null) };
  assert.equal(stringify(fine), '{"empty":{},"text":"{}","list":[{},[1]],"bare":{}}');
  assert.equal(stableJson(fine), '{"bare":{},"empty":{},"list":[{},[1]],"text":"{}"}');
  assert.equal(stringify({ big: 1n, ...fine }), `{"big":1,${stringify(fine).slice(1)}`);
  assert.equal(stableJson({ a: new Map(), b: new Map([[1, new Map([['c', {}]])]]) }), '{"a":{},"b":{"1":{"c":{}}}}');
});

test('a_hole_in_an_array_is_null', () => {
  assert.equal(stringify([1n, , 2, ,]), '[1,null,2,null]');
  assert.equal(stringify({ a: [, [, 1n]] }), '{"a":[null,[null,1]]}');
  assert.equal(stableJson([1n, , 2]), '[1,null,2]');
});

test('an_object_that_stands_for_a_plain_value_is_written_as_that', () => {
  const boxed = [Object(1n), Object(2), Object('c'), Object(true), {}, null];
  assert.equal(stringify(boxed), '[1,2,"c",true,{},null]');
  assert.equal(stableJson({ boxed }), '{"boxed":[1,2,"c",true,{},null]}');
});

test('half_a_pair_is_rejected_and_a_backslash_is_none', () => {
  for (const value of ['\ud800', { a: ['x\udfffy'] }, { '\ud83d': 1 }, { big: 1n, a: '\udeeb' }]) {
    assert.throws(() => stringify(value), /half a surrogate pair/);
  }
  for (const value of ['🛫', '\\ud800', '\\\\ud8', { big: 1n, a: '\\udfff🛫' }]) {
    assert.deepEqual(parse(stringify(value)), typeof value === 'string' ? value : { big: 1, a: '\\udfff🛫' });
  }
});

test('stable_json_does_not_tell_in_which_order_members_came', () => {
  const one = { b: 1, a: { d: [2, { y: 1, x: 2 }], c: 3 }, 10: 'ten', 9: 'nine' };
  const two = { 9: 'nine', a: { c: 3, d: [2, { x: 2, y: 1 }] }, 10: 'ten', b: 1 };
  assert.equal(stableJson(one), stableJson(two));
  assert.equal(stableJson(new Map([['b', 1n], ['a', [2]]])), '{"a":[2],"b":1}');
});
