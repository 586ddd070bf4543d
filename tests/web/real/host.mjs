// A host as a process of its own, with the sample plugin `flight-board`; and a relay in front of it, which loses
// connections when it is told to. For tests of clients that are not ours.
//
// MILLRACE_BINARY is the host's executable, MILLRACE_GUEST the plugin.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { openSync, readFileSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { isDeepStrictEqual } from "node:util";

import { events } from "../host.mjs";

const PATIENCE_MS = 40_000;
const ORDER = "order=dep_delay_min:desc&limit=20";
/** A query whose window changes with most commits. */
export const QUERY = { table: "flights", sort: [{ column: "dep_delay_min", desc: true }], limit: 20 };
export const ADDRESS = `/v1/live?table=flights&${ORDER}`;

/** Waits until a look finds what it looks for, and answers it. */
export async function eventually(what, look) {
  const begun = Date.now();
  for (;;) {
    const found = await look();
    if (found) return found;
    if (Date.now() - begun > PATIENCE_MS) assert.fail(`this did not come: ${typeof what === "function" ? await what() : what}`);
    await pause(10);
  }
}

async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await new Promise((done) => server.on("listening", done));
  const { port } = server.address();
  await new Promise((done) => server.close(done));
  return port;
}

const all = await events(3000);

export class Millrace {
  #published = 0;

  static async start(t) {
    const host = new Millrace();
    host.folder = await mkdtemp(join(tmpdir(), "millrace-clients-"));
    host.port = await freePort();
    host.url = `http://127.0.0.1:${host.port}`;
    t.after(async () => {
      await host.#end("SIGKILL");
      await rm(host.folder, { recursive: true, force: true, maxRetries: 5 });
    });
    await host.#spawn();
    await host.#ask("/v1/plugins", {
      method: "POST",
      headers: { "Content-Type": "application/wasm" },
      body: await readFile(process.env.MILLRACE_GUEST),
    });
    return host;
  }

  async #spawn() {
    const said = join(this.folder, "stderr");
    const words = ["serve", "--bind", `127.0.0.1:${this.port}`, "--data", join(this.folder, "store")];
    // Often enough that pings are seen, and that they would disturb if they could.
    words.push("--set", "gateway.sse_heartbeat_ms=100");
    const child = spawn(process.env.MILLRACE_BINARY, words, { stdio: ["ignore", "ignore", openSync(said, "w")] });
    this.child = child;
    this.ended = new Promise((done) => child.on("close", done));
    await eventually(() => readFileSync(said, "utf8"), async () => {
      assert.equal(child.exitCode, null, `the host ended: ${readFileSync(said, "utf8")}`);
      return fetch(`${this.url}/readyz`).then(({ ok }) => ok, () => false);
    });
  }

  async #end(signal) {
    this.child.kill(signal);
    await this.ended;
  }

  /** Ends the host in good order, does something, and starts it again on its store. */
  async restart(meanwhile = async () => {}) {
    await this.#end("SIGTERM");
    await meanwhile();
    await this.#spawn();
  }

  async #ask(path, options) {
    const answer = await fetch(this.url + path, options);
    const text = await answer.text();
    assert.ok(answer.ok, `${path}: ${answer.status} ${text}`);
    return text;
  }

  /** Publishes the next events of the demo's month, and waits until the plugin has done them. */
  async publish(count = 60) {
    const next = all.slice(this.#published, this.#published + count);
    assert.equal(next.length, count, "there are events enough");
    this.#published += count;
    const body = next.map((event) => `${JSON.stringify(event)}\n`).join("");
    await this.#ask("/v1/events", { method: "POST", headers: { "Content-Type": "application/x-ndjson" }, body });
    await eventually("the plugin handles all events", async () => {
      const { plugins } = JSON.parse(await this.#ask("/v1/plugins"));
      return plugins.every(({ state, lag_events }) => state === "running" && lag_events === 0);
    });
  }

  /** What a query of the store answers now, as rows of a window. */
  async rows(query = ORDER) {
    const { rows } = JSON.parse(await this.#ask(`/v1/tables/flights?${query}`));
    return rows.map(({ key, values }) => ({ ...values, key }));
  }

  /** Waits until a client's rows are those of the store. */
  async shownBy(look, query) {
    const wanted = await this.rows(query);
    const differs = async () => `the rows of the store: ${JSON.stringify(wanted)}; there are ${JSON.stringify(await look())}`;
    await eventually(differs, async () => isDeepStrictEqual(await look(), wanted));
    return wanted;
  }
}

/** Passes bytes on to a host, and remembers what clients said. */
export class Relay {
  /** All bytes from clients, as text. */
  heard = "";
  #sockets = new Set();

  static async start(t, host) {
    const relay = new Relay();
    relay.server = createServer((client) => relay.#pass(client, connect(host.port, "127.0.0.1")));
    relay.server.listen(0, "127.0.0.1");
    await new Promise((done) => relay.server.on("listening", done));
    relay.url = `http://127.0.0.1:${relay.server.address().port}`;
    t.after(() => {
      relay.server.close();
      relay.cut();
    });
    return relay;
  }

  #pass(client, host) {
    for (const [from, to] of [[client, host], [host, client]]) {
      this.#sockets.add(from);
      from.on("error", () => {});
      from.on("data", (bytes) => to.write(bytes));
      from.on("end", () => to.end());
      from.on("close", () => {
        this.#sockets.delete(from);
        to.destroy();
      });
    }
    client.on("data", (bytes) => (this.heard += bytes.toString("latin1")));
  }

  /** Loses all connections. */
  cut() {
    for (const socket of this.#sockets) socket.resetAndDestroy?.() ?? socket.destroy();
  }

  /** The values of a header that clients sent, in order. */
  sent(header) {
    return [...this.heard.matchAll(new RegExp(`^${header}: (.*)\r$`, "gim"))].map(([, value]) => value);
  }
}
