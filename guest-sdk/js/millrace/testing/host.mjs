// The host as a test sees it: keyed state, settings and messages in memory.

import { SCAN_BYTES_MAX, SCAN_ENTRIES_MAX } from '../limits.mjs';

const binary = (bytes) => Array.from(bytes, (byte) => String.fromCharCode(byte)).join('');

export class FakeHost {
  constructor(config, state) {
    this.config = new Map(Object.entries(config));
    /** By key, one letter a byte: value and expiry as they cross. */
    this.entries = new Map();
    for (const [key, value] of state) this.stateSet(bytesOf(key), bytesOf(value), 0n);
    this.messages = [];
  }

  stateSet(key, value, expiresAt) {
    this.entries.set(binary(key), { key, value, expiresAt });
  }

  stateDelete(key) {
    this.entries.delete(binary(key));
  }

  copy() {
    const copy = new FakeHost(Object.fromEntries(this.config), []);
    copy.entries = new Map(this.entries);
    return copy;
  }

  /** The functions that a processor may call. */
  functions() {
    return {
      configGet: (name) => this.config.get(name),
      log: (level, text) => {
        this.messages.push({ level, text });
      },
      stateGet: (key) => {
        const found = this.entries.get(binary(key));
        return found && { value: found.value.slice(), expiresAt: found.expiresAt };
      },
      stateScan: (prefix, after, limit) => this.scan(binary(prefix), after && binary(after), limit),
    };
  }

  scan(prefix, after, limit) {
    const keys = [...this.entries.keys()].filter((key) => key.startsWith(prefix) && (!after || key > after)).sort();
    const page = { entries: [], more: false };
    let bytes = 0;
    for (const name of keys) {
      const { key, value, expiresAt } = this.entries.get(name);
      const next = key.length + value.length;
      const isFull = page.entries.length >= Math.min(limit, SCAN_ENTRIES_MAX);
      page.more = isFull || (page.entries.length > 0 && bytes + next > SCAN_BYTES_MAX);
      if (page.more) break;
      bytes += next;
      page.entries.push({ key: key.slice(), value: value.slice(), expiresAt });
    }
    return page;
  }
}

export function bytesOf(value) {
  return value instanceof Uint8Array ? value : new TextEncoder().encode(value);
}
