// Effects and rows as a test sees them.

import assert from 'node:assert/strict';

import { parse } from '../json.mjs';
import { formatTime, narrow } from '../time.mjs';

const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
const TYPE_OF_TAG = ['null', 'bool', 'bool', 'int', 'float', 'text', 'bytes', 'json', 'timestamp'];

export const textOf = (bytes) => decoder.decode(bytes);

/** The effects of a list, each with its parts cut out. */
export function effectsOf({ arena, records }) {
  assert.equal(records.length % 56, 0, 'records are whole');
  const view = new DataView(records.buffer, records.byteOffset, records.byteLength);
  const effects = [];
  for (let at = 0; at < records.length; at += 56) {
    const [kind, table, event, schemaVersion] = [0, 4, 8, 12].map((place) => view.getUint32(at + place, true));
    let start = view.getUint32(at + 32, true);
    const [key, aggregate, type, id, body] = [36, 40, 44, 48, 52].map((place) => {
      const bytes = view.getUint32(at + place, true);
      start += bytes;
      assert.ok(start <= arena.length, 'an effect lies within its arena');
      return arena.slice(start - bytes, start);
    });
    const version = view.getBigUint64(at + 16, true);
    const time = view.getBigInt64(at + 24, true);
    effects.push({ kind, table, event, schemaVersion, version, at: time, key, aggregate, type, id, body });
  }
  return effects;
}

/** A row's cells by column. A timestamp is RFC 3339 text; a whole number beyond 2^53 is a BigInt. */
export function readRow(table, body) {
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
  const row = {};
  let at = 0;
  const list = () => {
    const length = view.getUint32(at, true);
    at += 4 + length;
    return body.slice(at - length, at);
  };
  const eight = (read) => {
    at += 8;
    return read.call(view, at - 8, true);
  };
  const readers = [
    () => null,
    () => false,
    () => true,
    () => narrow(eight(view.getBigInt64)),
    () => eight(view.getFloat64),
    () => textOf(list()),
    list,
    () => parse(textOf(list())),
    () => formatTime(eight(view.getBigInt64)),
  ];
  for (const column of table.columns) {
    const tag = body[at];
    at += 1;
    const fits = tag === 0 ? column.nullable : TYPE_OF_TAG[tag] === column.type;
    assert.ok(fits, `column \`${column.name}\` of table \`${table.name}\` cannot hold a ${TYPE_OF_TAG[tag]}`);
    row[column.name] = readers[tag]();
  }
  assert.equal(at, body.length, `a row of table \`${table.name}\` has as many cells as columns`);
  return row;
}
