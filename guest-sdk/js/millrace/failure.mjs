// Why an event could not be handled, and what the host should do about it.

import { FAILURE_MESSAGE_BYTES_MAX } from './limits.mjs';

const encoder = new TextEncoder();

/** An event could not be handled. Throw one; anything else that is thrown ends the instance. */
export class Failure extends Error {
  constructor(kind, message) {
    super(message);
    this.name = 'Failure';
    this.kind = kind;
  }

  /** Transient: the host tries again later. */
  static retry(message) {
    return new Failure('retry', message);
  }

  /** The event itself is bad: it becomes a dead letter, and work goes on after it. */
  static reject(message) {
    return new Failure('reject', message);
  }

  /** The processor cannot go on: the host stops it. */
  static fatal(message) {
    return new Failure('fatal', message);
  }
}

/** The failure as it crosses. */
export function failureToWire(failure, index) {
  let message = String(failure.message).toWellFormed();
  if (message.length * 3 > FAILURE_MESSAGE_BYTES_MAX) {
    const { read } = encoder.encodeInto(message, new Uint8Array(FAILURE_MESSAGE_BYTES_MAX));
    message = message.slice(0, read);
  }
  return { index, kind: failure.kind, message };
}

/** A value in a message: short, and on one line. */
export function shown(value) {
  let text;
  try {
    text = typeof value === 'bigint' ? `${value}n` : typeof value === 'string' ? JSON.stringify(value) : String(value);
  } catch {
    // An object without a prototype has no text.
    text = typeof value;
  }
  return text.length > 80 ? `${text.slice(0, 80)}…` : text;
}
