// What would answer differently in a replay, replaced by what the running event says: clocks by its `at`, chance by its
// place in the stream, and the console by the operator's log. Outside of a call of the plugin's there is neither time nor
// console on WebAssembly; in tests everything is as it was.

import { log } from './host.mjs';
import { stringify } from './json.mjs';
import { clock, nowMicros } from './time.mjs';

// Before there is an event, in `load` for one.
const SEED_WITHOUT_EVENT = 0x9e37_79b9;

/** Chance that is the same in every replay: one sequence an event. */
const chance = { event: undefined, latest: undefined, flushes: 0, state: 0 };

function random32() {
  const isSame = chance.event === clock.event && chance.latest === clock.latest && chance.flushes === clock.flushes;
  if (!isSame || chance.state === 0) {
    chance.flushes = clock.flushes;
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

const PLACE = /%[sdifjoOc%]/g;

/** What `console` was given, as one line of text or more. */
function written(values) {
  const [first, ...rest] = values;
  if (typeof first !== 'string') return values.map(shownWhole).join(' ');
  const filled = first.replace(PLACE, (place) => {
    if (place === '%%') return '%';
    if (rest.length === 0) return place;
    const value = rest.shift();
    if (place === '%c') return '';
    if (place === '%s') return shownWhole(value);
    if (typeof value === 'symbol') return 'NaN';
    if (place === '%d') return typeof value === 'bigint' ? String(value) : String(Number(value));
    if (place === '%i') return typeof value === 'bigint' ? String(value) : String(parseInt(value, 10));
    if (place === '%f') return String(parseFloat(value));
    return shownWhole(value);
  });
  return [filled, ...rest.map(shownWhole)].join(' ');
}

function shownWhole(value) {
  if (value instanceof Error) return `${value.name}: ${value.message}`;
  if (value === null || typeof value !== 'object') return String(value);
  try {
    return stringify(value);
  } catch {
    return shownHalf(value);
  }
}

/** What JSON has no words for. */
function shownHalf(value) {
  try {
    return JSON.stringify(value) ?? String(value);
  } catch {
    return Object.prototype.toString.call(value);
  }
}

function raise(error) {
  throw error;
}

function define(target, name, value) {
  Object.defineProperty(target, name, { value, writable: true, configurable: true, enumerable: false });
}

/**
 * Replaces them. `outside`: `throws` where the plugin has no clock of its own, `real` in tests. `clocks` and `chances`
 * tell whether they are replaced at all, and `requests` whether they are refused: a plugin with the grant has the real ones.
 */
export function install({ outside, clocks, chances, requests = true }) {
  const isOurs = outside === 'throws' ? () => true : () => clock.inside;
  clock.isOwn = !clocks;
  if (clocks) installClocks(isOurs);
  if (chances) installChance(isOurs);
  installWaiting(isOurs, outside === 'throws', requests);
  installConsole(isOurs);
}

/** What waits for something: it would end a component without a word of what and where. */
function installWaiting(isOurs, always, requests) {
  const refuse = (target, name, called) => {
    const real = target[name];
    const refused = () => new Error(`${called}: a processor waits for nothing; keep what is due for \`flush\``);
    if (typeof real !== 'function') {
      // There is none in this engine: who calls it is told the same.
      if (always) define(target, name, () => raise(refused()));
      return;
    }
    const apply = (inner, self, values) => (isOurs() ? raise(refused()) : Reflect.apply(inner, self, values));
    define(target, name, new Proxy(real, { apply }));
  };
  for (const name of ['setTimeout', 'setInterval', 'setImmediate']) refuse(globalThis, name, name);
  if (typeof AbortSignal === 'function') refuse(AbortSignal, 'timeout', 'AbortSignal.timeout');
  if (requests) refuse(globalThis, 'fetch', 'fetch');
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
  const ofPerformance = {
    now: performanceNow,
    get timeOrigin() {
      return isOurs() ? 0 : realPerformance.timeOrigin;
    },
  };
  define(globalThis, 'performance', within(realPerformance, ofPerformance));
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

/** The same object with other members. */
function within(real, functions) {
  if (real === undefined || real === null) return functions;
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
    dir: to('info', 'dir'),
    table: to('info', 'table'),
    group: to('info', 'group'),
  };
  // They measure time that stands still.
  for (const name of ['time', 'timeEnd', 'timeLog']) {
    functions[name] = (...values) => (isOurs() ? undefined : real[name]?.(...values));
  }
  define(globalThis, 'console', within(real, functions));
}
