// Reading what others have appended to channels of processes.
//
// A channel that was made with `events` is an input stream: each of its entries is an event of the aggregate `channel`
// with the type `channel.data`, `channel.end` or `channel.error`, and `ChannelEntry` is its payload.

import { Failure, shown } from './failure.mjs';

const TYPES = ['data', 'end', 'error'];
const EPOCH_MAX = 2 ** 32 - 1;

const isText = (value) => typeof value === 'string';
const isCount = (value) => (typeof value === 'bigint' || Number.isSafeInteger(value)) && value >= 0;

/** An entry as an event tells it: `event.payloadAs(ChannelEntry)`. */
export class ChannelEntry {
  constructor(payload) {
    if (payload === null || typeof payload !== 'object') throw new TypeError(`${shown(payload)} is no entry`);
    this.process = member(payload, 'process', isText);
    this.channel = member(payload, 'channel', isText);
    /** Its place in the channel, from 1 on without holes. */
    this.position = member(payload, 'position', isCount);
    this.epoch = member(payload, 'epoch', (value) => isCount(value) && value <= EPOCH_MAX);
    /** Counted by its sender. */
    this.sequence = member(payload, 'sequence', isCount);
    this.inReplyTo = optional(payload, 'inreplyto', isCount);
    this.sender = member(payload, 'senderid', isText);
    /** Who executed the channel when this was appended; a plugin is `plugin:<name>`. */
    this.executor = optional(payload, 'executorid', isText);
    this.entryType = member(payload, 'type', (value) => TYPES.includes(value));
    /** Base64; `bytes` has what it stands for. */
    this.payload = optional(payload, 'payload', isText);
    /** The payload, where it is text. */
    this.text = optional(payload, 'text', isText);
    this.error = optional(payload, 'error', isText);
  }

  /** The payload; undefined where the entry has none. */
  bytes() {
    if (this.payload === undefined) return undefined;
    let letters;
    try {
      letters = atob(this.payload);
    } catch {
      throw Failure.reject(`the payload of entry ${this.position} of \`${this.channel}\` is not base64`);
    }
    const bytes = new Uint8Array(letters.length);
    for (let at = 0; at < bytes.length; at += 1) bytes[at] = letters.charCodeAt(at);
    return bytes;
  }
}

function member(payload, name, fits) {
  const value = payload[name];
  if (!fits(value)) throw new TypeError(`\`${name}\` of an entry is ${shown(value)}`);
  return value;
}

function optional(payload, name, fits) {
  return payload[name] === undefined || payload[name] === null ? undefined : member(payload, name, fits);
}
