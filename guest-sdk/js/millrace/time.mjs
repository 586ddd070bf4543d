// Time as events and rows have it: microseconds since 1970, RFC 3339 in JSON. And the time that stands still while an
// event is handled.

import { Failure, shown } from './failure.mjs';

const DAY_SECONDS = 86_400;
const MICROS = 1_000_000;
const I64_MAX = (1n << 63n) - 1n;
const I64_MIN = -(1n << 63n);
const RFC_3339 =
  /^(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:([Zz])|([+-])(\d\d):(\d\d))$/;

/** What runs: the event that is handled, or the time in `flush`. */
export const clock = {
  event: null,
  /** In `flush`: the latest time that was handled; undefined before the first. */
  latest: undefined,
  isFlush: false,
  /** Which `flush` it is, so that chance begins anew in each. */
  flushes: 0,
  /** A call of the plugin's is under way. */
  inside: false,
  /** The clocks are the machine's own, as the grant `clock` has it. */
  isOwn: false,
};

/** Whether this plugin was built with the grant `clock`, so that its clocks are the machine's. In tests they never are. */
export function hasClock() {
  return clock.isOwn;
}

/** Microseconds since 1970: a BigInt only where a number cannot hold them. */
export function now() {
  if (clock.event !== null) return clock.event.anyAt;
  if (clock.latest !== undefined) return clock.latest;
  if (clock.isFlush) {
    throw Failure.retry('no event was handled since the start, so there is no time');
  }
  throw new Error('time comes with events: there is none outside of `handle` and `flush`');
}

/** The same as a number. */
export function nowMicros() {
  return Number(now());
}

/** Microseconds of a Date, exact also where a number does not hold them; NaN of one that is no time. */
export function dateMicros(date) {
  const millis = date.getTime();
  const found = millis * 1_000;
  return Number.isSafeInteger(found) || Number.isNaN(found) ? found : BigInt(millis) * 1_000n;
}

/** Microseconds of whatever stands for a time. */
export function micros(time, what) {
  let found = time;
  if (typeof time === 'string') found = parseTime(time);
  else if (time instanceof Date) found = dateMicros(time);
  const isBig = typeof found === 'bigint' && found >= I64_MIN && found <= I64_MAX;
  if (isBig || Number.isSafeInteger(found)) return found;
  const times = 'microseconds since 1970, a Date or RFC 3339';
  throw Failure.fatal(`${what} is ${shown(time)}, which is no time: ${times}`);
}

/** A whole number as a number where that is exact, otherwise as it came. */
export function narrow(big) {
  const number = Number(big);
  return Number.isSafeInteger(number) ? number : big;
}

function daysInMonth(year, month) {
  if (month === 2) return year % 4 === 0 && (year % 100 !== 0 || year % 400 === 0) ? 29 : 28;
  return [4, 6, 9, 11].includes(month) ? 30 : 31;
}

/** Days since 1970-01-01. A year begins in March here, so that the leap day is its last. */
function daysFromCivil(fullYear, month, day) {
  const year = month <= 2 ? fullYear - 1 : fullYear;
  const era = Math.floor(year / 400);
  const yearOfEra = year - era * 400;
  const dayOfYear = Math.floor((153 * ((month + 9) % 12) + 2) / 5) + day - 1;
  const leapDays = Math.floor(yearOfEra / 4) - Math.floor(yearOfEra / 100);
  return era * 146_097 + yearOfEra * 365 + leapDays + dayOfYear - 719_468;
}

function civilFromDays(since1970) {
  const days = since1970 + 719_468;
  const era = Math.floor(days / 146_097);
  const dayOfEra = days - era * 146_097;
  const leapDays = Math.floor(dayOfEra / 1_460) - Math.floor(dayOfEra / 36_524) + Math.floor(dayOfEra / 146_096);
  const yearOfEra = Math.floor((dayOfEra - leapDays) / 365);
  const dayOfYear = dayOfEra - (365 * yearOfEra + Math.floor(yearOfEra / 4) - Math.floor(yearOfEra / 100));
  const shifted = Math.floor((5 * dayOfYear + 2) / 153);
  const month = shifted < 10 ? shifted + 3 : shifted - 9;
  const year = yearOfEra + era * 400 + (month <= 2 ? 1 : 0);
  return [year, month, dayOfYear - Math.floor((153 * shifted + 2) / 5) + 1];
}

/**
 * Reads an RFC 3339 time; undefined where the text is none. What is finer than a microsecond is cut off; a leap second
 * counts as the one before.
 */
export function parseTime(text) {
  const parts = RFC_3339.exec(text);
  if (parts === null) return undefined;
  const [year, month, day, hour, minute, second] = parts.slice(1, 7).map(Number);
  const [fraction, , sign, offsetHours, offsetMinutes] = parts.slice(7);
  const isDate = month >= 1 && month <= 12 && day >= 1 && day <= daysInMonth(year, month);
  if (!isDate || hour > 23 || minute > 59 || second > 60) return undefined;
  let offset = 0;
  if (sign !== undefined) {
    if (Number(offsetHours) > 23 || Number(offsetMinutes) > 59) return undefined;
    offset = (Number(offsetHours) * 3_600 + Number(offsetMinutes) * 60) * (sign === '-' ? -1 : 1);
  }
  const micros = fraction === undefined ? 0 : Number(fraction.slice(0, 6).padEnd(6, '0'));
  const days = daysFromCivil(year, month, day);
  const seconds = days * DAY_SECONDS + hour * 3_600 + minute * 60 + Math.min(second, 59) - offset;
  const time = seconds * MICROS + micros;
  return Number.isSafeInteger(time) ? time : narrow(BigInt(seconds) * BigInt(MICROS) + BigInt(micros));
}

const TWO_DIGITS = Array.from({ length: 100 }, (_, number) => String(number).padStart(2, '0'));

// The date that was written last: times come in order, and many of one day.
let writtenDays = NaN;
let writtenDate = '';

function dateText(days) {
  if (days !== writtenDays) {
    const [year, month, day] = civilFromDays(days);
    const sign = year < 0 ? '-' : '';
    writtenDays = days;
    writtenDate = `${sign}${String(Math.abs(year)).padStart(4, '0')}-${TWO_DIGITS[month]}-${TWO_DIGITS[day]}T`;
  }
  return writtenDate;
}

function fractionText(fraction) {
  let text = String(fraction).padStart(6, '0');
  while (text.endsWith('0')) text = text.slice(0, -1);
  return `.${text}`;
}

/** RFC 3339 in UTC, with as many digits of the second as it needs. */
export function formatTime(time) {
  let seconds;
  let fraction;
  if (typeof time === 'bigint') {
    fraction = Number(((time % 1_000_000n) + 1_000_000n) % 1_000_000n);
    seconds = Number((time - BigInt(fraction)) / 1_000_000n);
  } else {
    seconds = Math.floor(time / MICROS);
    fraction = time - seconds * MICROS;
    if (fraction < 0) {
      // The quotient was rounded up to the next whole one.
      seconds -= 1;
      fraction += MICROS;
    }
  }
  const days = Math.floor(seconds / DAY_SECONDS);
  const ofDay = seconds - days * DAY_SECONDS;
  const hour = TWO_DIGITS[Math.floor(ofDay / 3_600)];
  const minute = TWO_DIGITS[Math.floor(ofDay / 60) % 60];
  const digits = fraction === 0 ? '' : fractionText(fraction);
  return `${dateText(days)}${hour}:${minute}:${TWO_DIGITS[ofDay % 60]}${digits}Z`;
}
