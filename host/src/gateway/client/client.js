// The rows of live queries, kept as the host says. No dependencies; client.d.ts has the types and what each part does.

const WAIT_MS = 1000; // Before a new attempt, until the host says another time.
const WAIT_MAX_MS = 30000;
const SILENCE_MAX_MS = 45000; // Three heartbeats.
const ADDRESS_MAX = 2000; // A longer query is posted.
const OPS = ["reset", "enter", "leave", "move", "update", "match", "unmatch", "ready", "gap", "error"];
const cursors = new WeakMap();

// JSON with whole numbers of any size: those that a number cannot hold become BigInt.
const TOKEN = /"(?:[^"\\]|\\.)*"(\s*:)?|-?\d[\d.eE+-]*/g;
const inexact = (text) => /^-?[1-9]\d{15,}$/.test(text) && !Number.isSafeInteger(Number(text));
let hasSource = false;
JSON.parse("1", (_, value, context) => (hasSource = context?.source === "1"));

export function parseJson(text, source = hasSource) {
  if (!/\d{16}/.test(text)) return JSON.parse(text);
  if (source) {
    return JSON.parse(text, (_, value, { source }) => (typeof value === "number" && inexact(source) ? BigInt(source) : value));
  }
  // Without the source text such a number becomes the text `~n…`, and a text that could be taken for one `~t…`.
  const marked = text.replace(TOKEN, (it, isName) =>
    inexact(it) ? `"~n${it}"` : !isName && /^"[~\\]/.test(it) ? `"~t${it.slice(1)}` : it);
  return JSON.parse(marked, (_, value) =>
    typeof value !== "string" || value[0] !== "~" ? value : value[1] === "n" ? BigInt(value.slice(2)) : value.slice(2));
}

export function writeJson(value) {
  if (typeof value === "bigint") return String(value);
  if (Array.isArray(value)) return `[${value.map(writeJson)}]`;
  if (!value || typeof value !== "object" || value.toJSON) return JSON.stringify(value) ?? "null";
  const members = Object.entries(value).filter(([, it]) => it !== undefined);
  return `{${members.map(([name, it]) => `${JSON.stringify(name)}:${writeJson(it)}`)}}`;
}

// A new array: `rows` after `frames`. Throws where a frame does not fit the rows.
export function applyFrames(rows, frames, streamed = false) {
  const next = [...rows];
  const places = new Map(streamed ? rows.map((row, index) => [row.key, index]) : []);
  const held = new Set(rows.map((row) => row.key));
  for (const { op, agg_id: key, row, cursor, old_index: from, new_index: to } of frames) {
    const fits = (fit) => {
      if (!fit) throw new Error(`frame ${op} of ${key}, ${from} to ${to}, does not fit ${next.length} rows`);
    };
    const remove = () => {
      fits(next[from]?.key === key);
      next.splice(from, 1);
    };
    const insert = () => {
      fits(to >= 0 && to <= next.length && row?.key === key);
      next.splice(to, 0, row);
    };
    if (op === "reset") {
      next.length = 0;
      held.clear();
      places.clear();
    } else if (streamed) {
      if (op === "leave" || op === "unmatch") {
        delete next[places.get(key)];
        places.delete(key);
      } else if (row) {
        if (!places.has(key)) places.set(key, next.length);
        next[places.get(key)] = row;
      }
    } else if (op === "enter") {
      fits(!held.has(key));
      insert();
      held.add(key);
    } else if (op === "leave") {
      remove();
      held.delete(key);
    } else if (op === "move") {
      remove();
      insert();
    } else if (op === "update") {
      fits(next[to]?.key === key && row?.key === key);
      next[to] = row;
    }
    if (row && cursor) cursors.set(row, cursor);
  }
  return streamed ? next.filter(Boolean) : next;
}

export const cursorOf = (row) => cursors.get(row);

// One connection after the other, until the end.
class Line {
  hint = WAIT_MS;
  deaf = false; // Whether heartbeats cannot be heard.
  #tries = 0;
  #heard = 0;

  constructor(dial, lost, beat) {
    Object.assign(this, { dial, lost, beat });
    this.watch = setInterval(() => {
      if (this.deaf || this.abort.signal.aborted) return;
      if (this.silent()) this.again();
      else this.beat?.();
    }, SILENCE_MAX_MS / 3);
    this.wake = ({ type }) => {
      if (type === "online" || (globalThis.document?.visibilityState !== "hidden" && (this.timer || this.silent()))) this.open();
    };
    for (const type of ["online", "pageshow", "visibilitychange"]) globalThis.addEventListener?.(type, this.wake);
    this.open();
  }

  open() {
    this.cut();
    this.heard();
    this.abort = new AbortController();
    const { signal } = this.abort;
    this.dial(signal).catch((error) => signal.aborted || this.again(undefined, error));
  }

  // After `wait`, or a time that doubles, and up to half of it more, so that not all clients come at once.
  again(wait = Math.min(this.hint * 2 ** this.#tries, WAIT_MAX_MS), error) {
    this.#tries += 1;
    this.cut(error);
    this.timer = setTimeout(() => this.open(), wait * (1 + Math.random() / 2));
  }

  cut(error) {
    clearTimeout(this.timer);
    this.timer = undefined;
    if (this.abort && !this.abort.signal.aborted) {
      this.abort.abort();
      this.lost(error);
    }
  }

  idle = () => !this.timer && this.abort.signal.aborted;
  heard = () => (this.#heard = Date.now());
  silent = () => Date.now() - this.#heard > SILENCE_MAX_MS;
  good = () => (this.#tries = 0);

  move() {
    this.open();
  }

  close() {
    this.cut();
    clearInterval(this.watch);
    for (const type of ["online", "pageshow", "visibilitychange"]) globalThis.removeEventListener?.(type, this.wake);
  }
}

class View {
  rows = [];
  status = "connecting";
  revision = null;
  error = null;
  gaps = 0;
  resets = 0;
  #frames = []; // Of a commit or a snapshot that is not complete.
  #wakes = [];

  constructor({ table, where, sort, limit, cursor, mode, columns }, listener) {
    this._query = { table, where, sort, limit, cursor, mode, columns };
    this._listener = listener;
  }

  reanchor(cursor, limit) {
    this._before ??= { query: this._query, token: this._token };
    this._query = { ...this._query };
    if (cursor !== undefined) this._query.cursor = cursor;
    if (limit !== undefined) this._query.limit = limit;
    this._token = undefined;
    this._lost();
    this._line.move(cursor, limit);
  }

  close() {
    if (this.status === "closed") return;
    this._turn("closed");
    this._line.close();
  }

  async *[Symbol.asyncIterator]() {
    for (let seen; ; ) {
      if (this.revision !== null && seen !== this.rows) yield (seen = this.rows);
      else if (this.status !== "closed") await new Promise((wake) => this.#wakes.push(wake));
      else if (this.error?.final) throw Object.assign(new Error(this.error.detail), this.error);
      else return;
    }
  }

  // Frames as they come. With the last of a commit comes the token that resumes after it.
  _take(frames, token) {
    for (const frame of frames) {
      const { op } = frame;
      if (op === "gap") {
        this.gaps += 1;
        this.#again();
        this.#tell({ type: "gap", reason: frame.reason, detail: frame.detail });
      } else if (op === "error") {
        this._fail(frame);
        return this._line.again(frame.retry_ms ?? undefined);
      } else {
        if (op === "reset") {
          if (this.status === "live") this._turn("reset");
          this.#frames = [];
        }
        this.#frames.push(frame);
        if (op === "ready" && !this.#commit(frame)) return;
      }
      if (this.status === "closed") return;
    }
    // The rows of a snapshot have none, so that it is shown when `ready` ends it.
    if (token && (this.#frames.length === 0 || this.#commit({}))) this._token = token;
  }

  #commit({ op, revision }) {
    const frames = this.#frames;
    this.#frames = [];
    try {
      this.rows = applyFrames(this.rows, frames, this._query.mode === "streamed" || this._query.mode === 1);
    } catch (error) {
      this.resets += 1;
      this._fail({ code: "frame_misfit", detail: error.message });
      this.#again();
      this._line.again();
      return false;
    }
    this.revision = revision ?? frames.at(-1).revision ?? this.revision;
    this.#tell({ type: "rows", frames });
    if (op === "ready" && this.status !== "closed") {
      this._before = undefined;
      this._line.good();
      this.error = null;
      this._turn("live");
    }
    return this.status !== "closed";
  }

  // From the beginning: what is shown is old until the host has sent everything.
  #again() {
    this._token = undefined;
    this.#frames = [];
    this._turn("reset");
  }

  // The connection is gone, and with it what was not complete.
  _lost(error) {
    this.#frames = [];
    if (error) this._fail({ code: "connection_lost", detail: error.message });
    if (this.status === "live") this._turn("catching-up");
  }

  _fail({ code, detail, fix }, final = false) {
    this.error = { code, detail, fix, final };
    this.#tell({ type: "error", ...this.error });
  }

  // The host does not want this query. One that is only anchored elsewhere goes back to where it was.
  _refuse(problem) {
    const before = this._before;
    this._before = undefined;
    this._fail(problem, !before);
    if (!before) return this.close();
    this._query = before.query;
    this._token = before.token;
    this._line.again();
  }

  _turn(status) {
    if (this.status === status || this.status === "closed") return;
    this.status = status;
    this.#tell({ type: "status", status });
  }

  #tell(change) {
    for (const wake of this.#wakes.splice(0)) wake();
    try {
      this._listener?.(this, change);
    } catch (error) {
      (globalThis.reportError ?? console.error)(error);
    }
  }
}

const address = async (url, path) => new URL(path, (typeof url === "function" ? await url() : url) ?? import.meta.url);
const ask = (token) => (typeof token === "function" ? token() : token);

// What an answer that was not hoped for means for the views that wait for it.
async function refused(response, signal, token, views, line) {
  const { status, headers } = response;
  const { code = `http_${status}`, detail = `the host answered ${status}`, fix } = await response.json().catch(() => ({}));
  if (signal.aborted) return;
  const wait = headers.get("retry-after");
  const passes = wait || status < 400 || status > 499 || status === 408 || status === 429;
  const isFinal = !passes && !(status === 401 && typeof token === "function");
  if (isFinal) line.cut();
  for (const view of views) isFinal ? view._refuse({ code, detail, fix }) : view._fail({ code, detail, fix });
  if (!isFinal) line.again(wait > 0 ? wait * 1000 : undefined);
}

// Server-sent events of a body. An id is given with the event that has it only.
async function readEvents(body, heard, retry, take) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let event = {};
  for (let read; !(read = await reader.read()).done; ) {
    heard();
    const lines = (rest + decoder.decode(read.value, { stream: true })).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      const [, name, value] = /^([^:]*):? ?(.*)$/s.exec(line);
      if (line === "") {
        if (event.data !== undefined) take(event.data, event.id);
        event = {};
      } else if (name === "data") event.data = event.data === undefined ? value : `${event.data}\n${value}`;
      else if (name === "retry" && /^\d+$/.test(value)) retry(Number(value));
      else if (name) event[name] = value;
    }
  }
}

function overSse(view, options) {
  const Source = options.EventSource ?? (options.fetch || options.token ? undefined : globalThis.EventSource);
  let plain = Boolean(Source);

  function dialPlain(href, signal) {
    const source = new Source(href);
    signal.addEventListener("abort", () => source.close());
    for (const op of OPS) {
      source.addEventListener(op, ({ data, lastEventId }) => {
        if (signal.aborted) return;
        line.heard();
        if (data !== undefined) {
          const frame = parseJson(data);
          // The last id is repeated with events that have none; only the end of a commit has its own.
          return view._take([frame], op === "ready" || lastEventId === frame.stream_id ? lastEventId : undefined);
        }
        // It tries again by itself, unless it was refused: the next attempt shall find out why.
        view._lost(new Error("the connection is lost"));
        if (source.readyState === 2) {
          plain = false;
          line.again();
        }
      });
    }
  }

  async function dialFetch(href, signal, token) {
    const headers = { "Content-Type": "application/json", Accept: "text/event-stream" };
    if (token) headers.Authorization = `Bearer ${token}`;
    if (view._token) headers["Last-Event-ID"] = view._token;
    const fetch = options.fetch ?? globalThis.fetch;
    const response = await fetch(href, { method: "POST", headers, body: writeJson(view._query), signal, cache: "no-store" });
    if (signal.aborted) return;
    if (!response.ok || !/event-stream/.test(response.headers.get("content-type"))) {
      return refused(response, signal, options.token, [view], line);
    }
    const retry = (wait) => (line.hint = Math.min(wait, WAIT_MAX_MS));
    const take = (data, id) => signal.aborted || view._take([parseJson(data)], id);
    await readEvents(response.body, line.heard, retry, take);
    throw new Error("the host ended the stream");
  }

  const dial = async (signal) => {
    const href = await address(options.url, "v1/live");
    const token = await ask(options.token);
    if (signal.aborted) return;
    const whole = new URL(href);
    whole.searchParams.set("query", writeJson(view._query));
    if (view._token) whole.searchParams.set("last_event_id", view._token);
    line.deaf = plain && whole.href.length < ADDRESS_MAX;
    await (line.deaf ? dialPlain(whole.href, signal) : dialFetch(href, signal, token));
  };
  const line = new Line(dial, (error) => view._lost(error));
  view._line = line;
}

export function connect(url, options = {}) {
  const all = new Set();
  const views = new Map(); // By the id of the subscription: one that begins anew has another.
  let last = 0;
  let socket;
  let ready = false;
  const send = (message) => socket?.readyState === 1 && socket.send(writeJson(message));

  function subscribe(view) {
    clearTimeout(view._timer);
    if (!ready) return;
    view._id = `${++last}`;
    view._moves = 0;
    views.set(view._id, view);
    send({ action: "subscribe", id: view._id, query: view._query, resume: view._token });
  }

  function begin() {
    ready = true;
    all.forEach(subscribe);
  }

  function receive({ type, id, deltas, ...rest }) {
    const view = views.get(id);
    if (type === "batch" && view && !view._moves) view._take(deltas, deltas.at(-1)?.stream_id);
    else if (type === "reanchored" && view) view._moves -= 1;
    else if (type === "error" && view) {
      if (rest.retry_ms === undefined || rest.retry_ms === null) return view._refuse(rest);
      view._fail(rest);
      view._line.again(rest.retry_ms);
    } else if (type === "error" && id === undefined) {
      for (const each of all) each._fail(rest);
      if (rest.retry_ms >= 0) line.again(rest.retry_ms);
    }
  }

  // A WebSocket cannot send a token: it is turned into a ticket that opens one.
  async function ticket(token, signal) {
    const headers = { "Content-Type": "application/json", Authorization: `Bearer ${token}` };
    const fetch = options.fetch ?? globalThis.fetch;
    const body = '{"ticket":true}';
    const response = await fetch(await address(url, "v1/session"), { method: "POST", headers, body, signal, cache: "no-store" });
    if (response.ok) return (await response.json()).ticket;
    // Without a socket no window can go back to where it was.
    for (const view of all) view._before = undefined;
    await refused(response, signal, options.token, [...all], line);
  }

  async function dial(signal) {
    const href = await address(url, "v1/live/ws");
    href.protocol = href.protocol.replace("http", "ws");
    const token = await ask(options.token);
    if (token) href.searchParams.set("ticket", await ticket(token, signal));
    if (signal.aborted) return;
    const Socket = options.WebSocket ?? globalThis.WebSocket;
    const mine = (socket = new Socket(href.href, "millrace.live.v1"));
    signal.addEventListener("abort", () => mine.close());
    mine.onopen = () => signal.aborted || begin();
    mine.onmessage = ({ data }) => {
      if (signal.aborted) return;
      line.heard();
      receive(parseJson(data));
    };
    mine.onclose = () => signal.aborted || line.again(undefined, new Error("the connection is lost"));
  }

  const lost = (error) => {
    ready = false;
    views.clear();
    for (const view of all) view._lost(error);
  };
  const line = new Line(dial, lost, () => send({ action: "ping" }));

  const live = (query, listener) => {
    const view = new View(query, listener);
    const leave = () => {
      clearTimeout(view._timer);
      if (views.delete(view._id)) send({ action: "unsubscribe", id: view._id });
    };
    view._line = {
      good: line.good,
      again(wait = line.hint) {
        leave();
        view._lost();
        view._timer = setTimeout(() => subscribe(view), wait * (1 + Math.random() / 2));
      },
      move(cursor, limit) {
        if (!views.has(view._id)) return;
        view._moves += 1;
        // To the host null is as good as nothing.
        send({ action: "reanchor", id: view._id, cursor: cursor === null ? { values: null } : cursor, limit });
      },
      close() {
        leave();
        all.delete(view);
      },
    };
    all.add(view);
    subscribe(view);
    if (line.idle()) line.open();
    return view;
  };
  const authenticate = async () => send({ action: "auth", token: await ask(options.token) });
  const close = () => {
    for (const view of [...all]) view.close();
    line.close();
  };
  return { live, authenticate, close };
}

export function live(options, listener) {
  if (options.transport === "ws") {
    const connection = connect(options.url, options);
    const view = connection.live(options, listener);
    view._line.close = connection.close;
    return view;
  }
  const view = new View(options, listener);
  overSse(view, options);
  return view;
}
