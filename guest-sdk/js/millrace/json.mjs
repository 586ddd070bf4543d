// JSON with whole numbers of any length. A number beyond 2^53 is a BigInt on both ways; all others are what
// `JSON.parse` makes of them.

import { Failure } from './failure.mjs';

// Where such a number may begin. Looking costs a few steps a payload; what it finds wrongly is only read more slowly.
const LONG_NUMBER = /[:,[\s-](?:[1-9]\d{16}|9\d{15})/;
const NUMBER = /-?\d+(\.\d+)?([eE][+-]?\d+)?/y;
// An escaped half of a pair: `JSON.stringify` writes whole pairs as they are. Backslashes before it go in twos.
const LONE_SURROGATE = /(?<!\\)(?:\\\\)*\\ud[89a-f]/;

// What `JSON.stringify` would make an empty object of, and what to write in its place.
const INSTEAD_OF = {
  __proto__: null,
  Map: '`Object.fromEntries` and `stableJson` make an object of it',
  Set: '`[...set]` makes an array of it',
  ArrayBuffer: 'a Uint8Array of it may be taken as bytes',
  DataView: 'a Uint8Array of its buffer may be taken as bytes',
};

/** Reads JSON text. */
export function parse(text) {
  const first = text.charCodeAt(0);
  const isNumber = first === 45 || (first >= 48 && first <= 57);
  return isNumber || LONG_NUMBER.test(text) ? parseExactly(text) : JSON.parse(text);
}

/**
 * Writes JSON text. A value that has none, a number that is not finite and a Map or Set among them, and half a surrogate
 * pair is rejected.
 */
export function stringify(value) {
  let text;
  try {
    text = JSON.stringify(value);
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    text = write(value, '', new Set());
  }
  if (text === undefined) throw Failure.reject(`a ${typeof value} cannot be written as JSON`);
  if (text.includes('null') || text.includes('{}')) JSON.stringify(value, checkLost);
  if (text.includes('\\ud') && LONE_SURROGATE.test(text)) {
    throw Failure.reject('text with half a surrogate pair cannot be written as JSON; `toWellFormed` replaces it');
  }
  return text;
}

/** `JSON.stringify` makes nothing of these, without a word. */
function checkLost(_, value) {
  if (typeof value === 'bigint' || value instanceof BigInt) return 0;
  const isNumber = typeof value === 'number' || value instanceof Number;
  if (isNumber && !Number.isFinite(Number(value))) throw Failure.reject(`${value} cannot be written as JSON`);
  if (typeof value === 'object' && value !== null) checkMembers(value);
  return value;
}

/** Refuses an object whose content is not in its members: an empty one would be all that is left of it. */
function checkMembers(value) {
  const instead = INSTEAD_OF[value[Symbol.toStringTag]];
  if (instead !== undefined) {
    throw Failure.reject(`a ${value[Symbol.toStringTag]} cannot be written as JSON; ${instead}`);
  }
}

/** JSON text that is the same for the same content: members in one order, a Map as an object. A Set is rejected. */
export function stableJson(value) {
  return stringify(ordered(value));
}

function ordered(value) {
  if (value === null || typeof value !== 'object' || typeof value.toJSON === 'function' || isBoxed(value)) return value;
  if (Array.isArray(value)) return value.map(ordered);
  const entries = value instanceof Map ? [...value].map(([name, of]) => [String(name), of]) : Object.entries(value);
  if (entries.length === 0 && !(value instanceof Map)) checkMembers(value);
  entries.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
  return Object.fromEntries(entries.map(([name, of]) => [name, ordered(of)]));
}

/** Whether it is an object that stands for a plain value. */
function isBoxed(value) {
  return value instanceof Number || value instanceof String || value instanceof Boolean || value instanceof BigInt;
}

/** Writes what holds a BigInt, as `JSON.stringify` would. */
function write(value, key, above) {
  if (typeof value?.toJSON === 'function') value = value.toJSON(key);
  if (typeof value === 'bigint' || value instanceof BigInt) return String(value);
  if (value === null || typeof value !== 'object' || isBoxed(value)) return JSON.stringify(value);
  if (above.has(value)) throw Failure.reject('what holds itself cannot be written as JSON');
  above.add(value);
  let text;
  if (Array.isArray(value)) {
    text = `[${Array.from(value, (item, index) => write(item, String(index), above) ?? 'null').join(',')}]`;
  } else {
    const members = [];
    for (const name of Object.keys(value)) {
      const member = write(value[name], name, above);
      if (member !== undefined) members.push(`${JSON.stringify(name)}:${member}`);
    }
    text = `{${members.join(',')}}`;
  }
  above.delete(value);
  return text;
}

/** Reads text that may hold long numbers: not every engine shows a reviver what stood there. */
function parseExactly(text) {
  // Says what is wrong, if anything is: from here on it is JSON.
  JSON.parse(text);
  return new Reader(text).value();
}

class Reader {
  constructor(text) {
    this.text = text;
    this.at = 0;
  }

  /** The next letter that is no space. */
  peek() {
    let code = this.text.charCodeAt(this.at);
    while (code === 32 || (code >= 9 && code <= 13)) code = this.text.charCodeAt((this.at += 1));
    return this.text[this.at];
  }

  skip(letters) {
    this.at += letters;
  }

  value() {
    switch (this.peek()) {
      case '{':
        return this.object();
      case '[':
        return this.array();
      case '"':
        return this.string();
      case 't':
        this.skip(4);
        return true;
      case 'f':
        this.skip(5);
        return false;
      case 'n':
        this.skip(4);
        return null;
      default:
        return this.number();
    }
  }

  object() {
    const object = {};
    this.skip(1);
    while (this.peek() !== '}') {
      if (this.peek() === ',') this.skip(1);
      this.peek();
      const name = this.string();
      this.peek();
      this.skip(1);
      const value = this.value();
      if (name === '__proto__') {
        Object.defineProperty(object, name, { value, writable: true, enumerable: true, configurable: true });
      } else {
        object[name] = value;
      }
    }
    this.skip(1);
    return object;
  }

  array() {
    const array = [];
    this.skip(1);
    while (this.peek() !== ']') {
      if (this.peek() === ',') this.skip(1);
      array.push(this.value());
    }
    this.skip(1);
    return array;
  }

  string() {
    const { text, at } = this;
    let end = at;
    let backslashes;
    do {
      end = text.indexOf('"', end + 1);
      for (backslashes = 0; text[end - 1 - backslashes] === '\\'; backslashes += 1);
    } while (backslashes % 2 === 1);
    this.at = end + 1;
    return JSON.parse(text.slice(at, end + 1));
  }

  number() {
    NUMBER.lastIndex = this.at;
    const [digits, fraction, exponent] = NUMBER.exec(this.text);
    this.skip(digits.length);
    const number = Number(digits);
    const isExact = Number.isSafeInteger(number) || fraction !== undefined || exponent !== undefined;
    return isExact ? number : BigInt(digits);
  }
}
