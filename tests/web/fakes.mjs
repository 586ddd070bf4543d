// What the tests of the client put in place of the network and of time.

const realImmediate = globalThis.setImmediate;

/** Until everything that waits for nothing but its turn has run. */
export async function settle() {
  for (let turn = 0; turn < 12; turn += 1) await new Promise((done) => realImmediate(done));
}

/** Time that stands still until `tick`. Chance always answers `random`. */
export class Clock {
  now = 1_000_000;
  random = 0;
  #timers = new Map();
  #last = 0;

  constructor(test) {
    const { setTimeout, clearTimeout, setInterval, clearInterval } = globalThis;
    const { now } = Date;
    const { random } = Math;
    const add = (every) => (run, wait = 0) => {
      this.#timers.set(++this.#last, { run, at: this.now + wait, every: every ? wait : 0 });
      return this.#last;
    };
    const remove = (id) => this.#timers.delete(id);
    Object.assign(globalThis, {
      setTimeout: add(false), setInterval: add(true), clearTimeout: remove, clearInterval: remove,
    });
    Date.now = () => this.now;
    Math.random = () => this.random;
    test.after(() => {
      Object.assign(globalThis, { setTimeout, clearTimeout, setInterval, clearInterval });
      Object.assign(Date, { now });
      Math.random = random;
    });
  }

  get timers() {
    return this.#timers.size;
  }

  async tick(milliseconds) {
    const end = this.now + milliseconds;
    for (;;) {
      await settle();
      const due = [...this.#timers].filter(([, timer]) => timer.at <= end).sort((a, b) => a[1].at - b[1].at)[0];
      if (!due) break;
      const [id, timer] = due;
      this.now = Math.max(this.now, timer.at);
      if (timer.every) timer.at += timer.every;
      else this.#timers.delete(id);
      timer.run();
    }
    this.now = end;
    await settle();
  }
}

/** One event of a stream. */
export const event = (frame, id) =>
  `${id === undefined ? "" : `id: ${id}\n`}event: ${frame.op}\ndata: ${typeof frame === "string" ? frame : JSON.stringify(frame)}\n\n`;

/** All frames of a commit: the last one has the token. */
export const commit = (token, ...frames) =>
  frames.map((frame, index) => event({ ...frame, stream_id: token }, index + 1 === frames.length ? token : undefined)).join("");

export const row = (key, more = {}) => ({ key, name: key.toUpperCase(), ...more });
export const enter = (key, at, more) =>
  ({ op: "enter", agg_id: key, row: row(key, more), old_index: -1, new_index: at, cursor: { values: [key.toUpperCase(), key] } });
export const leave = (key, at) => ({ op: "leave", agg_id: key, row: row(key), old_index: at, new_index: -1 });
export const move = (key, from, to, more) => ({ op: "move", agg_id: key, row: row(key, more), old_index: from, new_index: to });
export const update = (key, at, more) => ({ op: "update", agg_id: key, row: row(key, more), old_index: at, new_index: at });
export const reset = { op: "reset", old_index: 0, new_index: 0, cursor: { values: null } };
export const ready = (token, revision = 1, rows = 0, resumed = false) => ({ op: "ready", revision, rows, resumed, stream_id: token });
export const gap = (reason) => ({ op: "gap", reason, detail: `it is ${reason}` });

/** Events of a whole answer. */
export const snapshot = (token, revision, ...keys) =>
  [reset, ...keys.map((key, at) => enter(key, at))].map((frame) => event(frame)).join("") +
  event(ready(token, revision, keys.length), token);

/** In place of `fetch`: every call is kept, and answered with a stream, or with what `answers` holds first. */
export class Fetches {
  calls = [];
  answers = [];

  fetch = async (href, { method, headers, body, signal }) => {
    const call = { href: String(href), method, headers, body: JSON.parse(body), text: body, aborted: false };
    this.calls.push(call);
    signal.addEventListener("abort", () => {
      call.aborted = true;
    });
    const answer = this.answers.shift();
    if (answer instanceof Error) throw answer;
    if (answer) return answer;
    const encoder = new TextEncoder();
    const stream = new ReadableStream({
      start(controller) {
        call.send = async (text) => {
          controller.enqueue(typeof text === "string" ? encoder.encode(text) : text);
          await settle();
        };
        call.end = async () => {
          controller.close();
          await settle();
        };
        call.cut = async () => {
          controller.error(new TypeError("network error"));
          await settle();
        };
        // As a browser does with a request that is given up.
        signal.addEventListener("abort", () => {
          try {
            controller.error(signal.reason);
          } catch {
            // It has ended already.
          }
        });
      },
    });
    return new Response(stream, { headers: { "content-type": "text/event-stream" } });
  };

  get last() {
    return this.calls.at(-1);
  }

  refuse(status, problem, headers = {}) {
    const type = { "content-type": "application/problem+json", ...headers };
    this.answers.push(new Response(JSON.stringify(problem), { status, headers: type }));
  }
}

/** A class in place of `WebSocket`, whose instances are kept in `all`. */
export function sockets() {
  const all = [];
  class Socket {
    readyState = 0;
    sent = [];

    constructor(href, protocol) {
      Object.assign(this, { href, protocol });
      all.push(this);
    }

    async open() {
      this.readyState = 1;
      this.onopen();
      await settle();
    }

    send(text) {
      this.sent.push(JSON.parse(text));
      this.text = text;
    }

    /** What the host says. */
    async say(message) {
      this.onmessage({ data: typeof message === "string" ? message : JSON.stringify(message) });
      await settle();
    }

    async batch(id, token, ...deltas) {
      await this.say({ type: "batch", id, deltas: deltas.map((frame) => (token ? { ...frame, stream_id: token } : frame)) });
    }

    async snapshot(id, token, revision, ...keys) {
      const deltas = [reset, ...keys.map((key, at) => enter(key, at)), ready(token, revision, keys.length)];
      await this.say({ type: "batch", id, deltas });
    }

    close() {
      this.closed = true;
      this.readyState = 3;
    }

    async drop() {
      this.readyState = 3;
      this.onclose({ code: 1006 });
      await settle();
    }
  }
  return { Socket, all };
}

/** A class in place of `EventSource`. */
export function sources() {
  const all = [];
  class Source extends EventTarget {
    readyState = 0;
    #last = "";

    constructor(href) {
      super();
      this.href = new URL(href);
      all.push(this);
    }

    /** An event: the last id is repeated where it has none, as in browsers. */
    frame(frame, id = this.#last) {
      this.readyState = 1;
      this.#last = id;
      this.dispatchEvent(Object.assign(new Event(frame.op), { data: JSON.stringify(frame), lastEventId: id }));
    }

    fail(readyState) {
      this.readyState = readyState;
      this.dispatchEvent(new Event("error"));
    }

    close() {
      this.closed = true;
      this.readyState = 2;
    }
  }
  return { Source, all };
}

/** Numbers that are always the same for a seed (mulberry32). */
export function numbers(seed) {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}
