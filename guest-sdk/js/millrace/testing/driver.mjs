// The driver: feeds a processor and keeps what it asks for, as the host would.
//
//   const driver = new Driver(handler);
//   driver.send([event('order', 'a', 1, 'order.placed', { at: '2013-01-01T08:00:00Z', payload: { cents: 5 } })]);
//   assert.equal(driver.row('orders', 'a').cents, 5);

import assert from 'node:assert/strict';

import { install } from '../globals.mjs';
import { provide } from '../host.mjs';
import { CLASS, Instance } from '../processor.mjs';
import { narrow } from '../time.mjs';
import { TestEvent, batchOf } from './events.mjs';
import { FakeHost } from './host.mjs';
import { effectsOf, readRow, textOf } from './rows.mjs';

export { TestEvent, event, readEvents } from './events.mjs';

install({ outside: 'real', clocks: true, chances: true });

const CONTEXT = { tenant: 'test', lane: 0, lanes: 1 };

/** An event that a processor did not handle. What came after it was not handed to it. */
export class Failed extends Error {
  constructor(index, failure) {
    super(`event ${index}: ${failure.kind}: ${failure.message}`);
    this.name = 'Failed';
    /** Its index in what was sent. */
    this.index = index;
    this.kind = failure.kind;
    this.failure = failure;
  }
}

/** Runs one task of a processor. */
export class Driver {
  /**
   * A task at its very start, unless `saved` and `state` say otherwise; `config` has the operator's settings. Throws what
   * the processor refused with.
   */
  constructor(handler, { config = {}, saved, state = [], context = CONTEXT } = {}) {
    this._Class = handler[CLASS];
    this._manifest = handler.describe();
    this._context = context;
    this._host = new FakeHost(config, state);
    this._instance = this._load(this._host, saved);
    this._tables = new Map(this._manifest.tables.map((table) => [table.name, { rows: new Map(), deleted: new Map() }]));
    this._position = 0n;
    /** What was emitted, in order, and ready to be sent to another driver. */
    this.emitted = [];
    /** What was appended to channels, in order. Every channel takes it here. */
    this.appended = [];
    /** Writes to versioned tables that were left out as stale. */
    this.stale = 0;
  }

  _load(host, saved) {
    return this._with(host, () => new Instance(this._Class, this._context, saved));
  }

  _with(host, call) {
    provide(host.functions());
    return call();
  }

  /**
   * Hands events over in one batch, whatever the subscription says. After a failure, which it throws, the effects and the
   * state of the events before it stand.
   */
  send(events) {
    const before = this.saved();
    const batch = batchOf(events, this._position + 1n);
    const host = this._host.copy();
    const outcome = this._with(this._host, () => this._instance.handle(batch.arena, batch.records));
    const { handled, effects, failure } = outcome;
    if (failure !== undefined) {
      assert.equal(failure.index, handled, 'a failure is about the event after the handled ones');
      this._checkUnchanged(host, before, events.slice(0, handled));
    } else {
      assert.equal(handled, events.length, 'without a failure all events are handled');
    }
    this._position += BigInt(handled);
    this._apply(effects, events);
    if (failure !== undefined) throw new Failed(handled, failure);
  }

  /** The same, one by one, each in a batch of its own. */
  sendSingly(events) {
    events.forEach((of, index) => {
      try {
        this.send([of]);
      } catch (error) {
        if (!(error instanceof Failed)) throw error;
        throw new Failed(index, error.failure);
      }
    });
  }

  /**
   * A processor that started from the state before the batch and saw only the events before the failing one must be where
   * this one is.
   */
  _checkUnchanged(host, before, events) {
    if (before === undefined) return;
    const other = this._load(host, before);
    const batch = batchOf(events, this._position + 1n);
    const { failure } = this._with(host, () => other.handle(batch.arena, batch.records));
    assert.equal(failure, undefined, 'the events before the failing one are handled again');
    assert.equal(
      textOrBytes(other.snapshot()),
      textOrBytes(this._instance.snapshot()),
      'the event that failed has changed the state; leave it as it was when you throw',
    );
  }

  /** Calls `flush`. A failure is thrown. */
  flush(reason = 'tick') {
    let effects;
    try {
      effects = this._with(this._host, () => this._instance.flush(reason));
    } catch (error) {
      throw error instanceof Error ? error : new Failed(0, error);
    }
    this._apply(effects, []);
  }

  /** Ends the instance and starts another from its snapshot, as after a crash. */
  restart() {
    const saved = this.saved();
    this._instance = this._load(this._host, saved);
    assert.deepEqual(this.saved(), saved, 'a snapshot that was loaded gives another snapshot');
  }

  /** What the processor would restart from; undefined for one that declares no state. */
  saved() {
    const { stateContentType: contentType } = this._manifest;
    if (contentType === undefined) return undefined;
    const [state, again] = this._with(this._host, () => [this._instance.snapshot(), this._instance.snapshot()]);
    assert.deepEqual(again, state, 'two snapshots in a row differ');
    return { contentType, state };
  }

  /** The rows of a table by key, an object; in the order of the keys. */
  rows(table) {
    const of = this._tables.get(table);
    assert.ok(of !== undefined, `the manifest has no table \`${table}\``);
    const entries = [...of.rows].sort(([a], [b]) => (a < b ? -1 : 1));
    return Object.fromEntries(entries.map(([key, { row }]) => [key, row]));
  }

  /** One row; undefined where there is none. */
  row(table, key) {
    return this._tables.get(table)?.rows.get(key)?.row;
  }

  /** A row's version. */
  version(table, key) {
    const version = this._tables.get(table)?.rows.get(key)?.version;
    return version === undefined ? undefined : narrow(version);
  }

  /** The keyed state: text by key, entries included that are gone by now and that no event has asked for. */
  state() {
    const entries = [...this._host.entries.values()].map(({ key, value }) => [textOf(key), textOf(value)]);
    return Object.fromEntries(entries.sort(([a], [b]) => (a < b ? -1 : 1)));
  }

  /** What was logged: level and text. */
  get messages() {
    return this._host.messages;
  }

  /** The processor, for tests that look inside. */
  get processor() {
    return this._instance.processor;
  }

  /** `events` are those that were handled; none in `flush`. */
  _apply(list, events) {
    for (const effect of effectsOf(list)) {
      const { kind, key, body, version, at } = effect;
      if (kind === 0) this._write(effect, readRow(this._manifest.tables[effect.table], body));
      else if (kind === 1) this._write(effect, undefined);
      else if (kind === 2) {
        assert.ok(at >= 0n, 'an expiry is never before 1970');
        this._host.stateSet(key, body, at);
      } else if (kind === 3) this._host.stateDelete(key);
      else if (kind === 4) this._emit(effect, events[effect.event]);
      else if (kind === 5) {
        const entry = { process: textOf(key), channel: textOf(effect.aggregate), type: textOf(effect.type) || 'data' };
        if (version > 0n) entry.inReplyTo = narrow(version);
        if (effect.id.length > 0) entry.error = textOf(effect.id);
        if (effect.schemaVersion > 0) entry.payload = body;
        this.appended.push(entry);
      } else assert.fail(`${kind} is no kind of effect`);
    }
  }

  _emit(effect, cause) {
    const [aggregate, aggId, type] = [effect.aggregate, effect.key, effect.type].map(textOf);
    const id = effect.id.length > 0 ? textOf(effect.id) : undefined;
    const { schemaVersion, at, body: payload } = effect;
    const parts = { id, at, schemaVersion, payload, depth: (cause?.depth ?? 0) + 1, scope: cause?.scope };
    this.emitted.push(new TestEvent(aggregate, aggId, effect.version, type, parts));
  }

  /** Writes or deletes a row, unless the table is versioned and has seen this version or a later one. */
  _write({ table: place, key, version }, row) {
    const table = this._manifest.tables[place];
    const { rows, deleted } = this._tables.get(table.name);
    const name = textOf(key);
    const stored = rows.get(name)?.version ?? deleted.get(name);
    if (table.versioned && stored !== undefined && version <= stored) {
      this.stale += 1;
    } else if (row === undefined) {
      rows.delete(name);
      deleted.set(name, version);
    } else {
      deleted.delete(name);
      rows.set(name, { version, row });
    }
  }
}

function textOrBytes(state) {
  return Buffer.from(state).toString('latin1');
}

/** Runs the events in one batch and one by one, and fails where the two differ. */
export function batchEqualsSingles(handler, events, setup) {
  const [batch, singles] = [new Driver(handler, setup), new Driver(handler, setup)];
  const outcome = (run) => {
    try {
      run();
    } catch (error) {
      if (error instanceof Failed) return error.message;
      throw error;
    }
    return undefined;
  };
  const ended = [() => batch.send(events), () => singles.sendSingly(events)].map(outcome);
  assert.deepEqual(ended[0], ended[1], 'the outcomes differ');
  assert.deepEqual([...batch._tables], [...singles._tables], 'the rows differ');
  assert.deepEqual(batch.emitted, singles.emitted, 'the emitted events differ');
  assert.deepEqual(batch.appended, singles.appended, 'the appended entries differ');
  assert.deepEqual(batch.state(), singles.state(), 'the keyed states differ');
  assert.deepEqual(batch.saved(), singles.saved(), 'the snapshots differ');
}
