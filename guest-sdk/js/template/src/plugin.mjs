// Counts the events of each order: one row an order, and an event of its own at every tenth.

import { int, processor, stableJson, table, timestamp } from '../millrace/index.mjs';

/** @import { Context, Effects, Event, Saved } from '../millrace/index.mjs' */

// What the saved state is. Another layout gets another name, and `saved.migrate` reads the former one.
const STATE = 'application/vnd.plugin-name.v1+json';

const COUNTS = table('plugin_name', {
  columns: { events: int().sortable(), last_at: timestamp().sortable() },
});

class Counter {
  static manifest = {
    name: 'plugin-name',
    version: '0.1.0',
    summary: 'Counts the events of each order',
    types: ['order.*'],
    stateContentType: STATE,
    tables: [COUNTS],
  };

  /**
   * @param {Context} _context
   * @param {Saved | undefined} saved
   */
  constructor(_context, saved) {
    /** @type {Map<string, number>} */
    this.events = new Map(Object.entries(saved?.json(STATE) ?? {}));
  }

  /**
   * @param {Event} event
   * @param {Effects} out
   */
  handle(event, out) {
    const key = event.aggId;
    const events = (this.events.get(key) ?? 0) + 1;
    // What can fail comes before the state changes.
    out.put(COUNTS, key, 0, { events, last_at: event.at });
    if (events % 10 === 0) {
      const tenth = { aggregate: 'plugin-name', aggId: key, type: 'plugin-name.tenth', version: events / 10, at: event.at };
      out.emit(tenth, { events });
    }
    this.events.set(key, events);
  }

  snapshot() {
    return stableJson(this.events);
  }
}

export const handler = processor(Counter);
