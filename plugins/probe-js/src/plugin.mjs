// Shows what a plugin in JavaScript sees of the world: the time, chance, the console, the host's bytes, and how its own mistakes are told.

import { ChannelEntry, bytes, processor, table, text, timestamp } from '../millrace/index.mjs';

const PROBED = table('probed_js', { columns: { at: timestamp(), now: timestamp(), chance: text(), payload: bytes() } });

/** A mistake as authors make them: what is not there has no members. */
function mistake(value) {
  return value.missing.member;
}

class Probe {
  static manifest = { name: 'probe-js', version: '0.1.0', tables: [PROBED] };

  handle(event, out) {
    if (event.type === 'mistake') mistake(event.json());
    if (event.type === 'loud') console.warn('loud', event.aggId);
    const chance = `${Math.random()} ${crypto.randomUUID()}`;
    const payload = event.type === 'entry' ? event.payloadAs(ChannelEntry).bytes() : event.payload;
    out.put(PROBED, event.aggId, 0, { at: event.at, now: new Date(), chance, payload });
  }
}

export const handler = processor(Probe);
