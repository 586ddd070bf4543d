// What the host offers. On WebAssembly these are the imports of the world, otherwise what a test provides.

const missing = () => {
  throw new Error('there is no host: in a test, the driver provides one');
};

/** The host that is asked, and whoever provides another one. */
export const host = { log: missing, stateGet: missing, stateScan: missing, configGet: missing };

/** Puts another host in its place. */
export function provide(other) {
  Object.assign(host, other);
}

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
