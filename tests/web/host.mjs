#!/usr/bin/env node
// A stand-in for the host: the demo's pages, its four tables made of the demo's own events, and live queries over
// them as the wire says, by sorting everything after every commit. For the tests of the client and of the board.
//
//   node tests/web/host.mjs [--port 7171] [--skip EVENTS] [--rate EVENTS_A_SECOND]

import { createReadStream, readFileSync } from "node:fs";
import http from "node:http";
import { createInterface } from "node:readline";
import { fileURLToPath, pathToFileURL } from "node:url";
import { createGunzip } from "node:zlib";

import { parseJson, writeJson } from "../../host/src/gateway/client/client.js";
import { upgrade } from "./websocket.mjs";

const root = new URL("../../", import.meta.url);
const gateway = new URL("host/src/gateway/", root);
const EVENTS = new URL("plugins/flight-board/data/flights-2013-01.ndjson.gz", root);
const PAGES = {
  "/demo/": ["demo/index.html", "text/html"],
  "/demo/app.js": ["demo/app.js", "text/javascript"],
  "/demo/rows.js": ["demo/rows.js", "text/javascript"],
  "/demo/board.css": ["demo/board.css", "text/css"],
  "/client.js": ["client/client.js", "text/javascript"],
  "/page.css": ["demo/page.css", "text/css"],
  "/": ["demo/home.html", "text/html"],
};
const POLICY =
  "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";
const FRAMES_KEPT = 2000;

const time = (text) => Date.parse(text);
const iso = (milliseconds) => new Date(milliseconds).toISOString().replace(".000Z", "Z");
const mean = ({ sum, list }) => sum / list.length;

/** What the three plugins of the demo make of its events, as rows by table and key. */
function plugins(put) {
  const carriers = new Map();
  const airports = new Map();
  function carrier(kind, { carrier, airline, dep_delay_min: delay }) {
    const it = carriers.get(carrier) ?? { name: airline, flights: 0, cancelled: 0, departed: 0, delay_sum_min: 0 };
    if (kind === "flight.scheduled") it.flights += 1;
    else if (kind === "flight.cancelled") it.cancelled += 1;
    else if (kind === "flight.departed") {
      it.departed += 1;
      it.delay_sum_min += delay;
    } else return;
    carriers.set(carrier, it);
    put("carriers", carrier, { ...it, delay_mean_min: it.departed > 0 ? it.delay_sum_min / it.departed : null });
  }
  function airport(at, { origin, dep_delay_min: delay }) {
    const it = airports.get(origin) ?? { list: [], sum: 0, raised: 0, open: null };
    airports.set(origin, it);
    it.list.push([time(at), delay]);
    it.sum += delay;
    while (it.list[0][0] <= time(at) - 3_600_000) it.sum -= it.list.shift()[1];
    const alert = (status, more) =>
      put("alerts", `${origin}/${it.raised}`, { airport: origin, status, cleared_at: null, cleared_mean_delay_min: null, ...it.open, ...more });
    if (!it.open && it.list.length >= 5 && mean(it) > 30) {
      it.raised += 1;
      it.open = { raised_at: at, departures: it.list.length, mean_delay_min: mean(it) };
      alert("open", {});
    } else if (it.open && mean(it) < 20) {
      alert("cleared", { cleared_at: at, cleared_mean_delay_min: mean(it) });
      it.open = null;
    }
    const open_alert = it.open && `${origin}/${it.raised}`;
    put("airports", origin, { at, departures: it.list.length, delay_mean_min: mean(it), alerts_raised: it.raised, open_alert });
  }
  return ({ type, agg_id, at, payload }) => {
    put("flights", agg_id, payload);
    carrier(type, payload);
    if (type === "flight.departed") airport(at, payload);
  };
}

const compare = (a, b) => (a === b ? 0 : a === null || a === undefined ? -1 : b === null || b === undefined ? 1 : a < b ? -1 : 1);
const TESTS = {
  eq: (a, b) => a === b, ne: (a, b) => a !== b, gt: (a, b) => a > b, gte: (a, b) => a >= b, lt: (a, b) => a < b,
  lte: (a, b) => a <= b, in: (a, b) => b.includes(a), notin: (a, b) => !b.includes(a),
};

function holds(condition, row) {
  if (condition.and) return condition.and.every((it) => holds(it, row));
  if (condition.or) return condition.or.some((it) => holds(it, row));
  if (condition.not) return !holds(condition.not, row);
  const { column, op, value } = condition;
  const held = row[column] ?? null;
  if (op === "isnull") return held === null;
  if (op === "isnotnull") return held !== null;
  return held !== null && TESTS[op](held, value);
}

/** A query, its rows now, and the frames since it began. */
class Watched {
  clients = new Set();
  log = [];

  constructor(query, table, revision) {
    this.query = { where: [], sort: [], limit: 50, ...query };
    this.since = revision;
    this.rows = this.read(table);
  }

  read(table) {
    const { where, sort, limit, cursor } = this.query;
    const order = (a, b) => {
      for (const { column, desc } of sort) {
        const found = compare(a[column] ?? null, b[column] ?? null);
        if (found !== 0) return desc ? -found : found;
      }
      return compare(a.key, b.key);
    };
    const anchor = cursor?.values
      ? Object.fromEntries([...sort.map(({ column }, at) => [column, cursor.values[at]]), ["key", cursor.values.at(-1)]])
      : null;
    // The best so far, in order: sorting whole tables would be too slow.
    const best = [];
    for (const row of table.values()) {
      if (best.length === limit && order(row, best[limit - 1]) >= 0) continue;
      if (!where.every((it) => holds(it, row)) || (anchor && order(row, anchor) <= 0)) continue;
      let at = best.length;
      while (at > 0 && order(row, best[at - 1]) < 0) at -= 1;
      best.splice(at, 0, row);
      if (best.length > limit) best.pop();
    }
    return best;
  }

  place(row) {
    return { values: [...this.query.sort.map(({ column }) => row[column] ?? null), row.key] };
  }

  frame(op, row, old_index, new_index) {
    const { columns } = this.query;
    const shown = columns ? Object.fromEntries(["key", ...columns].map((name) => [name, row[name]])) : row;
    return { op, agg_id: row.key, row: shown, old_index, new_index, cursor: this.place(row) };
  }

  snapshot(revision) {
    const rows = this.rows.map((row, at) => this.frame("enter", row, -1, at));
    return [{ op: "reset", old_index: 0, new_index: 0, cursor: { values: null } }, ...rows, this.ready(revision, false)];
  }

  ready(revision, resumed) {
    return { op: "ready", revision, rows: this.rows.length, resumed, stream_id: `r${revision}` };
  }

  step(table, revision) {
    const next = this.read(table);
    const keys = new Set(next.map(({ key }) => key));
    const now = [...this.rows];
    const frames = [];
    for (let at = now.length - 1; at >= 0; at -= 1) {
      if (!keys.has(now[at].key)) frames.push(this.frame("leave", now.splice(at, 1)[0], at, -1));
    }
    for (const [at, row] of next.entries()) {
      const from = now.findIndex(({ key }) => key === row.key);
      if (from >= 0 && from === at && now[at] === row) continue;
      if (from >= 0) now.splice(from, 1);
      now.splice(at, 0, row);
      frames.push(this.frame(from < 0 ? "enter" : from === at ? "update" : "move", row, from, at));
    }
    this.rows = next;
    if (frames.length === 0) return;
    for (const frame of frames) frame.stream_id = `r${revision}`;
    this.log.push({ revision, frames });
    if (this.log.length > FRAMES_KEPT) this.since = this.log.shift().revision;
    for (const client of this.clients) client(frames);
  }

  /** What a client with this token has to be told. */
  since_token(token, revision) {
    const from = Number(/^r(\d+)$/.exec(token ?? "")?.[1] ?? NaN);
    if (!token) return [this.snapshot(revision)];
    if (!(from >= this.since)) return [[{ op: "gap", reason: "expired", detail: "it is too long ago" }], this.snapshot(revision)];
    return [...this.log.filter((it) => it.revision > from).map((it) => it.frames), [this.ready(revision, true)]];
  }
}

export class Host {
  revision = 1;
  tables = new Map(["flights", "carriers", "airports", "alerts"].map((name) => [name, new Map()]));
  watched = new Map();
  requests = [];
  #streams = new Set();
  #changed = new Set();
  #handle = plugins((table, key, row) => this.put(table, key, row));

  put(table, key, row) {
    this.tables.get(table).set(key, { key, ...row });
    this.#changed.add(table);
  }

  /** All that was put since the last one. */
  commit() {
    this.revision += 1;
    for (const it of this.watched.values()) {
      if (this.#changed.has(it.query.table)) it.step(this.tables.get(it.query.table), this.revision);
    }
    this.#changed.clear();
  }

  handle(events) {
    for (const event of events) this.#handle(event);
    this.commit();
  }

  /** Gives frames to `take`, a commit at a time. Answers what ends that. */
  subscribe(query, token, take) {
    const table = this.tables.get(query.table);
    if (!table) throw { code: "table_unknown", detail: `there is no table \`${query.table}\``, fix: "GET /v1/tables lists them" };
    const name = writeJson(query);
    const it = this.watched.get(name) ?? new Watched(query, table, this.revision);
    this.watched.set(name, it);
    for (const frames of it.since_token(token, this.revision)) take(frames);
    it.clients.add(take);
    return () => it.clients.delete(take);
  }

  async start(port = 0) {
    this.server = http.createServer((request, response) => this.#answer(request, response));
    this.server.on("upgrade", (request, socket, head) => this.#socket(request, upgrade(request, socket, head)));
    await new Promise((done) => this.server.listen(port, "127.0.0.1", done));
    this.url = `http://127.0.0.1:${this.server.address().port}`;
    return this;
  }

  /** Ends all connections, as a network that breaks. */
  cut() {
    for (const end of [...this.#streams]) end();
  }

  async stop() {
    this.cut();
    this.server.closeAllConnections?.();
    await new Promise((done) => this.server.close(done));
  }

  async #answer(request, response) {
    const { pathname, searchParams } = new URL(request.url, "http://host");
    this.requests.push({ method: request.method, url: request.url, headers: request.headers });
    const send = (status, type, body) =>
      response.writeHead(status, { "Content-Type": `${type}; charset=utf-8`, "Content-Security-Policy": POLICY, "Cache-Control": "no-cache" }).end(body);
    if (this.token && pathname.startsWith("/v1/") && request.headers.authorization !== `Bearer ${this.token}`) {
      return send(401, "application/problem+json", '{"code":"token_missing","detail":"this host wants a bearer token"}');
    }
    if (PAGES[pathname]) {
      const [file, type] = PAGES[pathname];
      return send(200, type, readFileSync(new URL(file, gateway)));
    }
    if (pathname === "/v1/tables") {
      return send(200, "application/json", JSON.stringify({ tables: [...this.tables.keys()].map((name) => ({ name })) }));
    }
    if (pathname !== "/v1/live") return send(404, "application/problem+json", '{"code":"path_unknown","detail":"nothing here"}');
    let query = searchParams.get("query");
    if (request.method === "POST") {
      query = "";
      for await (const chunk of request) query += chunk;
    }
    const token = request.headers["last-event-id"] ?? searchParams.get("last_event_id");
    let opened = false;
    const open = () => {
      if (opened) return;
      opened = true;
      response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-cache, no-transform" });
      response.write("retry: 300\n\n");
    };
    const take = (frames) => {
      open();
      const last = frames.at(-1);
      response.write(frames.map((frame) => `${frame === last && frame.stream_id ? `id: ${frame.stream_id}\n` : ""}event: ${frame.op}\ndata: ${writeJson(frame)}\n\n`).join(""));
    };
    try {
      const end = this.subscribe(parseJson(query), token, take);
      const cut = () => response.destroy();
      this.#streams.add(cut);
      response.on("close", () => {
        end();
        this.#streams.delete(cut);
      });
    } catch (problem) {
      send(404, "application/problem+json", JSON.stringify(problem));
    }
  }

  #socket(request, peer) {
    this.requests.push({ method: "WS", url: request.url, headers: request.headers });
    const ends = new Map();
    const say = (message) => peer.send(writeJson(message));
    const batch = (id) => (deltas) => say({ type: "batch", id, deltas });
    const queries = new Map();
    const begin = (id, query, resume) => {
      try {
        ends.set(id, this.subscribe(query, resume, batch(id)));
        queries.set(id, query);
      } catch (problem) {
        say({ type: "error", id, ...problem });
      }
    };
    peer.onmessage = ({ data }) => {
      const { action, id, query, resume, nonce, ...more } = parseJson(data);
      if (action === "ping") say({ type: "pong", nonce });
      else if (action === "auth") say({ type: "authenticated" });
      else if (action === "subscribe") {
        say({ type: "subscribed", id });
        begin(id, query, resume);
      } else if (action === "reanchor") {
        ends.get(id)();
        say({ type: "reanchored", id });
        begin(id, { ...queries.get(id), ...more });
      } else if (action === "unsubscribe") {
        ends.get(id)?.();
        ends.delete(id);
        say({ type: "unsubscribed", id });
      }
    };
    const cut = () => peer.socket.destroy();
    this.#streams.add(cut);
    peer.onclose = () => {
      for (const end of ends.values()) end();
      this.#streams.delete(cut);
    };
  }
}

/** The events of the demo, at most `max`. */
export async function events(max = Infinity) {
  const lines = createInterface({ input: createReadStream(EVENTS).pipe(createGunzip()), crlfDelay: Infinity });
  const found = [];
  for await (const line of lines) {
    if (found.length >= max) break;
    found.push(JSON.parse(line));
  }
  return found;
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const asked = (name, otherwise) => Number(process.argv[process.argv.indexOf(`--${name}`) + 1 || Infinity] ?? otherwise);
  const all = await events();
  const host = await new Host().start(asked("port", 7171));
  let at = asked("skip", 20_000);
  host.handle(all.slice(0, at));
  console.log(`${host.url}/demo/ of ${fileURLToPath(gateway)}`);
  const rate = asked("rate", 20);
  setInterval(() => {
    const next = all.slice(at, at + Math.max(1, Math.round(rate / 20)));
    at += next.length;
    if (next.length > 0) host.handle(next);
  }, Math.max(50, 1000 / rate));
}
