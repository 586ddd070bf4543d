// Claims about the packages `eventsource` and `ws` of npm, against a host.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { isDeepStrictEqual } from "node:util";

import { EventSource } from "eventsource";
import WebSocket from "ws";

import { aWebSocketIsServed, anEventSourceResumes } from "./claims.mjs";
import { converse, follow } from "./followers.mjs";
import { ADDRESS, Millrace, QUERY, Relay, eventually } from "./host.mjs";

async function rig(t) {
  const host = await Millrace.start(t);
  const relay = await Relay.start(t, host);
  await host.publish(300);
  return { host, relay };
}

function talk(t, relay, protocol, windows = {}) {
  const it = converse(WebSocket, `${relay.url.replace("http", "ws")}/v1/live/ws`, protocol);
  it.windows = windows;
  it.socket.on("error", () => {});
  t.after(() => it.socket.terminate());
  return it;
}

// At once: much of it is waiting for clients to come back.
describe("packages of npm", { concurrency: true }, () => {
  test("the package eventsource comes back by itself with exactly what it missed, or is told what it lost", async (t) => {
    const { host, relay } = await rig(t);
    const it = follow(EventSource, relay.url + ADDRESS);
    t.after(() => it.close());
    await anEventSourceResumes(t, host, relay, async (member) => structuredClone(it[member]));
  });

  test("the package ws is served in both protocols, and resumes with its token", async (t) => {
    const { host, relay } = await rig(t);
    await aWebSocketIsServed(host, relay, async (protocol, windows) => {
      const it = talk(t, relay, protocol, windows);
      return { say: it.say, look: async (member) => structuredClone(it[member]) };
    });
  });

  test("one socket of ws carries many windows, and both sides ping", async (t) => {
    const { host, relay } = await rig(t);
    const it = talk(t, relay, "millrace.live.v1");
    let pings = 0;
    it.socket.on("ping", () => (pings += 1));
    const orders = ["dep_delay_min", "scheduled"].flatMap((column) => [true, false].map((desc) => ({ column, desc })));
    const windows = orders.flatMap((order) => Array.from({ length: 20 }, (_, at) => ({ order, limit: at + 1 })));
    for (const [id, { order, limit }] of windows.entries()) {
      await it.say({ action: "subscribe", id: String(id), query: { ...QUERY, sort: [order], limit } });
    }
    await host.publish();
    for (const { column, desc } of orders) {
      const wanted = await host.rows(`order=${column}${desc ? ":desc" : ""}&limit=20`);
      const fits = ([id, { order, limit }]) => order.column !== column || order.desc !== desc || isDeepStrictEqual(it.windows[id], wanted.slice(0, limit));
      await eventually(`the windows by ${column}, ${desc}`, () => [...windows.entries()].every(fits));
    }
    // A message for each commit and window: nothing of a commit stands alone.
    const batches = it.heard.filter(({ type }) => type === "batch");
    assert.ok(batches.every(({ deltas }) => new Set(deltas.map(({ stream_id }) => stream_id)).size <= 2));
    await eventually("the host pings, and hears the answers", () => pings >= 4);
    assert.equal(it.closed, null);
    const answered = new Promise((done) => it.socket.once("pong", (data) => done(data.toString())));
    it.socket.ping("are you there");
    assert.equal(await answered, "are you there");
  });

  test("a host that is restarted answers with a stream or not at all: any other status is the end of an EventSource", async (t) => {
    const host = await Millrace.start(t);
    await host.publish(60);
    const seen = new Map();
    let over = false;
    const look = async () => {
      while (!over) {
        const enough = new AbortController();
        const said = await fetch(host.url + ADDRESS, { signal: enough.signal }).then(({ status }) => status, () => "nothing");
        seen.set(said, (seen.get(said) ?? 0) + 1);
        enough.abort();
      }
    };
    const looks = look();
    await eventually("it answers", () => seen.get(200) > 3);
    await host.restart();
    const before = seen.get(200);
    await eventually("it answers again", () => seen.get(200) > before + 3);
    over = true;
    await looks;
    assert.deepEqual(new Set(seen.keys()), new Set([200, "nothing"]), [...seen].join("; "));
  });
});
