// What a processor asks the host to do. It all happens together with the event's position, or not at all.

import { writeRow } from './cells.mjs';
import { Failure, shown } from './failure.mjs';
import { log } from './host.mjs';
import { stringify } from './json.mjs';
import {
  CHANNEL_ERROR_BYTES_MAX,
  CHANNEL_NAME_BYTES_MAX,
  CHANNEL_PAYLOAD_BYTES_MAX,
  EVENT_PAYLOAD_BYTES_MAX,
  NAME_BYTES_MAX,
  PROCESS_NAME_BYTES_MAX,
  ROW_BYTES_MAX,
  ROW_KEY_BYTES_MAX,
} from './limits.mjs';
import { State } from './state.mjs';
import { micros, now } from './time.mjs';
import { Writer, isBytes } from './writer.mjs';

// Kinds of effects, as numbers.
export const [PUT, DELETE, STATE_PUT, STATE_DELETE, EMIT, APPEND] = [0, 1, 2, 3, 4, 5];

// Types of events that only the host writes.
const HOST_EVENT_TYPES = ['channel.data', 'channel.end', 'channel.error'];
const ENTRY_TYPES = ['data', 'end', 'error'];
// An entry of which nothing is said.
const NO_PARTS = Object.freeze({});
const CONTROL = /[\x00-\x1f\x7f]/;
const I64_MAX = (1n << 63n) - 1n;

function noTable(table) {
  if (table?.columns) return Failure.fatal(`the manifest does not name table \`${table.name}\``);
  return Failure.fatal(`a table of the manifest is wanted, and not ${shown(table)}`);
}

function isVersion(version, least) {
  return typeof version === 'number'
    ? Number.isSafeInteger(version) && version >= least
    : typeof version === 'bigint' && version >= least && version <= I64_MAX;
}

function isU32(number) {
  return Number.isInteger(number) && number >= 1 && number <= 0xffff_ffff;
}

function checkBytes(what, bytes, least, most) {
  if (bytes < least || bytes > most) {
    throw Failure.reject(`the ${what} has ${bytes} bytes; ${least} to ${most} are possible`);
  }
  return bytes;
}

/** Takes what a processor asks for. */
export class Effects {
  constructor(tables) {
    this._tables = tables;
    this._writer = new Writer();
    this._event = 0;
    this._state = new State(this);
    this._markEnd = 0;
    this._markRecords = 0;
    // Whether a call of the plugin's is under way: what is asked for later has no event that it could belong to.
    this._isOpen = false;
    // What was asked for too late. It ends the next call, which is when somebody may be told.
    this._late = undefined;
  }

  /** The task's keyed state. */
  get state() {
    return this._state;
  }

  /** Bytes that have been asked for so far in this batch. */
  get bytes() {
    return this._writer.end;
  }

  /** Effects that have been asked for so far in this batch. */
  get length() {
    return this._writer.records;
  }

  /**
   * Writes a row over the one with the same key. `row` has the table's columns as members; `version` is 1 or more in a
   * versioned table, and 0 will do in another. A row that does not fit the declaration is fatal; a value that its column
   * cannot hold is rejected.
   */
  put(table, key, version, row) {
    const place = this._rowTarget('put', table, key, version);
    const writer = this._writer;
    const start = writer.end;
    try {
      const keyBytes = this._rowKey(table, key);
      const body = writer.end;
      writeRow(writer, table, key, row);
      const bytes = writer.end - body;
      if (bytes > ROW_BYTES_MAX) {
        throw Failure.reject(
          `row \`${key}\` of table \`${table.name}\` has ${bytes} bytes; row_bytes_max is ${ROW_BYTES_MAX}`,
        );
      }
      writer.record(PUT, place, this._event, 0, version, 0, start, keyBytes, 0, 0, 0, bytes);
    } catch (error) {
      writer.end = start;
      throw error;
    }
  }

  /**
   * Deletes a row. In a versioned table the delete is remembered for a while, so that a late older write does not bring
   * the row back.
   */
  delete(table, key, version) {
    const place = this._rowTarget('delete', table, key, version);
    const writer = this._writer;
    const start = writer.end;
    const keyBytes = this._rowKey(table, key);
    writer.record(DELETE, place, this._event, 0, version, 0, start, keyBytes, 0, 0, 0, 0);
  }

  /**
   * Appends an event to the stream, with this payload: anything that can be written as JSON, or a Uint8Array of JSON
   * text. Its scope is that of the event that is handled, and so is its time without an `at`. Without an `id`, one is derived
   * from the other parts. A member that is null counts as absent.
   */
  emit({ aggregate, aggId, type, version, at, schemaVersion, id }, payload) {
    if (!this._isOpen) this._checkOpen('emit');
    version ??= 1;
    schemaVersion ??= 1;
    id ??= '';
    const names = typeof aggregate === 'string' && typeof aggId === 'string' && typeof type === 'string';
    if (!names || aggregate === '' || aggId === '' || type === '') {
      throw Failure.fatal('an emitted event has an `aggregate`, an `aggId` and a `type`, and none of them is empty');
    }
    if (HOST_EVENT_TYPES.includes(type)) {
      throw Failure.fatal(`\`${type}\` is what the host says of entries of channels; append to a channel instead`);
    }
    if (!isVersion(version, 1) || !isU32(schemaVersion)) {
      throw Failure.fatal(
        `an emitted \`${type}\` has version ${shown(version)} and schema version ${shown(schemaVersion)}; both count from 1`,
      );
    }
    const when = at ?? now();
    const time = Number.isSafeInteger(when) ? when : micros(when, `\`at\` of an emitted \`${type}\``);
    const writer = this._writer;
    const start = writer.end;
    try {
      const key = this._name('aggId', aggId);
      const aggregateBytes = this._name('aggregate', aggregate);
      const typeBytes = this._name('type', type);
      const idBytes = this._name('id', id);
      const body = isBytes(payload) ? writer.bytes(payload) : writer.text(stringify(payload));
      if (body > EVENT_PAYLOAD_BYTES_MAX) {
        throw Failure.reject(
          `the payload of \`${type}\` has ${body} bytes; event_payload_bytes_max is ${EVENT_PAYLOAD_BYTES_MAX}`,
        );
      }
      const { _event } = this;
      writer.record(EMIT, 0, _event, schemaVersion, version, time, start, key, aggregateBytes, typeBytes, idBytes, body);
    } catch (error) {
      writer.end = start;
      throw error;
    }
  }

  /**
   * Appends an entry to a channel of a process, as `plugin:<name>`: the process must have been assigned to the plugin, and
   * its operator must have granted it the channel. The entry gets the plugin's next number there. `payload` is a
   * Uint8Array or text, `error` goes with the type `error` only, `inReplyTo` is the number of somebody else's entry. A
   * member that is null counts as absent.
   *
   * Where nobody takes the entry any more it is left out and counted. Where the channel is full or nobody is assigned yet,
   * the event is tried again as after a retry. Any other refusal makes the event a dead letter.
   */
  append(process, channel, entry) {
    if (!this._isOpen) this._checkOpen('append');
    entry ??= NO_PARTS;
    if (typeof entry !== 'object' || isBytes(entry)) {
      throw Failure.fatal(`an entry is an object such as \`{ payload }\`, not ${shown(entry)}`);
    }
    const payload = entry.payload ?? undefined;
    const type = entry.type ?? 'data';
    const error = entry.error ?? '';
    const inReplyTo = entry.inReplyTo ?? 0;
    if (!ENTRY_TYPES.includes(type)) {
      throw Failure.fatal(`${shown(type)} is no type of an entry; there are ${ENTRY_TYPES.join(', ')}`);
    }
    if (error !== '' && type !== 'error') {
      throw Failure.fatal('the text of an error goes with an entry of the type `error` only');
    }
    if (!isVersion(inReplyTo, 0)) {
      throw Failure.fatal(`\`inReplyTo\` is ${shown(inReplyTo)}, which is no number of an entry`);
    }
    const writer = this._writer;
    const start = writer.end;
    try {
      const key = this._text('name of the process', process, 1, PROCESS_NAME_BYTES_MAX);
      const channelBytes = this._text('name of the channel', channel, 1, CHANNEL_NAME_BYTES_MAX);
      const typeBytes = writer.text(type);
      const errorBytes = this._text('text of the error', error, 0, CHANNEL_ERROR_BYTES_MAX);
      const body = payload === undefined ? 0 : this._payload(payload);
      const hasPayload = payload === undefined ? 0 : 1;
      const { _event } = this;
      writer.record(APPEND, 0, _event, hasPayload, inReplyTo, 0, start, key, channelBytes, typeBytes, errorBytes, body);
    } catch (problem) {
      writer.end = start;
      throw problem;
    }
  }

  /** Writes text and checks how many bytes that are. */
  _text(what, text, least, most) {
    if (typeof text !== 'string') throw Failure.fatal(`the ${what} is ${shown(text)} and not text`);
    return checkBytes(what, this._writer.text(text), least, most);
  }

  /** Writes an entry's payload. */
  _payload(value) {
    const what = 'payload of the entry';
    const isText = typeof value === 'string';
    if (!isText && !isBytes(value)) {
      throw Failure.fatal(`the ${what} is ${shown(value)}, which is neither text nor a Uint8Array`);
    }
    const bytes = isText ? this._writer.text(value) : this._writer.bytes(value);
    return checkBytes(what, bytes, 0, CHANNEL_PAYLOAD_BYTES_MAX);
  }

  _name(field, text) {
    if (typeof text !== 'string') throw Failure.fatal(`\`${field}\` is ${shown(text)} and not text`);
    const bytes = this._writer.text(text);
    if (bytes > NAME_BYTES_MAX || (bytes > 0 && CONTROL.test(text))) {
      throw Failure.reject(
        `\`${field}\` of an emitted event has ${bytes} bytes or holds a control character; ` +
          `name_bytes_max is ${NAME_BYTES_MAX}`,
      );
    }
    return bytes;
  }

  _rowKey(table, key) {
    const writer = this._writer;
    const start = writer.end;
    const bytes = writer.text(key);
    if (bytes === 0 || bytes > ROW_KEY_BYTES_MAX) {
      writer.end = start;
      throw Failure.reject(
        `a key of table \`${table.name}\` has ${bytes} bytes; 1 to row_key_bytes_max = ${ROW_KEY_BYTES_MAX} are possible`,
      );
    }
    return bytes;
  }

  /** Refuses what comes after its call: from a timer, from behind an `await`, or from whoever kept `out`. */
  _checkOpen(what) {
    if (this._isOpen) return;
    const message = `\`${what}\` was called after \`handle\` or \`flush\` had answered: a processor waits for nothing, and what it asks for later is lost`;
    this._late ??= Failure.fatal(message);
    log.error(message);
    throw Failure.fatal(message);
  }

  /** The table's place in the manifest, after a check of key and version. */
  _rowTarget(what, table, key, version) {
    if (!this._isOpen) this._checkOpen(what);
    const place = this._tables.indexOf(table);
    if (place < 0) throw noTable(table);
    if (typeof key !== 'string') throw Failure.fatal(`table \`${table.name}\`: a key is text, not ${shown(key)}`);
    if (!isVersion(version, table.versioned ? 1 : 0)) {
      const least = table.versioned ? 1 : 0;
      throw Failure.fatal(`table \`${table.name}\`: ${shown(version)} is no version; ${least} to ${I64_MAX} are`);
    }
    return place;
  }

  /** Everything from here on is for this event. */
  _begin(event) {
    this._event = event;
    this._isOpen = true;
    this._markEnd = this._writer.end;
    this._markRecords = this._writer.records;
    this._state._expiredDeletes = 0;
  }

  /** Drops what the running event asked for. What it wrote to the keyed state is not wound back: the batch ends here. */
  _drop() {
    this._writer.truncate(this._markEnd, this._markRecords);
  }

  /** Hands the effects over. */
  _finish() {
    this._isOpen = false;
    this._state._forgetBatch();
    return this._writer.finish();
  }
}
