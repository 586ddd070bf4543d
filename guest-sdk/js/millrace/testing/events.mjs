// Events for tests, and batches of them in the layout they cross in.

import { readFileSync } from 'node:fs';

import { parse, stringify } from '../json.mjs';
import { dateMicros, parseTime } from '../time.mjs';
import { encode } from '../writer.mjs';

const TEXTS = ['id', 'aggregate', 'aggId', 'type', 'scope', 'kind', 'cursor', 'traceparent'];
const encoder = new TextEncoder();
const strictly = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** A time as microseconds in a BigInt: text in RFC 3339, a Date, a number or a BigInt. */
function time(at) {
  let micros = typeof at === 'string' ? parseTime(at) : at;
  if (at instanceof Date) micros = dateMicros(at);
  if (micros === undefined) throw new TypeError(`\`${at}\` is not an RFC 3339 time such as 2013-01-01T08:15:00Z`);
  return BigInt(micros);
}

/** An event, owned. `parts` has what else it says: `at`, `payload`, `id`, `scope` and so on. */
export class TestEvent {
  constructor(aggregate, aggId, version, type, parts = {}) {
    this.aggregate = aggregate;
    this.aggId = aggId;
    this.version = BigInt(version);
    this.type = type;
    this.id = parts.id ?? `${aggregate}/${aggId}/${version}`;
    this.at = time(parts.at ?? 0);
    this.schemaVersion = parts.schemaVersion ?? 1;
    this.depth = parts.depth ?? 0;
    for (const name of ['scope', 'kind', 'cursor', 'traceparent']) this[name] = parts[name] ?? '';
    const payload = parts.payload ?? null;
    /** JSON text. A Uint8Array is taken as it is. */
    this.payload = payload instanceof Uint8Array ? payload : encoder.encode(stringify(payload));
  }

  /**
   * An entry of a channel, as the host tells it: `data`, at this place, with this text or these bytes. Its number is its
   * place, and nobody executes the channel.
   */
  static entry(process, channel, position, sender, payload, parts) {
    const bytes = typeof payload === 'string' ? encode(payload) : payload;
    const members = { payload: Buffer.from(bytes).toString('base64') };
    try {
      members.text = strictly.decode(bytes);
    } catch {
      // What is no text has none.
    }
    return ofEntry('data', { process, channel, position, senderid: sender }, members, parts);
  }

  /** The end of a sender's half of a channel. */
  static entryEnd(process, channel, position, sender, parts) {
    return ofEntry('end', { process, channel, position, senderid: sender }, {}, parts);
  }

  /** The same half, ended by what went wrong. */
  static entryError(process, channel, position, sender, error, parts) {
    return ofEntry('error', { process, channel, position, senderid: sender }, { error }, parts);
  }

  /** The same entry of a channel that is executed by this party; a plugin is `plugin:<name>`. */
  executedBy(executor) {
    const parts = { ...this, payload: { ...this.json(), executorid: executor } };
    return new TestEvent(this.aggregate, this.aggId, this.version, this.type, parts);
  }

  /** The payload, read. */
  json() {
    return parse(new TextDecoder().decode(this.payload));
  }
}

function ofEntry(type, place, members, parts = {}) {
  const { process, channel, position } = place;
  const payload = { ...place, epoch: 0, sequence: position, type, payload: null, ...members };
  return new TestEvent('channel', `${process}_${channel}`, position, `channel.${type}`, { ...parts, payload });
}

export function event(aggregate, aggId, version, type, parts) {
  return new TestEvent(aggregate, aggId, version, type, parts);
}

/** Events of a file as `millrace publish` takes them: one JSON object a line. */
export function readEvents(file) {
  const lines = readFileSync(file, 'utf8').split('\n').filter((line) => line.trim() !== '');
  return lines.map((line) => {
    const { aggregate, agg_id: aggId, version, type, schema_version: schemaVersion, ...parts } = parse(line);
    return new TestEvent(aggregate, aggId, version, type, { ...parts, schemaVersion });
  });
}

/** Lays events out; the first gets this position, a BigInt. */
export function batchOf(events, firstPosition) {
  const parts = [];
  const records = new DataView(new ArrayBuffer(events.length * 72));
  let start = 0;
  events.forEach((of, index) => {
    let end = 0;
    const ends = [];
    for (const part of [...TEXTS.map((name) => encoder.encode(of[name])), of.payload]) {
      parts.push(part);
      end += part.length;
      ends.push(end);
    }
    const at = index * 72;
    records.setBigUint64(at, firstPosition + BigInt(index), true);
    records.setBigUint64(at + 8, of.version, true);
    records.setBigInt64(at + 16, of.at, true);
    [of.schemaVersion, of.depth, start, ...ends].forEach((number, place) => {
      records.setUint32(at + 24 + place * 4, number, true);
    });
    start += end;
  });
  const arena = new Uint8Array(start);
  let filled = 0;
  for (const part of parts) {
    arena.set(part, filled);
    filled += part.length;
  }
  return { arena, records: new Uint8Array(records.buffer) };
}
