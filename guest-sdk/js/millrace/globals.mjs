// What would answer differently in a replay, replaced by what the running event says: clocks by its `at`, chance by its
// place in the stream, and the console by the operator's log. Outside of a call of the plugin's there is neither time nor
// console on WebAssembly; in tests everything is as it was.

import { log } from './host.mjs';
import { clock, nowMicros } from './time.mjs';

// Before there is an event, in `load` for one.
const SEED_WITHOUT_EVENT = 0x9e37_79b9;

/** Chance that is the same in every replay: one sequence an event. */
const chance = { event: undefined, latest: undefined, state: 0 };

function random32() {
  if (chance.event !== clock.event || chance.latest !== clock.latest || chance.state === 0) {
    chance.event = clock.event;
    chance.latest = clock.latest;
    chance.state = seed();
  }
  chance.state = (chance.state + 0x6d2b_79f5) | 0;
  let mixed = Math.imul(chance.state ^ (chance.state >>> 15), chance.state | 1);
  mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
  return (mixed ^ (mixed >>> 14)) >>> 0;
}

function seed() {
  const of = clock.event !== null ? clock.event.positionBig : BigInt(clock.latest ?? SEED_WITHOUT_EVENT);
  const [low, high] = [Number(of & 0xffff_ffffn), Number((of >> 32n) & 0xffff_ffffn)];
  return (Math.imul(low ^ 0x85eb_ca6b, 0xc2b2_ae35) ^ Math.imul(high + 1, 0x27d4_eb2f)) | 1;
}

function random() {
  return ((random32() >>> 5) * 67_108_864 + (random32() >>> 6)) / 9_007_199_254_740_992;
}

function getRandomValues(array) {
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  for (let place = 0; place < bytes.length; place += 1) bytes[place] = random32();
  return array;
}

function randomUUID() {
  const bytes = getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-');
}

/** What `console` was given, as one line of text or more. */
function written(values) {
  return values
    .map((value) => {
      if (value instanceof Error) return `${value.name}: ${value.message}`;
      if (value === null || typeof value !== 'object') return String(value);
      try {
        return JSON.stringify(value) ?? String(value);
      } catch {
        return String(value);
      }
    })
    .join(' ');
}

function define(target, name, value) {
  Object.defineProperty(target, name, { value, writable: true, configurable: true, enumerable: false });
}

/**
 * Replaces them. `outside`: `throws` where the plugin has no clock of its own, `real` in tests. `clocks` and `chances`
 * tell whether they are replaced at all: a plugin with the grant has the real ones.
 */
export function install({ outside, clocks, chances }) {
  const isOurs = outside === 'throws' ? () => true : () => clock.inside;
  if (clocks) installClocks(isOurs);
  if (chances) installChance(isOurs);
  installConsole(isOurs);
}

function installClocks(isOurs) {
  const RealDate = globalThis.Date;
  const realNow = RealDate.now;
  const milliseconds = () => (isOurs() ? Math.floor(nowMicros() / 1_000) : realNow());
  const EventDate = new Proxy(RealDate, {
    apply: () => new RealDate(milliseconds()).toString(),
    construct: (target, values, created) =>
      Reflect.construct(target, values.length === 0 ? [milliseconds()] : values, created === EventDate ? target : created),
  });
  define(RealDate, 'now', milliseconds);
  define(RealDate.prototype, 'constructor', EventDate);
  define(globalThis, 'Date', EventDate);
  const realPerformance = globalThis.performance;
  const performanceNow = () => (isOurs() ? nowMicros() / 1_000 : realPerformance.now());
  define(globalThis, 'performance', within(realPerformance, { now: performanceNow }));
}

function installChance(isOurs) {
  const realRandom = Math.random;
  define(Math, 'random', () => (isOurs() ? random() : realRandom()));
  const realCrypto = globalThis.crypto;
  define(
    globalThis,
    'crypto',
    within(realCrypto, {
      getRandomValues: (array) => (isOurs() ? getRandomValues(array) : realCrypto.getRandomValues(array)),
      randomUUID: () => (isOurs() ? randomUUID() : realCrypto.randomUUID()),
    }),
  );
}

/** The same object with other functions. */
function within(real, functions) {
  if (real === undefined || real === null) return { ...functions };
  return new Proxy(real, {
    get: (target, name) => {
      if (Object.hasOwn(functions, name)) return functions[name];
      const value = Reflect.get(target, name, target);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}

function installConsole(isOurs) {
  const real = globalThis.console;
  const to = (level, name) =>
    function write(...values) {
      if (isOurs()) log[level](written(values));
      else real[name]?.(...values);
    };
  const functions = {
    debug: to('debug', 'debug'),
    trace: to('debug', 'trace'),
    log: to('info', 'log'),
    info: to('info', 'info'),
    warn: to('warn', 'warn'),
    error: to('error', 'error'),
  };
  define(globalThis, 'console', within(real, functions));
}
