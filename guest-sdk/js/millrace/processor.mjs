// From a class to what a component exports.

import { Effects } from './effects.mjs';
import { Batch, Event } from './event.mjs';
import { Failure, failureToWire, shown } from './failure.mjs';
import { config, log, running } from './host.mjs';
import { parse } from './json.mjs';
import { LAST_WORDS_LETTERS_MAX } from './limits.mjs';
import { manifestToWire } from './manifest.mjs';
import { storedState } from './state.mjs';
import { clock } from './time.mjs';
import { encode, isBytes, ownBytes } from './writer.mjs';

const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
const FUNCTIONS = ['handle', 'flush', 'snapshot'];

/** Where a driver finds the class behind a handler. */
export const CLASS = Symbol.for('millrace.class');

/** What a task last committed. */
export class Saved {
  constructor({ contentType, state }) {
    this.contentType = contentType;
    /** A Uint8Array. */
    this.state = ownBytes(state);
  }

  text() {
    return decoder.decode(this.state);
  }

  /** The state as JSON; refuses another content type than this one, where it is given. */
  json(contentType = this.contentType) {
    return this.migrate({ [contentType]: (value) => value });
  }

  /**
   * Reads a state of one of several content types: what a version does that takes over from older ones. `ways` has a
   * function for each content type, which gets the JSON that was saved under it.
   */
  migrate(ways) {
    if (!Object.hasOwn(ways, this.contentType)) {
      const known = Object.keys(ways).join('`, `');
      throw new Error(`the saved state has content type \`${this.contentType}\`, this version reads \`${known}\``);
    }
    let value;
    try {
      value = parse(this.text());
    } catch (error) {
      throw new Error(`the saved state cannot be read: ${error.message}`);
    }
    return ways[this.contentType](value);
  }
}

/** Frames of the plugin's own files: where the tools left their own names is of no use to anybody. */
function frames(error) {
  const lines = typeof error.stack === 'string' ? error.stack.split('\n') : [];
  const places = lines.filter((line) => /:\d+(:\d+)?\)?$/.test(line) && !line.includes('initializer.js'));
  const own = places.filter((line) => !line.includes('millrace/'));
  return (own.length > 0 ? own : places).map((line) => `  ${line.trim()}`);
}

/** What there is to say of an error that nobody caught: what it is and where it came from. */
function lastWords(error) {
  try {
    return told(error);
  } catch {
    return 'an error that cannot be told: looking at it throws another one';
  }
}

function told(error) {
  if (!(error instanceof Error)) return `thrown: ${shown(error)}`;
  return [`${error.name}: ${error.message}`, ...frames(error)].join('\n').slice(0, LAST_WORDS_LETTERS_MAX);
}

/** A processor and its batches. */
export class Instance {
  constructor(Class, context, saved) {
    const { tables = [], stateContentType } = Class.manifest;
    this._effects = new Effects(tables);
    this._latest = undefined;
    this._hasState = stateContentType !== undefined && stateContentType !== null;
    const given = { ...context, config, state: storedState };
    this.processor = within(null, undefined, false, () => new Class(given, saved ? new Saved(saved) : undefined));
  }

  handle(arena, records) {
    const batch = new Batch(arena, records);
    const { processor, _effects: effects } = this;
    if (effects._late !== undefined) {
      return { handled: 0, effects: effects._finish(), failure: failureToWire(effects._late, 0) };
    }
    let index = 0;
    clock.inside = true;
    clock.isFlush = false;
    try {
      for (; index < batch.length; index += 1) {
        const event = new Event(batch, index);
        clock.event = event;
        effects._begin(index);
        const answer = processor.handle(event, effects);
        if (answer !== undefined && typeof answer?.then === 'function') throw promised('handle');
      }
    } catch (error) {
      effects._drop();
      if (!(error instanceof Failure)) {
        effects._finish();
        log.error(lastWords(error));
        throw error;
      }
      return { handled: index, effects: effects._finish(), failure: failureToWire(error, index) };
    } finally {
      this._latest = batch.latest(index, this._latest);
      clock.event = null;
      clock.inside = false;
    }
    return { handled: index, effects: effects._finish(), failure: undefined };
  }

  /** Throws a failure as it crosses. */
  flush(reason) {
    const { processor, _effects: effects } = this;
    if (typeof processor.flush !== 'function') return effects._finish();
    if (effects._late !== undefined) throw failureToWire(effects._late, 0);
    effects._begin(0);
    clock.flushes += 1;
    try {
      within(null, this._latest, true, () => {
        const answer = processor.flush(reason, effects);
        if (typeof answer?.then === 'function') throw promised('flush');
      });
    } catch (error) {
      effects._drop();
      effects._finish();
      if (!(error instanceof Failure)) {
        log.error(lastWords(error));
        throw error;
      }
      throw failureToWire(error, 0);
    }
    return effects._finish();
  }

  snapshot() {
    if (!this._hasState) return new Uint8Array();
    try {
      const state = within(null, undefined, false, () => this.processor.snapshot());
      if (isBytes(state)) return state;
      if (typeof state === 'string') return encode(state);
      throw new TypeError(`\`snapshot\` answered ${shown(state)}, which is neither text nor a Uint8Array`);
    } catch (error) {
      log.error(lastWords(error));
      throw error;
    }
  }
}

function promised(name) {
  return Failure.fatal(`\`${name}\` answered a promise; it works without waiting for anything`);
}

/** Calls the plugin with this time. */
function within(event, latest, isFlush, call) {
  Object.assign(clock, { event, latest, isFlush, inside: true });
  try {
    return call();
  } finally {
    Object.assign(clock, { event: null, latest: undefined, isFlush: false, inside: false });
  }
}

function check(Class) {
  if (typeof Class !== 'function') throw new Error('`processor` takes a class');
  const what = `class ${Class.name}`;
  for (const name of FUNCTIONS) {
    const found = Class.prototype[name];
    const kind = found?.constructor?.name ?? '';
    if (kind.startsWith('Async')) {
      throw new Error(
        `${what}: \`${name}\` is async, and a processor waits for nothing: all it may ask is answered at once`,
      );
    }
    if (kind === 'GeneratorFunction') {
      throw new Error(`${what}: \`${name}\` is a generator (\`*${name}\`): called, it would do nothing`);
    }
  }
  if (typeof Class.prototype.handle !== 'function') throw new Error(`${what} has no \`handle(event, out)\``);
  const manifest = manifestToWire(Class.manifest);
  const hasState = manifest.stateContentType !== undefined;
  if (hasState && typeof Class.prototype.snapshot !== 'function') {
    throw new Error(`${what} declares \`stateContentType\` and has no \`snapshot()\``);
  }
  return manifest;
}

/**
 * Makes a component's `handler` out of a class:
 *
 * - `static manifest = { … }`: its name, version, tables and what it wants;
 * - `constructor(context, saved)`: begins work for a task. What it throws is a refusal;
 * - `handle(event, out)`: handles an event. Throw a `Failure` for one that cannot be;
 * - `flush(reason, out)`: work driven by time, where there is any;
 * - `snapshot()`: the state to restart from, as text or a Uint8Array.
 */
export function processor(Class) {
  const manifest = check(Class);
  let instance;
  const handler = {
    describe() {
      return manifest;
    },
    load(context, saved) {
      running();
      try {
        instance = new Instance(Class, context, saved);
      } catch (error) {
        const isMeant = error instanceof Failure || error?.name === 'Error';
        if (error instanceof Error && !isMeant) log.error(lastWords(error));
        // Text is what a refusal is; an error would end the instance.
        throw (error instanceof Error ? error.message : String(error)).toWellFormed();
      }
    },
    handle(arena, events) {
      return instance.handle(arena, events);
    },
    flush(reason) {
      return instance.flush(reason);
    },
    snapshot() {
      return instance.snapshot();
    },
  };
  Object.defineProperty(handler, CLASS, { value: Class });
  return handler;
}

