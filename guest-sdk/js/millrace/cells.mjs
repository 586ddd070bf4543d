// Rows: from the members of an object to the cells of a table, in the declared order.

import { Failure, shown } from './failure.mjs';
import { stringify } from './json.mjs';
import { dateMicros, parseTime } from './time.mjs';
import { isBytes } from './writer.mjs';

const [NULL, FALSE, TRUE, INT, FLOAT, TEXT, BYTES, JSON_TEXT, TIMESTAMP] = [0, 1, 2, 3, 4, 5, 6, 7, 8];
// Codes of types of columns, see `manifest.mjs`.
const TEXT_COLUMN = 0;
const INT_COLUMN = 1;
const INT_MIN = -(1n << 63n);
const INT_MAX = (1n << 63n) - 1n;

/** Writes a row. What does not fit the declaration is fatal; a value that its column cannot hold is rejected. */
export function writeRow(out, table, key, row) {
  if (row === null || typeof row !== 'object') {
    throw Failure.fatal(`table \`${table.name}\`: a row is an object with the columns as members`);
  }
  const { columns } = table;
  const { length } = columns;
  let found = 0;
  for (let index = 0; index < length; index += 1) {
    const column = columns[index];
    const value = row[column.name];
    if (value === undefined) {
      if (!column.nullable) throw shape(table, `the row has no \`${column.name}\`, and that column is not nullable`);
      out.byte(NULL);
      continue;
    }
    found += 1;
    // The two that are most common go first, and without another call.
    if (column.code === TEXT_COLUMN && typeof value === 'string') out.textCell(TEXT, value);
    else if (column.code === INT_COLUMN && Number.isSafeInteger(value)) out.wholeCell(INT, value);
    else writeCell(out, table, key, column, value);
  }
  const members = Object.keys(row);
  if (members.length !== found) checkMembers(table, row, members);
}

function checkMembers(table, row, members) {
  const names = table.columns.map((column) => column.name);
  const unknown = members.find((member) => !names.includes(member) && row[member] !== undefined);
  if (unknown !== undefined) throw shape(table, `it has no column \`${unknown}\`; it has ${names.join(', ')}`);
}

function shape(table, problem) {
  return Failure.fatal(`table \`${table.name}\`: ${problem}`);
}

function unfit(table, column, value) {
  const what = typeof value === 'object' ? 'an object' : `${typeof value} ${shown(value)}`;
  return shape(table, `column \`${column.name}\` is ${column.type} and cannot hold ${what}`);
}

function outOfRange(table, key, column, value, why) {
  return Failure.reject(`row \`${key}\` of table \`${table.name}\`: \`${column.name}\` is ${shown(value)}, ${why}`);
}

function writeCell(out, table, key, column, value) {
  if (value === null) {
    if (column.type === 'json' && !column.nullable) out.textCell(JSON_TEXT, 'null');
    else if (column.nullable) out.byte(NULL);
    else throw outOfRange(table, key, column, value, 'and the column is not nullable');
    return;
  }
  switch (column.type) {
    case 'text':
      if (typeof value !== 'string') throw unfit(table, column, value);
      out.textCell(TEXT, value);
      break;
    case 'int':
      writeWhole(out, INT, table, key, column, value);
      break;
    case 'timestamp':
      writeTime(out, table, key, column, value);
      break;
    case 'bool':
      if (typeof value !== 'boolean') throw unfit(table, column, value);
      out.byte(value ? TRUE : FALSE);
      break;
    case 'float':
      writeFloat(out, table, key, column, value);
      break;
    case 'bytes':
      if (!isBytes(value)) throw unfit(table, column, value);
      out.bytesCell(BYTES, value);
      break;
    default:
      if (isBytes(value)) out.bytesCell(JSON_TEXT, value);
      else out.textCell(JSON_TEXT, stringify(value));
  }
}

function writeWhole(out, tag, table, key, column, value) {
  if (typeof value === 'number') {
    if (!Number.isSafeInteger(value)) {
      const problem = `${value} is no whole number that is exact; a BigInt is`;
      throw shape(table, `column \`${column.name}\` is ${column.type}, and ${problem}`);
    }
    out.wholeCell(tag, value);
  } else if (typeof value === 'bigint') {
    if (value < INT_MIN || value > INT_MAX) {
      throw outOfRange(table, key, column, value, 'which a signed 64-bit number does not hold');
    }
    out.bigCell(tag, value);
  } else {
    throw unfit(table, column, value);
  }
}

function writeTime(out, table, key, column, value) {
  if (typeof value === 'string') {
    const time = parseTime(value);
    if (time === undefined) throw outOfRange(table, key, column, value, 'which is not an RFC 3339 time');
    writeWhole(out, TIMESTAMP, table, key, column, time);
  } else if (value instanceof Date) {
    const time = dateMicros(value);
    if (Number.isNaN(time)) throw outOfRange(table, key, column, value, 'which is no time');
    writeWhole(out, TIMESTAMP, table, key, column, time);
  } else {
    writeWhole(out, TIMESTAMP, table, key, column, value);
  }
}

function writeFloat(out, table, key, column, value) {
  const number = typeof value === 'bigint' && BigInt(Number(value)) === value ? Number(value) : value;
  if (typeof number === 'bigint') throw outOfRange(table, key, column, value, 'which a float does not hold exactly');
  if (typeof number !== 'number') throw unfit(table, column, value);
  if (!Number.isFinite(number)) throw outOfRange(table, key, column, value, 'which is not finite');
  out.floatCell(FLOAT, number);
}
