// One event, cut out of its batch.

import { Failure } from './failure.mjs';
import { parse } from './json.mjs';
import { formatTime, narrow } from './time.mjs';
import { ownBytes } from './writer.mjs';

// Of the numbers of one event, and how many of 32 bits that are; `types.wit` says which is what.
const EVENT_BYTES = 72;
const NUMBERS = EVENT_BYTES / 4;
// Ends of the parts of an event's bytes, among its numbers.
const START = 8;
const [ID, AGGREGATE, AGG_ID, TYPE, SCOPE, KIND, CURSOR, TRACEPARENT, PAYLOAD] = [9, 10, 11, 12, 13, 14, 15, 16, 17];
// An engine cuts a longer text as a view of the whole, which then stays in memory as long as the part does.
const CUT_LETTERS_MAX = 24;

// A text that is not UTF-8 ends the instance: the host hands out nothing else.
const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** Events as they cross: one arena and the numbers. */
export class Batch {
  constructor(arena, records) {
    this.arena = ownBytes(arena);
    const isAligned = records.byteOffset % 4 === 0;
    const bytes = isAligned ? records : records.slice();
    this.numbers = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
    this.length = records.byteLength / EVENT_BYTES;
    // Once for all: what has as many letters as bytes is ASCII, and its parts can be cut.
    const text = arena.length === 0 ? '' : decoder.decode(arena);
    this.ascii = text.length === arena.length ? text : null;
  }

  /** The latest time of the first so many events and of what was before. */
  latest(events, before) {
    const { numbers } = this;
    let index = -1;
    let low = 0;
    let high = 0;
    for (let at = 0; at < events * NUMBERS; at += NUMBERS) {
      const ofLow = numbers[at + 4];
      const ofHigh = numbers[at + 5] | 0;
      if (index < 0 || ofHigh > high || (ofHigh === high && ofLow > low)) {
        index = at / NUMBERS;
        low = ofLow;
        high = ofHigh;
      }
    }
    if (index < 0) return before;
    const found = new Event(this, index).anyAt;
    return before === undefined || found > before ? found : before;
  }
}

/** An event. Text is read when it is asked for, so that a processor pays for the parts it looks at. */
export class Event {
  constructor(batch, index) {
    this._batch = batch;
    this._at = index * NUMBERS;
    this._json = undefined;
  }

  _text(from, to) {
    if (from === to) return '';
    const { ascii } = this._batch;
    if (ascii !== null && to - from <= CUT_LETTERS_MAX) return ascii.slice(from, to);
    return decoder.decode(this._batch.arena.subarray(from, to));
  }

  _part(end) {
    const { numbers } = this._batch;
    const at = this._at;
    const start = numbers[at + START];
    return this._text(end === ID ? start : start + numbers[at + end - 1], start + numbers[at + end]);
  }

  _optional(end) {
    const { numbers } = this._batch;
    return numbers[this._at + end - 1] === numbers[this._at + end] ? undefined : this._part(end);
  }

  _exact(word, name) {
    const { numbers } = this._batch;
    const number = numbers[this._at + word + 1] * 4_294_967_296 + numbers[this._at + word];
    if (number > Number.MAX_SAFE_INTEGER) {
      throw Failure.reject(`\`${name}\` is ${this[`${name}Big`]}, which a number does not hold; read \`${name}Big\``);
    }
    return number;
  }

  _big(word) {
    const { numbers } = this._batch;
    return (BigInt(numbers[this._at + word + 1]) << 32n) | BigInt(numbers[this._at + word]);
  }

  /** The event's id, unique in its tenant within the dedup window. */
  get id() {
    return this._part(ID);
  }

  /** The kind of thing that changed, such as `flight`. */
  get aggregate() {
    return this._part(AGGREGATE);
  }

  /** Which one changed. */
  get aggId() {
    return this._part(AGG_ID);
  }

  /** What happened, such as `flight.departed`. */
  get type() {
    return this._part(TYPE);
  }

  /** The scope inside the tenant, if any. */
  get scope() {
    return this._optional(SCOPE);
  }

  /** The kind a foreign source gave the event, if any. */
  get kind() {
    return this._optional(KIND);
  }

  /** The place a foreign source gave the event, if any. */
  get cursor() {
    return this._optional(CURSOR);
  }

  /** The W3C trace context the event was published with, if any. */
  get traceparent() {
    return this._optional(TRACEPARENT);
  }

  /** The payload's bytes: JSON text. They lie in the batch; `slice` them to keep them. */
  get payload() {
    const { arena, numbers } = this._batch;
    const start = numbers[this._at + START];
    return arena.subarray(start + numbers[this._at + TRACEPARENT], start + numbers[this._at + PAYLOAD]);
  }

  /** The payload's text. */
  get payloadText() {
    return this._part(PAYLOAD);
  }

  /** The payload, read. A whole number beyond 2^53 is a BigInt. What is not JSON is rejected. */
  json() {
    if (this._json !== undefined) return this._json;
    const { arena, ascii, numbers } = this._batch;
    const start = numbers[this._at + START];
    // No destructuring of lists where every event comes by: an iterator costs more than all the rest.
    const from = start + numbers[this._at + TRACEPARENT];
    const to = start + numbers[this._at + PAYLOAD];
    try {
      this._json = parse(ascii !== null ? ascii.slice(from, to) : decoder.decode(arena.subarray(from, to)));
    } catch (error) {
      throw Failure.reject(`${this._what()} cannot be read: ${error.message}`);
    }
    return this._json;
  }

  /** The payload as an object of this class, such as `ChannelEntry`, which is made of it. One that does not fit is rejected. */
  payloadAs(Kind) {
    const payload = this.json();
    try {
      return new Kind(payload);
    } catch (error) {
      if (error instanceof Failure || !(error instanceof Error)) throw error;
      throw Failure.reject(`${this._what()} does not fit: ${error.message}`);
    }
  }

  _what() {
    return `the payload of \`${this.type}\` ${this.aggId} version ${this.versionBig}`;
  }

  /** The event's place in its stream; grows within a batch. */
  get position() {
    return this._exact(0, 'position');
  }

  get positionBig() {
    return this._big(0);
  }

  /** The version of the aggregate instance after this event; 1 or more. */
  get version() {
    return this._exact(2, 'version');
  }

  get versionBig() {
    return this._big(2);
  }

  /** When it happened: microseconds since 1970. */
  get at() {
    const at = this.anyAt;
    if (typeof at === 'bigint') {
      throw Failure.reject(`\`at\` is ${at}, which a number does not hold; read \`atBig\``);
    }
    return at;
  }

  get atBig() {
    return BigInt.asIntN(64, this._big(4));
  }

  /** As a number where that is exact, as a BigInt otherwise. */
  get anyAt() {
    const { numbers } = this._batch;
    const at = (numbers[this._at + 5] | 0) * 4_294_967_296 + numbers[this._at + 4];
    return Number.isSafeInteger(at) ? at : narrow(this.atBig);
  }

  /** The same in RFC 3339. */
  get atText() {
    return formatTime(this.anyAt);
  }

  /** The version of the payload's schema; 1 or more. */
  get schemaVersion() {
    return this._batch.numbers[this._at + 6];
  }

  /** How many processors emitted on the way to this event; 0 for a published one. */
  get depth() {
    return this._batch.numbers[this._at + 7];
  }
}
