import { Driver, event } from '../millrace/testing/driver.mjs';
import { processor } from '../millrace/index.mjs';

/** A processor of one function: `handle`, and whatever else is given. */
export function of(handle, { manifest = {}, flush, snapshot } = {}) {
  class Probe {
    static manifest = { name: 'probe', version: '0.1.0', ...manifest };

    handle(of, out) {
      return handle.call(this, of, out);
    }
  }
  if (flush !== undefined) Probe.prototype.flush = flush;
  if (snapshot !== undefined) Probe.prototype.snapshot = snapshot;
  return processor(Probe);
}

/** What `handle` answers to each of these events. */
export function seen(events, look) {
  const found = [];
  new Driver(of((each) => void found.push(look(each)))).send(events);
  return found;
}

/** An event that says no more than its payload. */
export function payload(value, parts = {}) {
  return event('thing', 'a', 1, 'thing.changed', { ...parts, payload: value });
}
