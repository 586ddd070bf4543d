// Bytes and numbers of effects, written straight into the layout they cross in: no object for each effect.

import { Failure } from './failure.mjs';
import { ROOM_BYTES_MAX, ROOM_RECORDS_MAX } from './limits.mjs';

// Numbers of 32 bits that each effect has; `types.wit` says which is what.
const NUMBERS = 14;
const ARENA_BYTES_MIN = 16 << 10;
const RECORDS_MIN = 256;
// Up to here a loop over the letters costs less than a call of the encoder.
const LOOP_LETTERS_MAX = 24;
const TWO_32 = 4_294_967_296;

const encoder = new TextEncoder();

/** Whether it is a Uint8Array, whoever made it: a component's bindings have classes of their own. */
export function isBytes(value) {
  return ArrayBuffer.isView(value) && value[Symbol.toStringTag] === 'Uint8Array';
}

/** The same bytes as a Uint8Array of the plugin's own, so that `instanceof` says so. */
export function ownBytes(bytes) {
  return bytes instanceof Uint8Array ? bytes : new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** Text as UTF-8. Half a surrogate pair is refused: encoding would put another letter in its place. */
export function encode(text) {
  checkWellFormed(text);
  return encoder.encode(text);
}

function checkWellFormed(text) {
  if (!text.isWellFormed()) {
    throw Failure.reject('text holds half a surrogate pair, which UTF-8 has no bytes for; `toWellFormed` replaces it');
  }
}

/** The arena and the records of a batch's effects. */
export class Writer {
  constructor() {
    this.end = 0;
    this.records = 0;
    this._setArena(new Uint8Array(ARENA_BYTES_MIN));
    this._numbers = new Uint32Array(RECORDS_MIN * NUMBERS);
  }

  _setArena(arena) {
    this.arena = arena;
    this._view = new DataView(arena.buffer);
  }

  _room(bytes) {
    const needed = this.end + bytes;
    if (needed <= this.arena.length) return;
    const larger = new Uint8Array(Math.max(this.arena.length * 2, needed));
    larger.set(this.arena.subarray(0, this.end));
    this._setArena(larger);
  }

  byte(byte) {
    this._room(1);
    this.arena[this.end] = byte;
    this.end += 1;
  }

  bytes(bytes) {
    this._room(bytes.length);
    this.arena.set(bytes, this.end);
    this.end += bytes.length;
    return bytes.length;
  }

  /** Writes text; answers its bytes. */
  text(text) {
    const { length } = text;
    if (this.end + length * 3 > this.arena.length) this._room(length * 3);
    const { arena, end } = this;
    if (length <= LOOP_LETTERS_MAX) {
      let index = 0;
      for (; index < length; index += 1) {
        const code = text.charCodeAt(index);
        if (code > 127) break;
        arena[end + index] = code;
      }
      if (index === length) {
        this.end = end + length;
        return length;
      }
    }
    checkWellFormed(text);
    const { written } = encoder.encodeInto(text, arena.subarray(end));
    this.end = end + written;
    return written;
  }

  textCell(tag, text) {
    this._room(5 + text.length * 3);
    const { end } = this;
    this.arena[end] = tag;
    this.end = end + 5;
    this._view.setUint32(end + 1, this.text(text), true);
  }

  bytesCell(tag, bytes) {
    this._room(5 + bytes.length);
    this.arena[this.end] = tag;
    this._view.setUint32(this.end + 1, bytes.length, true);
    this.end += 5;
    this.bytes(bytes);
  }

  /** A whole number that is exact. */
  wholeCell(tag, value) {
    if (this.end + 9 > this.arena.length) this._room(9);
    const { end } = this;
    this.arena[end] = tag;
    this._view.setUint32(end + 1, value, true);
    this._view.setInt32(end + 5, Math.floor(value / TWO_32), true);
    this.end = end + 9;
  }

  bigCell(tag, value) {
    this._room(9);
    this.arena[this.end] = tag;
    this._view.setBigInt64(this.end + 1, value, true);
    this.end += 9;
  }

  floatCell(tag, value) {
    this._room(9);
    this.arena[this.end] = tag;
    this._view.setFloat64(this.end + 1, value, true);
    this.end += 9;
  }

  /**
   * Adds an effect whose bytes begin at `start`. `version` and `at` are whole numbers, as a number or as a BigInt.
   */
  record(kind, table, event, schemaVersion, version, at, start, key, aggregate, type, id, body) {
    let place = this.records * NUMBERS;
    if (place === this._numbers.length) {
      const larger = new Uint32Array(place * 2);
      larger.set(this._numbers);
      this._numbers = larger;
    }
    const numbers = this._numbers;
    numbers[place] = kind;
    numbers[place + 1] = table;
    numbers[place + 2] = event;
    numbers[place + 3] = schemaVersion;
    if (typeof version === 'number') {
      numbers[place + 4] = version;
      numbers[place + 5] = Math.floor(version / TWO_32);
    } else {
      numbers[place + 4] = Number(version & 0xffff_ffffn);
      numbers[place + 5] = Number((version >> 32n) & 0xffff_ffffn);
    }
    if (typeof at === 'number') {
      numbers[place + 6] = at;
      numbers[place + 7] = Math.floor(at / TWO_32);
    } else {
      numbers[place + 6] = Number(at & 0xffff_ffffn);
      numbers[place + 7] = Number((at >> 32n) & 0xffff_ffffn);
    }
    numbers[place + 8] = start;
    numbers[place + 9] = key;
    numbers[place + 10] = aggregate;
    numbers[place + 11] = type;
    numbers[place + 12] = id;
    numbers[place + 13] = body;
    this.records += 1;
  }

  /** Drops what came after. */
  truncate(end, records) {
    this.end = end;
    this.records = records;
  }

  /** Hands over what there is and begins anew. What asked for a lot of memory does not keep it. */
  finish() {
    const { end } = this;
    const numbers = this.records * NUMBERS;
    const effects = {
      arena: this.arena.slice(0, end),
      records: new Uint8Array(this._numbers.buffer.slice(0, numbers * 4)),
    };
    this.truncate(0, 0);
    if (this.arena.length > ROOM_BYTES_MAX) this._setArena(new Uint8Array(ARENA_BYTES_MIN));
    if (this._numbers.length > ROOM_RECORDS_MAX * NUMBERS) this._numbers = new Uint32Array(RECORDS_MIN * NUMBERS);
    return effects;
  }
}
