// Claims about many queries over one WebSocket.

import assert from "node:assert/strict";
import test from "node:test";

import { connect, live } from "../../host/src/gateway/client/client.js";
import { Clock, Fetches, enter, gap, leave, ready, reset, settle, sockets, update } from "./fakes.mjs";

const url = "https://host.test:7070";
const keys = (view) => view.rows.map((row) => row.key).join("");

async function dial(t, options = {}) {
  const clock = new Clock(t);
  const { Socket, all } = sockets();
  const connection = connect(url, { WebSocket: Socket, ...options });
  t.after(() => connection.close());
  await settle();
  return { clock, connection, all };
}

/** Two views, `things` with id 1 and `others` with id 2, both live. */
async function two(t, options) {
  const rig = await dial(t, options);
  const told = { things: [], others: [] };
  const watch = (table) =>
    rig.connection.live({ table, limit: 5 }, (view, change) => {
      told[table].push(change.status ?? change.code ?? (change.type === "rows" ? keys(view) : change.type));
    });
  const things = watch("things");
  const others = watch("others");
  await rig.all[0].open();
  await rig.all[0].snapshot("1", "t1", 1, "a", "b");
  await rig.all[0].snapshot("2", "o1", 1, "x");
  rig.all[0].sent.length = 0;
  return { ...rig, socket: rig.all[0], things, others, told };
}

test("two views share a socket, and each has its own rows", async (t) => {
  const { all, connection } = await dial(t);
  assert.deepEqual([all[0].href, all[0].protocol], ["wss://host.test:7070/v1/live/ws", "millrace.live.v1"]);
  const things = connection.live({ table: "things", limit: 5 });
  assert.deepEqual(all[0].sent, []);
  await all[0].open();
  const others = connection.live({ table: "others" });
  assert.deepEqual(all[0].sent, [
    { action: "subscribe", id: "1", query: { table: "things", limit: 5 } },
    { action: "subscribe", id: "2", query: { table: "others" } },
  ]);
  await all[0].say({ type: "subscribed", id: "1" });
  await all[0].snapshot("2", "o1", 3, "x");
  assert.deepEqual([keys(things), keys(others), things.status, others.status], ["", "x", "connecting", "live"]);
  // A snapshot may come in several batches.
  await all[0].batch("1", undefined, reset, enter("a", 0));
  await all[0].batch("1", undefined, enter("b", 1));
  assert.equal(keys(things), "");
  await all[0].batch("1", undefined, ready("t1", 4));
  assert.deepEqual([keys(things), things.revision], ["ab", 4]);
  await all[0].batch("1", "t2", leave("a", 0), enter("c", 1));
  await all[0].batch("7", "t2", enter("z", 0));
  assert.deepEqual([keys(things), keys(others), all.length], ["bc", "x", 1]);
});

test("a lost socket is opened again, and each view goes on after its own token", async (t) => {
  const { clock, all, socket, things, others, told } = await two(t);
  await socket.batch("1", "t2", enter("c", 2));
  await socket.drop();
  assert.deepEqual([things.status, others.status, things.error.code], ["catching-up", "catching-up", "connection_lost"]);
  await clock.tick(1000);
  await all[1].open();
  assert.deepEqual(all[1].sent, [
    { action: "subscribe", id: "3", query: { table: "things", limit: 5 }, resume: "t2" },
    { action: "subscribe", id: "4", query: { table: "others", limit: 5 }, resume: "o1" },
  ]);
  await all[1].batch("1", "t3", enter("z", 0));
  await all[1].batch("3", "t3", leave("a", 0));
  await all[1].batch("3", undefined, ready("t3", 3, 2, true));
  await all[1].batch("4", undefined, gap("expired"));
  await all[1].snapshot("4", "o9", 9, "y");
  assert.deepEqual([keys(things), keys(others), things.status, others.status], ["bc", "y", "live", "live"]);
  assert.deepEqual([things.gaps, others.gaps], [0, 1]);
  assert.deepEqual(told.others, ["x", "live", "connection_lost", "catching-up", "reset", "gap", "y", "live"]);
});

test("attempts become rarer until one of them brings rows", async (t) => {
  const { clock, all, socket } = await two(t);
  await socket.drop();
  for (const [index, wait] of [1000, 2000, 4000, 8000, 16000, 30000, 30000].entries()) {
    await clock.tick(wait - 1);
    assert.equal(all.length, index + 1);
    await clock.tick(1);
    assert.equal(all.length, index + 2);
    if (index < 6) await all.at(-1).drop();
  }
  await all.at(-1).open();
  await all.at(-1).snapshot(all.at(-1).sent[0].id, "t5", 1);
  await all.at(-1).drop();
  const { length } = all;
  await clock.tick(1000);
  assert.equal(all.length, length + 1);
});

test("after reanchor the old window's frames are dropped until the host has moved it", async (t) => {
  const { socket, things, others } = await two(t);
  things.reanchor({ values: ["B", "b"] }, 2);
  things.reanchor({ values: ["C", "c"] });
  assert.deepEqual(socket.sent, [
    { action: "reanchor", id: "1", cursor: { values: ["B", "b"] }, limit: 2 },
    { action: "reanchor", id: "1", cursor: { values: ["C", "c"] } },
  ]);
  assert.equal(things.status, "catching-up");
  await socket.batch("1", "t2", enter("z", 0));
  await socket.batch("2", "o2", enter("y", 1));
  await socket.say({ type: "reanchored", id: "1" });
  await socket.snapshot("1", "t3", 3, "c", "d");
  assert.deepEqual([keys(things), keys(others)], ["ab", "xy"], "the first move is not the last");
  await socket.say({ type: "reanchored", id: "1" });
  await socket.snapshot("1", "t4", 4, "d", "e");
  assert.deepEqual([keys(things), things.status, things.resets], ["de", "live", 0]);
});

test("a window goes back to the head", async (t) => {
  const { socket, things } = await two(t);
  things.reanchor(null);
  assert.deepEqual(socket.sent, [{ action: "reanchor", id: "1", cursor: { values: null } }]);
});

test("a window that was moved while the socket was gone is subscribed where it is", async (t) => {
  const { clock, all, socket, things } = await two(t);
  things.reanchor({ values: ["B", "b"] });
  await socket.drop();
  things.reanchor(undefined, 3);
  await clock.tick(1000);
  await all[1].open();
  assert.deepEqual(all[1].sent[0], { action: "subscribe", id: "3", query: { table: "things", limit: 3, cursor: { values: ["B", "b"] } } });
  await all[1].snapshot("3", "t4", 4, "c");
  assert.deepEqual([keys(things), things.status], ["c", "live"]);
});

test("a move that the host refuses leaves the window where it was", async (t) => {
  const { clock, socket, things } = await two(t);
  things.reanchor(undefined, 5000);
  await socket.say({ type: "error", id: "1", code: "query_invalid", detail: "limit", fix: "less" });
  assert.deepEqual([things.error.code, things.error.final, things.status], ["query_invalid", false, "catching-up"]);
  await clock.tick(1000);
  assert.deepEqual(socket.sent.slice(1), [
    { action: "unsubscribe", id: "1" },
    { action: "subscribe", id: "3", query: { table: "things", limit: 5 }, resume: "t1" },
  ]);
  await socket.batch("3", undefined, ready("t1", 2, 2, true));
  assert.deepEqual([keys(things), things.status], ["ab", "live"]);
});

test("a frame that does not fit costs one view a fresh start, under another id", async (t) => {
  const { clock, all, socket, things, others } = await two(t);
  await socket.batch("1", "t2", leave("z", 0));
  await socket.batch("1", "t3", leave("a", 0));
  assert.deepEqual([things.status, keys(things), things.resets, others.status], ["reset", "ab", 1, "live"]);
  await clock.tick(1000);
  assert.deepEqual(socket.sent, [
    { action: "unsubscribe", id: "1" },
    { action: "subscribe", id: "3", query: { table: "things", limit: 5 } },
  ]);
  await socket.batch("1", "t4", leave("a", 0));
  await socket.snapshot("3", "t4", 4, "b");
  assert.deepEqual([keys(things), things.status, others.resets, all.length], ["b", "live", 0, 1]);
});

test("an error of one view is its own, and one of the socket is told to all", async (t) => {
  const { clock, socket, things, others, told } = await two(t);
  await socket.say({ type: "error", code: "message_invalid", detail: "not JSON" });
  assert.deepEqual([things.error.code, others.error.code], ["message_invalid", "message_invalid"]);
  await socket.say({ type: "error", id: "2", code: "host_busy", detail: "later", retry_ms: 500 });
  await clock.tick(500);
  assert.deepEqual(socket.sent.slice(1), [{ action: "subscribe", id: "3", query: { table: "others", limit: 5 }, resume: "o1" }]);
  await socket.batch("3", undefined, { op: "error", code: "live_view_failed", detail: "given up", retry_ms: null });
  await clock.tick(1000);
  assert.equal(socket.sent.at(-1).id, "4");
  await socket.say({ type: "error", id: "4", code: "table_unknown", detail: "gone", fix: "deploy it" });
  assert.deepEqual([others.status, others.error.final, things.status], ["closed", true, "live"]);
  await socket.batch("1", "t2", enter("c", 2));
  assert.equal(keys(things), "abc");
  assert.deepEqual(told.others.slice(2), ["message_invalid", "host_busy", "catching-up", "live_view_failed", "table_unknown", "closed"]);
});

/** Answers `POST /v1/session` with tickets. */
function desk(host) {
  for (let number = 1; number < 9; number += 1) host.answers.push(new Response(`{"tenant":"a","ticket":"t${number}"}`));
  return host;
}

test("a token is turned into a ticket for each socket, and can be renewed on it", async (t) => {
  let asked = 0;
  const host = desk(new Fetches());
  const { connection, all, clock } = await dial(t, { token: () => `secret-${++asked}`, fetch: host.fetch });
  const view = connection.live({ table: "things" });
  assert.deepEqual([host.last.href, host.last.text, host.last.headers.Authorization], [`${url}/v1/session`, '{"ticket":true}', "Bearer secret-1"]);
  assert.equal(all[0].href, "wss://host.test:7070/v1/live/ws?ticket=t1");
  await all[0].open();
  assert.equal(all[0].sent[0].action, "subscribe");
  await connection.authenticate();
  await all[0].say({ type: "authenticated" });
  assert.deepEqual(all[0].sent.slice(1), [{ action: "auth", token: "secret-2" }]);
  await all[0].drop();
  await clock.tick(1000);
  assert.equal(new URL(all[1].href).searchParams.get("ticket"), "t2");
  assert.equal(view.status, "connecting");
});

test("a token that gets no ticket is the end, or asked for again", async (t) => {
  const host = new Fetches();
  host.refuse(401, { code: "token_expired", detail: "too old" });
  const { connection, all, clock } = await dial(t, { token: () => "secret", fetch: desk(host).fetch });
  const view = connection.live({ table: "things" });
  assert.equal(all.length, 0);
  await clock.tick(1000);
  assert.deepEqual([all.length, host.calls.length, view.status], [1, 2, "connecting"]);
  const other = new Fetches();
  const { Socket, all: none } = sockets();
  other.refuse(403, { code: "origin_refused", detail: "not from here" });
  const another = connect(url, { WebSocket: Socket, token: "secret", fetch: other.fetch });
  t.after(() => another.close());
  const refused = another.live({ table: "things" });
  await clock.tick(100_000);
  assert.deepEqual([refused.status, refused.error.code, none.length, other.calls.length], ["closed", "origin_refused", 0, 1]);
  desk(other);
  const later = another.live({ table: "things" });
  await settle();
  assert.deepEqual([later.status, none.length, other.calls.length], ["connecting", 1, 2]);
});

test("without a ticket a window that was being moved is at its end as well", async (t) => {
  const host = desk(new Fetches());
  const { clock, socket, things } = await two(t, { token: "secret", fetch: host.fetch });
  things.reanchor({ values: ["B", "b"] });
  host.answers.length = 0;
  host.refuse(401, { code: "token_expired", detail: "too old" });
  await socket.drop();
  await clock.tick(1000);
  assert.deepEqual([things.status, things.error.code, things.error.final], ["closed", "token_expired", true]);
});

test("a host that stops says when to come back", async (t) => {
  const { clock, all, socket, things } = await two(t);
  await socket.say({ type: "error", code: "host_stopping", detail: "bye", retry_ms: 7000 });
  assert.deepEqual([socket.closed, things.status, things.error.code], [true, "catching-up", "host_stopping"]);
  await clock.tick(6999);
  assert.equal(all.length, 1);
  await clock.tick(1);
  assert.equal(all.length, 2);
});

test("the host is asked whether it lives, and given up when it does not answer", async (t) => {
  const { clock, all, socket, things } = await two(t);
  for (let beat = 0; beat < 6; beat += 1) {
    await clock.tick(15_000);
    await socket.say({ type: "pong" });
  }
  assert.deepEqual(socket.sent, Array(6).fill({ action: "ping" }));
  assert.equal(all.length, 1);
  await clock.tick(61_000);
  assert.ok(socket.closed);
  assert.equal(all.length, 2);
  assert.equal(things.status, "catching-up");
});

test("close of a view ends its subscription, and close of the connection everything", async (t) => {
  const { clock, connection, all, socket, things, others } = await two(t);
  things.close();
  assert.deepEqual(socket.sent, [{ action: "unsubscribe", id: "1" }]);
  await socket.batch("1", "t2", leave("a", 0));
  await socket.batch("2", "o2", update("x", 0));
  assert.deepEqual([things.status, keys(things), others.status], ["closed", "ab", "live"]);
  await socket.drop();
  await clock.tick(1000);
  await all[1].open();
  assert.deepEqual(all[1].sent.map(({ query }) => query.table), ["others"]);
  connection.close();
  await clock.tick(100_000);
  assert.deepEqual([others.status, all[1].closed, clock.timers], ["closed", true, 0]);
});

test("a view that waits to begin anew is closed with the connection", async (t) => {
  const { clock, connection, socket, things } = await two(t);
  await socket.batch("1", "t2", leave("z", 0));
  connection.close();
  await clock.tick(100_000);
  assert.deepEqual([things.status, clock.timers, socket.sent], ["closed", 0, [{ action: "unsubscribe", id: "1" }, { action: "unsubscribe", id: "2" }]]);
});

test("one query may have a socket of its own", async (t) => {
  const clock = new Clock(t);
  const { Socket, all } = sockets();
  const view = live({ url: () => "http://host.test/?ticket=1", table: "things", transport: "ws", WebSocket: Socket });
  await settle();
  assert.equal(all[0].href, "ws://host.test/v1/live/ws");
  await all[0].open();
  assert.deepEqual(all[0].sent, [{ action: "subscribe", id: "1", query: { table: "things" } }]);
  await all[0].snapshot("1", "t1", 1, "a");
  assert.equal(keys(view), "a");
  view.close();
  assert.deepEqual([view.status, all[0].closed, clock.timers], ["closed", true, 0]);
});
