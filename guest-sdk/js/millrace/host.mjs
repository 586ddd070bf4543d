// What the host offers. On WebAssembly these are the imports of the world, otherwise what a test provides.

const missing = () => {
  throw new Error(
    'there is no host yet: settings, state and the log are there while a plugin runs, not while its modules are evaluated',
  );
};

/** The host that is asked, and whoever provides another one. */
export const host = { log: missing, stateGet: missing, stateScan: missing, configGet: missing };

/** Puts another host in its place. */
export function provide(other) {
  Object.assign(host, other);
}

let waiting;

/** The same as soon as the plugin runs: modules are evaluated when it is built, and nobody answers then. */
export function provideOnceRunning(other) {
  waiting = other;
}

/** The plugin runs. */
export function running() {
  if (waiting !== undefined) provide(waiting);
  waiting = undefined;
}

const UNITS_MS = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** Settings that the operator gave this plugin. */
export const config = {
  /** The setting's value; undefined where it is not set. */
  get(name) {
    return host.configGet(name);
  },

  /** The setting as a whole number of at least `least`; `otherwise` where it is not set. What is none is refused. */
  integer(name, otherwise, least = 0) {
    const text = host.configGet(name);
    if (text === undefined) return otherwise;
    const number = Number(text);
    if (!/^-?\d+$/.test(text) || !Number.isSafeInteger(number) || number < least) {
      throw new Error(`setting \`${name}\` is \`${text}\`, which is not a whole number of at least ${least}`);
    }
    return number;
  },

  /** The setting as `true` or `false`; `otherwise` where it is not set. */
  flag(name, otherwise = false) {
    const text = host.configGet(name);
    if (text === undefined) return otherwise;
    if (text !== 'true' && text !== 'false') {
      throw new Error(`setting \`${name}\` is \`${text}\`; it may be \`true\` or \`false\``);
    }
    return text === 'true';
  },

  /** One of these words; the first where it is not set. */
  oneOf(name, words) {
    const text = host.configGet(name);
    if (text === undefined) return words[0];
    if (!words.includes(text)) {
      throw new Error(`setting \`${name}\` is \`${text}\`; it may be \`${words.join('`, `')}\``);
    }
    return text;
  },

  /** A time such as `500ms`, `30s`, `5m`, `2h` or `1d`, in milliseconds. */
  durationMs(name, otherwise) {
    const text = host.configGet(name) ?? otherwise;
    const [, number, unit] = /^(\d+)(ms|s|m|h|d)$/.exec(text) ?? [];
    const milliseconds = Number(number) * UNITS_MS[unit];
    if (!Number.isSafeInteger(milliseconds)) {
      throw new Error(`setting \`${name}\` is \`${text}\`, which is no time such as 500ms, 30s, 5m, 2h or 1d`);
    }
    return milliseconds;
  },
};

function write(level, message) {
  host.log(level, String(message).toWellFormed());
}

/** Messages for the operator. The host bounds their size and rate, and puts the plugin, tenant and lane beside them. */
export const log = {
  debug: (message) => write('debug', message),
  info: (message) => write('info', message),
  warn: (message) => write('warn', message),
  error: (message) => write('error', message),
};
