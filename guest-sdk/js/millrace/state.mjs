// Keyed state: what a processor keeps by key, for what outgrows a snapshot.

import { Failure, shown } from './failure.mjs';
import { host } from './host.mjs';
import { parse, stringify } from './json.mjs';
import { SCAN_ENTRIES_MAX, STATE_EXPIRED_DELETES_MAX, STATE_KEY_BYTES_MAX, STATE_VALUE_BYTES_MAX } from './limits.mjs';
import { clock, micros, narrow, now } from './time.mjs';
import { encode, isBytes, ownBytes } from './writer.mjs';

const [STATE_PUT, STATE_DELETE] = [2, 3];
// The fewest entries that a scan asks the host for: expired ones do not count towards its limit.
const PAGE_ENTRIES_MIN = 8;
const I64_MAX = (1n << 63n) - 1n;
const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

function toBytes(value) {
  if (isBytes(value)) return value;
  if (typeof value === 'string') return encode(value);
  throw Failure.fatal(`${shown(value)} is neither text nor a Uint8Array`);
}

/** One letter a byte: compares and sorts as the bytes do. */
function binary(bytes) {
  return String.fromCharCode.apply(null, bytes);
}

function fromBinary(text) {
  return Uint8Array.from(text, (letter) => letter.charCodeAt(0));
}

function checkKey(bytes) {
  if (bytes === 0 || bytes > STATE_KEY_BYTES_MAX) {
    throw Failure.reject(
      `a state key has ${bytes} bytes; 1 to state_key_bytes_max = ${STATE_KEY_BYTES_MAX} are possible`,
    );
  }
}

function keyBytes(key) {
  const bytes = toBytes(key);
  checkKey(bytes.length);
  return bytes;
}

/** What a key is called in the map of what was written: ASCII text is one letter a byte as it is. */
function nameOf(key, bytes) {
  return typeof key === 'string' && key.length === bytes.length ? key : binary(bytes);
}

/** Appends text or bytes; answers how many bytes that are. */
function append(writer, value) {
  if (typeof value === 'string') return writer.text(value);
  if (isBytes(value)) return writer.bytes(value);
  throw Failure.fatal(`${shown(value)} is neither text nor a Uint8Array`);
}

function readJson(key, bytes) {
  try {
    return parse(decoder.decode(bytes));
  } catch (error) {
    const name = typeof key === 'string' ? key : binary(key);
    throw Failure.fatal(`the state under \`${name}\` cannot be read: ${error.message}`);
  }
}

/** An entry of the keyed state. */
export class Entry {
  constructor(keyInBytes, value, expiresAt) {
    /** Its bytes. */
    this.keyBytes = keyInBytes;
    /** A Uint8Array. */
    this.value = value;
    /** Microseconds since 1970; undefined for never. */
    this.expiresAt = expiresAt;
  }

  /** The key as text. */
  get key() {
    return decoder.decode(this.keyBytes);
  }

  text() {
    return decoder.decode(this.value);
  }

  json() {
    return readJson(this.keyBytes, this.value);
  }
}

function fromWire(expiresAt) {
  return expiresAt === 0n ? undefined : narrow(expiresAt);
}

/**
 * The task's keyed state, as the event at hand sees it: what is committed and what was written since, earlier in this
 * batch included. A write is an effect: it happens together with the event's position and rows, or not at all. Keys and
 * values are text or a Uint8Array.
 *
 * An entry may have an end. It is told by the events' own time: the entry is gone for an event whose `at` is not before
 * it, whatever the clock on the wall says. In `flush` the time is the latest `at` that this instance has handled, and
 * nothing is gone before it has handled any. What is found to be gone is deleted on the way.
 */
export class State {
  constructor(effects) {
    this._effects = effects;
    // What this batch has written: the host does not know of it yet. Null stands for a delete.
    this._written = new Map();
    this._sorted = null;
    this._expiredDeletes = 0;
  }

  /** The value under a key, a Uint8Array; undefined where there is none. */
  get(key) {
    this._effects._checkOpen('state.get');
    const bytes = keyBytes(key);
    const written = this._written.size > 0 ? this._written.get(nameOf(key, bytes)) : undefined;
    let found;
    if (written !== undefined) {
      if (written === null) return undefined;
      const { arena } = this._effects._writer;
      found = { value: arena.slice(written.start, written.end), expiresAt: written.expiresAt };
    } else {
      const stored = host.stateGet(bytes);
      if (stored === undefined || stored === null) return undefined;
      found = { value: ownBytes(stored.value), expiresAt: fromWire(stored.expiresAt) };
    }
    if (this._isGone(found.expiresAt)) {
      this._forget(bytes);
      return undefined;
    }
    return found.value;
  }

  /** The same as text. */
  getText(key) {
    const value = this.get(key);
    return value === undefined ? undefined : decoder.decode(value);
  }

  /** The same, read as JSON. What cannot be read is fatal: this processor wrote it. */
  getJson(key) {
    const value = this.get(key);
    return value === undefined ? undefined : readJson(key, value);
  }

  /**
   * Writes an entry. It stays until it is deleted, unless it ends: so many milliseconds after the time of the event at
   * hand (`ttlMs`), or at a time: microseconds since 1970, a Date or RFC 3339 (`until`).
   */
  put(key, value, end) {
    this._effects._checkOpen('state.put');
    const expiresAt = end === undefined ? undefined : this._expiry(end.ttlMs, end.until);
    const writer = this._effects._writer;
    const start = writer.end;
    try {
      const keyLength = append(writer, key);
      checkKey(keyLength);
      const length = append(writer, value);
      if (length > STATE_VALUE_BYTES_MAX) {
        throw Failure.reject(`a state value has ${length} bytes; state_value_bytes_max is ${STATE_VALUE_BYTES_MAX}`);
      }
      const name = nameOf(key, writer.arena.subarray(start, start + keyLength));
      this._note(name, { start: start + keyLength, end: writer.end, expiresAt });
      writer.record(STATE_PUT, 0, this._effects._event, 0, 0, expiresAt ?? 0, start, keyLength, 0, 0, 0, length);
    } catch (error) {
      writer.end = start;
      throw error;
    }
  }

  /** `put` as JSON. */
  putJson(key, value, end) {
    this.put(key, stringify(value), end);
  }

  /** Deletes an entry, whether there is one or not. */
  delete(key) {
    this._effects._checkOpen('state.delete');
    this._delete(keyBytes(key));
  }

  /**
   * The entries whose key begins with `prefix`, in the order of their keys' bytes; after the key `after` and `limit` at
   * most, where they are given. They come page by page. To change entries on the way, collect their keys first.
   */
  *scan(prefix = '', { after, limit = Infinity } = {}) {
    const begin = toBytes(prefix);
    const first = binary(begin);
    let asked = after === undefined ? undefined : toBytes(after);
    let last = asked === undefined ? undefined : binary(asked);
    let page = [];
    let next = 0;
    let more = true;
    for (let left = limit; left > 0; ) {
      this._effects._checkOpen('state.scan');
      while (more && next === page.length) {
        const wanted = Math.min(Math.max(left, PAGE_ENTRIES_MIN), SCAN_ENTRIES_MAX);
        const answer = host.stateScan(begin, asked, wanted);
        page = answer.entries;
        next = 0;
        more = answer.more && page.length > 0;
        if (page.length > 0) asked = page[page.length - 1].key;
      }
      const theirs = next < page.length ? binary(page[next].key) : undefined;
      const ours = this._firstWritten(first, last);
      if (theirs === undefined && ours === undefined) return;
      let entry;
      if (ours !== undefined && (theirs === undefined || ours <= theirs)) {
        if (theirs === ours) next += 1;
        last = ours;
        const written = this._written.get(ours);
        if (written === null) continue;
        const { arena } = this._effects._writer;
        entry = new Entry(fromBinary(ours), arena.slice(written.start, written.end), written.expiresAt);
      } else {
        const { key, value, expiresAt } = page[next];
        next += 1;
        last = theirs;
        entry = new Entry(ownBytes(key), ownBytes(value), fromWire(expiresAt));
      }
      if (this._isGone(entry.expiresAt)) {
        this._forget(entry.keyBytes);
        continue;
      }
      left -= 1;
      yield entry;
    }
  }

  _expiry(ttlMs, until) {
    let end;
    if (until !== undefined) {
      end = BigInt(micros(until, '`until` of a state entry'));
    } else if (ttlMs !== undefined) {
      if (!Number.isFinite(ttlMs)) throw Failure.fatal(`\`ttlMs\` is ${shown(ttlMs)}, which is no number of milliseconds`);
      if (clock.event === null && clock.latest === undefined) {
        throw Failure.retry('no event was handled since the start, so there is no time to count from');
      }
      end = BigInt(now()) + BigInt(Math.round(ttlMs * 1_000));
    } else {
      return undefined;
    }
    // Zero stands for never, and a time before 1970 counts as 1970.
    return narrow(end < 1n ? 1n : end > I64_MAX ? I64_MAX : end);
  }

  _isGone(expiresAt) {
    if (expiresAt === undefined) return false;
    const time = clock.event !== null ? clock.event.anyAt : clock.latest;
    return time !== undefined && time >= expiresAt;
  }

  /** Deletes what was found to be gone, as far as this event's share goes: the rest is as gone for whoever looks next. */
  _forget(bytes) {
    if (this._expiredDeletes < STATE_EXPIRED_DELETES_MAX) {
      this._expiredDeletes += 1;
      this._delete(bytes);
    }
  }

  _delete(bytes) {
    const writer = this._effects._writer;
    const start = writer.end;
    writer.bytes(bytes);
    this._note(binary(bytes), null);
    writer.record(STATE_DELETE, 0, this._effects._event, 0, 0, 0, start, bytes.length, 0, 0, 0, 0);
  }

  _note(name, place) {
    if (this._sorted !== null && !this._written.has(name)) this._sorted = null;
    this._written.set(name, place);
  }

  /** The first key of this batch that begins so and comes after another. */
  _firstWritten(prefix, after) {
    if (this._written.size === 0) return undefined;
    this._sorted ??= [...this._written.keys()].sort();
    const from = after === undefined || after < prefix ? prefix : after;
    const isBefore = (key) => key < from || key === after;
    let [low, high] = [0, this._sorted.length];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (isBefore(this._sorted[middle])) low = middle + 1;
      else high = middle;
    }
    const key = this._sorted[low];
    return key?.startsWith(prefix) ? key : undefined;
  }

  _forgetBatch() {
    if (this._written.size === 0) return;
    this._written.clear();
    this._sorted = null;
  }
}

/** Reading the keyed state while loading. */
export const storedState = {
  get(key) {
    const found = host.stateGet(keyBytes(key));
    return found === undefined || found === null ? undefined : ownBytes(found.value);
  },

  *scan(prefix = '', { after } = {}) {
    let asked = after === undefined ? undefined : toBytes(after);
    for (;;) {
      const page = host.stateScan(toBytes(prefix), asked, SCAN_ENTRIES_MAX);
      for (const { key, value, expiresAt } of page.entries) {
        yield new Entry(ownBytes(key), ownBytes(value), fromWire(expiresAt));
      }
      if (!page.more || page.entries.length === 0) return;
      asked = page.entries[page.entries.length - 1].key;
    }
  },
};
