// The guest of the conformance kit in JavaScript. What it does is told by the event's type; `tests/kit/README.md` has the
// rules, which its counterparts in other languages follow to the byte.

import {
  Failure, bool, bytes, config, float, int, json, log, processor, table, text, timestamp,
} from '../millrace/index.mjs';

const ROWS = table('rows', {
  columns: {
    event_id: text().filterable(),
    aggregate: text(),
    number: int().sortable(),
    happened_at: timestamp().filterable().sortable(),
    place: int(),
    schema: int(),
    depth: int(),
    scope: text().nullable(),
    kind: text().nullable(),
    cursor: text().nullable(),
    trace: text().nullable(),
    payload: bytes(),
    doc: json(),
    odd: bool(),
    bits: float(),
    nothing: text().nullable().filterable().sortable(),
  },
  versioned: true,
  windowRowsMax: 77,
});
const READS = table('reads', { columns: { value: bytes().nullable(), entries: int().nullable() } });

const OWN = 'k/2';
const OLDER = 'k/1';
const REFUSAL = 'the kit reads k/1, and k/2 of 16 bytes';
const BASIS = 2_166_136_261;
const PRIME = 16_777_619;

const encoder = new TextEncoder();
const scratch = new DataView(new ArrayBuffer(16));

function hashed(hash, of) {
  let found = hash;
  for (let index = 0; index < of.length; index += 1) found = Math.imul(found ^ of[index], PRIME);
  return found >>> 0;
}

/** The key that an event is about: with a schema version of 2, bytes that are no text. */
function keyOf(event) {
  const key = encoder.encode(event.aggId);
  return event.schemaVersion === 2 ? key.map((byte) => byte ^ 0x80) : key;
}

function floatOf(bits) {
  scratch.setBigUint64(0, bits);
  return scratch.getFloat64(0);
}

function emit(event, at, id, out) {
  const copy = {
    aggregate: 'kit',
    aggId: event.aggId,
    type: 'kit.copy',
    version: event.versionBig,
    at,
    schemaVersion: event.schemaVersion,
    id,
  };
  out.emit(copy, event.payload);
}

function append(event, type, error, out) {
  const payload = event.schemaVersion === 2 ? undefined : event.payload;
  out.append(event.aggId, event.aggregate, { type, error, payload, inReplyTo: event.depth });
}

function read(key, version, value, entries, out) {
  out.put(READS, key, version, { value: value ?? null, entries });
}

/** Asks for a row and an entry, which must be dropped with the event that fails. */
function failing(event, out) {
  read(event.aggId, event.versionBig, null, null, out);
  out.state.put(keyOf(event), event.payload);
  return event.payloadText;
}

const ACTS = {
  put(event, out) {
    const version = event.versionBig;
    out.put(ROWS, event.aggId, version, {
      event_id: event.id,
      aggregate: event.aggregate,
      number: version,
      happened_at: event.anyAt,
      place: event.positionBig,
      schema: event.schemaVersion,
      depth: event.depth,
      scope: event.scope,
      kind: event.kind,
      cursor: event.cursor,
      trace: event.traceparent,
      payload: event.payload,
      doc: event.payload,
      odd: (version & 1n) === 1n,
      bits: floatOf(event.positionBig),
      nothing: null,
    });
  },
  del: (event, out) => out.delete(ROWS, event.aggId, event.versionBig),
  emit: (event, out) => emit(event, event.anyAt, event.id, out),
  'emit.derived': (event, out) => emit(event, event.anyAt, '', out),
  'emit.now': (event, out) => emit(event, undefined, event.id, out),
  'append.data': (event, out) => append(event, 'data', undefined, out),
  'append.end': (event, out) => append(event, 'end', undefined, out),
  'append.error': (event, out) => append(event, 'error', event.cursor, out),
  many(event, out) {
    for (let number = 1; number <= event.schemaVersion; number += 1) read(event.aggId, number, null, number, out);
  },
  sput: (event, out) => out.state.put(keyOf(event), event.payload),
  'sput.until': (event, out) => out.state.put(keyOf(event), event.payload, { until: event.atBig + 1_000_000n }),
  sget: (event, out) => read(event.aggId, event.versionBig, out.state.get(keyOf(event)), null, out),
  sdel: (event, out) => out.state.delete(keyOf(event)),
  sscan(event, out) {
    let hash = BASIS;
    let entries = 0;
    const limit = event.depth === 0 ? Infinity : event.depth;
    for (const entry of out.state.scan(keyOf(event), { limit })) {
      hash = hashed(hashed(hash, entry.keyBytes), entry.value);
      entries += 1;
    }
    scratch.setUint32(0, hash, true);
    read(event.id, event.versionBig, new Uint8Array(scratch.buffer.slice(0, 4)), entries, out);
  },
  cfg(event, out) {
    const value = config.get(event.aggId);
    read(event.aggId, event.versionBig, value === undefined ? null : encoder.encode(value), null, out);
  },
  log: (event) => log.info(event.payloadText),
  retry(event, out) {
    throw Failure.retry(failing(event, out));
  },
  reject(event, out) {
    throw Failure.reject(failing(event, out));
  },
  fatal(event, out) {
    throw Failure.fatal(failing(event, out));
  },
};

/** Counts what it handled, and hashes the payloads. */
class Kit {
  static manifest = {
    name: 'kit-js',
    version: '1.2.3-kit.1',
    summary: 'Does what the type of an event says: é',
    stateContentType: OWN,
    orderingKey: { payloadField: 'key' },
    types: ['*'],
    aggregates: ['thing', 'other*'],
    tables: [ROWS, READS],
    flushIntervalMs: 1_000,
    changes: { thing: ['id', 'tenant', { field: 'owner', name: 'of-owner' }], kit: ['tenant'] },
  };

  #count = 0n;
  #hash = BASIS;

  constructor(_, saved) {
    if (saved === undefined) return;
    const { contentType, state } = saved;
    if (contentType === OLDER) {
      this.#count = BigInt(state.length);
    } else if (contentType === OWN && state.length === 16) {
      const view = new DataView(state.buffer, state.byteOffset, state.length);
      this.#count = view.getBigUint64(0, true);
      this.#hash = Number(view.getBigUint64(8, true));
    } else {
      throw new Error(REFUSAL);
    }
  }

  handle(event, out) {
    const { type } = event;
    if (Object.hasOwn(ACTS, type)) ACTS[type](event, out);
    this.#count += 1n;
    this.#hash = hashed(this.#hash, event.payload);
  }

  flush(reason, out) {
    const message = config.get('flush_fails');
    if (message !== undefined) throw Failure.retry(message);
    if (this.#hash % 2 === 0) return;
    const event = { aggregate: 'kit', aggId: 'flush', type: 'kit.flush', version: this.#count + 1n, at: this.#count };
    out.emit(event, reason);
  }

  snapshot() {
    const view = new DataView(new ArrayBuffer(16));
    view.setBigUint64(0, this.#count, true);
    view.setBigUint64(8, BigInt(this.#hash), true);
    return new Uint8Array(view.buffer);
  }
}

export const handler = processor(Kit);
