// Claims about a query over server-sent events.

import assert from "node:assert/strict";
import test from "node:test";

import { cursorOf, live } from "../../host/src/gateway/client/client.js";
import { Clock, Fetches, commit, enter, event, gap, leave, move, ready, reset, row, settle, snapshot, sockets, sources, update } from "./fakes.mjs";
import { Oracle } from "./oracle.mjs";

const url = "http://host.test:7070";
const keys = (view) => view.rows.map((row) => row.key).join("");

/** A view over a `Fetches`, with everything that its listener was told. */
async function watch(t, options = {}) {
  const clock = new Clock(t);
  const host = new Fetches();
  const told = [];
  const seen = [];
  const view = live({ url, table: "things", limit: 9, fetch: host.fetch, ...options }, (view, change) => {
    const { type } = change;
    told.push(type === "status" ? change.status : type === "error" ? change.code : type === "gap" ? `gap ${change.reason}` : type);
    if (type === "rows") seen.push(keys(view));
  });
  t.after(() => view.close());
  await settle();
  return { clock, host, view, told, seen };
}

test("rows are shown when all are there, and then commit by commit", async (t) => {
  const { host, view, told, seen } = await watch(t);
  assert.equal(host.last.href, `${url}/v1/live`);
  assert.equal(host.last.text, '{"table":"things","limit":9}');
  assert.equal(host.last.headers["Last-Event-ID"], undefined);
  const whole = snapshot("t1", 7, "a", "b");
  await host.last.send(whole.slice(0, -20));
  assert.deepEqual([view.status, keys(view), view.revision], ["connecting", "", null]);
  await host.last.send(whole.slice(-20));
  assert.deepEqual([view.status, keys(view), view.revision], ["live", "ab", 7]);
  const before = view.rows;
  await host.last.send(event({ ...enter("c", 0), stream_id: "t2" }));
  await host.last.send(event({ ...leave("a", 1), stream_id: "t2" }));
  assert.equal(view.rows, before, "half a commit is not seen");
  await host.last.send(event({ ...move("b", 1, 0), stream_id: "t2" }, "t2"));
  assert.equal(keys(view), "bc");
  assert.notEqual(view.rows, before, "a commit makes another array");
  assert.equal(keys({ rows: before }), "ab");
  await host.last.send(commit("t3", update("b", 0, { name: "new" }), enter("d", 2)) + commit("t4", leave("c", 1)));
  assert.deepEqual(seen, ["ab", "bc", "bcd", "bd"]);
  assert.deepEqual(told, ["rows", "live", "rows", "rows", "rows"]);
});

test("the stream may be cut into pieces anywhere, and lines may end in each way", async (t) => {
  const { clock, host, view } = await watch(t);
  const text = `\n: ping\nretry: 4000\nevent: reset\ndata: {"op":"reset",\ndata: "old_index":0}\n\n` +
    event({ ...enter("a", 0), row: row("a", { name: "Zürich ✈" }) }) + event(ready("t1"), "t1");
  for (const ending of ["\n", "\r\n"]) {
    const bytes = new TextEncoder().encode(text.replaceAll("\n", ending));
    for (const byte of bytes) host.last.send(Uint8Array.of(byte));
    await settle();
    assert.deepEqual([view.status, view.rows[0]?.name], ["live", "Zürich ✈"]);
    await host.last.end();
    await clock.tick(3999);
    const { length } = host.calls;
    await clock.tick(1);
    assert.equal(host.calls.length, length + 1, "after what `retry` said");
  }
});

test("half a commit that was cut off is forgotten, and comes whole after the token", async (t) => {
  const { clock, host, view, told, seen } = await watch(t);
  await host.last.send(snapshot("t1", 1, "a", "b"));
  await host.last.send(commit("t2", enter("c", 2)));
  await host.last.send(event({ ...leave("a", 0), stream_id: "t3" }));
  await host.last.cut();
  assert.deepEqual([view.status, keys(view)], ["catching-up", "abc"]);
  assert.equal(view.error.code, "connection_lost");
  await clock.tick(1000);
  assert.equal(host.last.headers["Last-Event-ID"], "t2");
  await host.last.send(commit("t3", leave("a", 0), enter("d", 2)));
  assert.deepEqual([view.status, keys(view)], ["catching-up", "bcd"]);
  await host.last.send(event(ready("t3", 9, 3, true), "t3"));
  assert.deepEqual([view.status, view.revision, view.error, view.gaps], ["live", 9, null, 0]);
  assert.deepEqual(seen, ["ab", "abc", "bcd", "bcd"]);
  assert.deepEqual(told, ["rows", "live", "rows", "connection_lost", "catching-up", "rows", "rows", "live"]);
});

test("a cut in the middle of the first rows begins them anew", async (t) => {
  const { clock, host, view } = await watch(t);
  await host.last.send(event(reset) + event(enter("a", 0)));
  await host.last.cut();
  await clock.tick(1000);
  assert.equal(host.last.headers["Last-Event-ID"], undefined);
  await host.last.send(snapshot("t1", 1, "b"));
  assert.deepEqual([view.status, keys(view)], ["live", "b"]);
});

test("a gap is told, and the old rows stay until the new ones are complete", async (t) => {
  const { clock, host, view, told } = await watch(t);
  await host.last.send(snapshot("t1", 1, "a"));
  await host.last.send(event(gap("expired")) + event(reset) + event(enter("b", 0)));
  assert.deepEqual([view.status, keys(view), view.gaps], ["reset", "a", 1]);
  await host.last.cut();
  assert.equal(view.status, "reset");
  await clock.tick(1000);
  assert.equal(host.last.headers["Last-Event-ID"], undefined);
  await host.last.send(snapshot("t5", 5, "b", "c"));
  assert.deepEqual([view.status, keys(view)], ["live", "bc"]);
  await host.last.send(snapshot("t6", 6, "d"));
  assert.deepEqual(told.slice(2), ["reset", "gap expired", "connection_lost", "rows", "live", "reset", "rows", "live"]);
});

test("a frame that does not fit leads to a fresh start, and is counted", async (t) => {
  const { clock, host, view, told } = await watch(t);
  await host.last.send(snapshot("t1", 1, "a"));
  const first = host.last;
  await host.last.send(commit("t2", leave("b", 0)) + commit("t3", enter("c", 0)));
  assert.ok(first.aborted);
  assert.deepEqual([view.status, keys(view), view.resets, view.error.code], ["reset", "a", 1, "frame_misfit"]);
  await clock.tick(1000);
  assert.equal(host.last.headers["Last-Event-ID"], undefined);
  await host.last.send(snapshot("t4", 4, "c"));
  assert.deepEqual([view.status, keys(view)], ["live", "c"]);
  assert.deepEqual(told, ["rows", "live", "frame_misfit", "reset", "rows", "live"]);
});

test("attempts become rarer, up to a bound, and each waits up to half as long again", async (t) => {
  const { clock, host } = await watch(t);
  const waits = async (random) => {
    clock.random = random;
    const found = [];
    for (let attempt = 0; attempt < 7; attempt += 1) {
      host.answers.push(new TypeError("refused"));
      const { length } = host.calls;
      let waited = 0;
      if (attempt === 0) await host.last.cut();
      while (host.calls.length === length) {
        await clock.tick(500);
        waited += 500;
      }
      found.push(waited);
    }
    host.answers.length = 0;
    await clock.tick(60_000);
    return found;
  };
  assert.deepEqual(await waits(0), [1000, 2000, 4000, 8000, 16000, 30000, 30000]);
  await host.last.send(snapshot("t1", 1));
  assert.deepEqual(await waits(1), [1500, 3000, 6000, 12000, 24000, 45000, 45000]);
});

test("when the browser is online again, or its tab is seen, nobody waits", async (t) => {
  const events = new EventTarget();
  const { addEventListener, removeEventListener } = globalThis;
  globalThis.addEventListener = events.addEventListener.bind(events);
  globalThis.removeEventListener = events.removeEventListener.bind(events);
  globalThis.document = { visibilityState: "visible" };
  t.after(() => {
    Object.assign(globalThis, { addEventListener, removeEventListener });
    delete globalThis.document;
  });
  const { clock, host, view } = await watch(t);
  const happens = async (type) => {
    events.dispatchEvent(new Event(type));
    await settle();
    return host.calls.length;
  };
  await host.last.send(snapshot("t1", 1, "a"));
  await host.last.cut();
  assert.equal(await happens("online"), 2);
  assert.equal(host.last.headers["Last-Event-ID"], "t1");
  await host.last.send(event(ready("t1", 1, 1, true), "t1"));
  assert.equal(await happens("visibilitychange"), 2, "it is connected, and was not silent");
  assert.equal(await happens("online"), 3, "the old connection may be dead without a sign");
  assert.ok(host.calls[1].aborted);
  assert.equal(view.status, "catching-up");
  await host.last.cut();
  globalThis.document.visibilityState = "hidden";
  assert.equal(await happens("visibilitychange"), 3);
  globalThis.document.visibilityState = "visible";
  assert.equal(await happens("visibilitychange"), 4);
  view.close();
  assert.equal(await happens("online"), 4);
  assert.equal(clock.timers, 0);
});

test("a connection that is silent for three heartbeats is given up", async (t) => {
  const { clock, host } = await watch(t);
  await host.last.send(snapshot("t1", 1, "a"));
  for (let beat = 0; beat < 10; beat += 1) {
    await clock.tick(15_000);
    await host.last.send(": ping\n\n");
  }
  assert.equal(host.calls.length, 1);
  await clock.tick(61_000);
  assert.ok(host.calls[0].aborted);
  assert.equal(host.calls[1].headers["Last-Event-ID"], "t1");
});

test("what the host says before it closes is told, and the time that it names is kept", async (t) => {
  const { clock, host, view, told } = await watch(t);
  await host.last.send(snapshot("t1", 1, "a"));
  await host.last.send(event({ op: "error", code: "host_stopping", detail: "bye", fix: "wait", retry_ms: 7000 }));
  assert.deepEqual([view.status, view.error.code, view.error.final], ["catching-up", "host_stopping", false]);
  await clock.tick(6999);
  assert.equal(host.calls.length, 1);
  await clock.tick(1);
  assert.equal(host.last.headers["Last-Event-ID"], "t1");
  assert.deepEqual(told, ["rows", "live", "host_stopping", "catching-up"]);
});

test("what the host refuses is not asked again", async (t) => {
  const clock = new Clock(t);
  const host = new Fetches();
  host.refuse(400, { code: "query_invalid", detail: "no such column", fix: "look" });
  const told = [];
  const view = live({ url, table: "things", fetch: host.fetch }, (_, change) => told.push(change));
  await clock.tick(100_000);
  assert.equal(host.calls.length, 1);
  assert.deepEqual(told, [
    { type: "error", code: "query_invalid", detail: "no such column", fix: "look", final: true },
    { type: "status", status: "closed" },
  ]);
  assert.equal(clock.timers, 0);
  await assert.rejects(async () => { for await (const rows of view) assert.fail(rows); }, { code: "query_invalid" });
});

test("what passes by itself is asked again", async (t) => {
  const { clock, host, view } = await watch(t);
  await host.last.send(snapshot("t1", 1, "a"));
  host.refuse(503, { code: "host_stopping", detail: "bye" }, { "retry-after": "5" });
  host.refuse(409, { code: "rate", detail: "slowly" }, { "retry-after": "2" });
  host.answers.push(new Response("<html>", { headers: { "content-type": "text/html" } }));
  await host.last.end();
  await clock.tick(1000);
  assert.equal(view.error.code, "host_stopping");
  await clock.tick(5000);
  assert.equal(view.error.code, "rate");
  await clock.tick(2000);
  assert.equal(view.error.code, "http_200");
  await clock.tick(8000);
  assert.equal(host.calls.length, 5);
  assert.equal(host.last.headers["Last-Event-ID"], "t1");
});

test("a token is sent, and one from a function is asked for again", async (t) => {
  let asked = 0;
  const { clock, host, view } = await watch(t, { token: async () => `secret-${++asked}` });
  assert.equal(host.last.headers.Authorization, "Bearer secret-1");
  host.refuse(401, { code: "token_expired", detail: "too old" });
  await host.last.cut();
  await clock.tick(1000);
  assert.deepEqual([view.error.code, view.status], ["token_expired", "connecting"]);
  await clock.tick(2000);
  assert.equal(host.last.headers.Authorization, "Bearer secret-3");
});

test("a fixed token that is refused is the end", async (t) => {
  const { clock, host, view } = await watch(t, { token: "secret" });
  assert.equal(host.last.headers.Authorization, "Bearer secret");
  host.refuse(401, { code: "token_expired", detail: "too old" });
  await host.last.cut();
  await clock.tick(1000);
  assert.deepEqual([view.error.code, view.status], ["token_expired", "closed"]);
});

test("reanchor shows nothing of the old window any more", async (t) => {
  const { host, view, seen } = await watch(t, { sort: [{ column: "name" }] });
  await host.last.send(snapshot("t1", 1, "a", "b"));
  const old = host.last;
  const place = cursorOf(view.rows[1]);
  view.reanchor(place, 3);
  assert.equal(view.status, "catching-up");
  await settle();
  assert.ok(old.aborted);
  assert.deepEqual(host.last.body, { table: "things", sort: [{ column: "name" }], limit: 3, cursor: { values: ["B", "b"] } });
  assert.equal(host.last.headers["Last-Event-ID"], undefined);
  assert.equal(keys(view), "ab", "until the new one is there");
  await host.last.send(snapshot("t2", 2, "c"));
  assert.deepEqual([view.status, keys(view)], ["live", "c"]);
  view.reanchor(null);
  await settle();
  assert.deepEqual([host.last.body.cursor, host.last.body.limit], [null, 3]);
  assert.deepEqual(seen, ["ab", "c"]);
});

test("a place that the host refuses leaves the window where it was", async (t) => {
  const { clock, host, view } = await watch(t);
  await host.last.send(snapshot("t1", 1, "a"));
  host.refuse(400, { code: "query_invalid", detail: "the cursor has 3 values" });
  view.reanchor({ values: [1, 2, 3] });
  await settle();
  assert.deepEqual([view.error.code, view.error.final], ["query_invalid", false]);
  await clock.tick(2000);
  assert.deepEqual([host.last.body.cursor, host.last.headers["Last-Event-ID"]], [undefined, "t1"]);
  await host.last.send(event(ready("t1", 1, 1, true), "t1"));
  assert.deepEqual([view.status, keys(view)], ["live", "a"]);
  // What is refused once the window has moved is the query as it is now.
  view.reanchor(null, 4);
  await settle();
  await host.last.send(snapshot("t2", 2, "b"));
  host.refuse(404, { code: "table_unknown", detail: "gone" });
  await host.last.cut();
  await clock.tick(1000);
  assert.deepEqual([view.status, view.error.code], ["closed", "table_unknown"]);
});

test("after close nothing is told and nothing waits", async (t) => {
  const { clock, host, view, told } = await watch(t);
  await host.last.send(snapshot("t1", 1, "a"));
  view.close();
  await clock.tick(100_000);
  assert.ok(host.last.aborted);
  assert.deepEqual([host.calls.length, clock.timers, view.status, keys(view)], [1, 0, "closed", "a"]);
  assert.deepEqual(told, ["rows", "live", "closed"]);
  view.close();
});

test("close in a listener ends what came with it", async (t) => {
  new Clock(t);
  const host = new Fetches();
  const seen = [];
  live({ url, table: "things", fetch: host.fetch }, (view, { type }) => {
    if (type === "rows") seen.push(keys(view));
    if (seen.length === 2) view.close();
  });
  await settle();
  await host.last.send(snapshot("t1", 1, "a") + commit("t2", enter("b", 1)) + commit("t3", enter("c", 2)));
  assert.deepEqual(seen, ["a", "ab"]);
});

test("close at a gap ends what came with it", async (t) => {
  new Clock(t);
  const { Socket, all } = sockets();
  const told = [];
  const view = live({ url, table: "things", transport: "ws", WebSocket: Socket }, (view, { type }) => {
    told.push(type);
    if (type === "gap") view.close();
  });
  await settle();
  await all[0].open();
  await all[0].batch("1", undefined, gap("slow"), reset, enter("a", 0), ready("t1"));
  assert.deepEqual([told, view.rows, view.status], [["status", "gap", "status"], [], "closed"]);
});

test("a listener that throws hurts nobody else", async (t) => {
  new Clock(t);
  const host = new Fetches();
  const { reportError } = globalThis;
  const reported = [];
  globalThis.reportError = (error) => reported.push(error.message);
  t.after(() => Object.assign(globalThis, { reportError }));
  const view = live({ url, table: "things", fetch: host.fetch }, () => {
    throw new Error("mine");
  });
  await settle();
  await host.last.send(snapshot("t1", 1, "a"));
  assert.deepEqual([view.status, reported], ["live", ["mine", "mine"]]);
  view.close();
});

test("as an iterator a view gives the rows as they are, without those in between", async (t) => {
  const { host, view } = await watch(t);
  const seen = [];
  const ended = (async () => {
    for await (const rows of view) seen.push(keys({ rows }));
  })();
  await host.last.send(snapshot("t1", 1, "a") + commit("t2", enter("b", 1)));
  await host.last.send(commit("t3", enter("c", 2)));
  view.close();
  await ended;
  assert.deepEqual(seen, ["ab", "abc"]);
});

test("numbers beyond 2^53 arrive exactly, and go back so", async (t) => {
  const { host, view } = await watch(t);
  const big = '{"op":"enter","agg_id":"a","row":{"key":"a","n":9007199254740993},"old_index":-1,"new_index":0,"cursor":{"values":[9007199254740993,"a"]}}';
  await host.last.send(`${event(reset)}event: enter\ndata: ${big}\n\n`);
  await host.last.send('id: t1\nevent: ready\ndata: {"op":"ready","revision":18446744073709551615}\n\n');
  assert.deepEqual([view.rows[0].n, view.revision], [9007199254740993n, 18446744073709551615n]);
  view.reanchor(cursorOf(view.rows[0]));
  await settle();
  assert.match(host.last.text, /"values":\[9007199254740993,"a"\]/);
});

test("a plain EventSource is enough without a token", async (t) => {
  const clock = new Clock(t);
  const { Source, all } = sources();
  const host = new Fetches();
  const { fetch } = globalThis;
  globalThis.fetch = host.fetch;
  t.after(() => Object.assign(globalThis, { fetch }));
  const seen = [];
  const view = live({ url, table: "things", where: [{ column: "n", op: "gt", value: 5n }], EventSource: Source }, (view, { type }) => {
    if (type === "rows") seen.push(keys(view));
  });
  t.after(() => view.close());
  await settle();
  assert.equal(all[0].href.pathname, "/v1/live");
  assert.equal(all[0].href.searchParams.get("query"), '{"table":"things","where":[{"column":"n","op":"gt","value":5}]}');
  for (const frame of [reset, enter("a", 0)]) all[0].frame(frame);
  all[0].frame(ready("t1", 4), "t1");
  assert.deepEqual([view.status, view.revision], ["live", 4]);
  all[0].frame({ ...enter("b", 0), stream_id: "t2" });
  assert.equal(keys(view), "a", "half a commit");
  // It connects again by itself; what was half is sent whole.
  all[0].fail(0);
  assert.equal(view.status, "catching-up");
  all[0].frame({ ...enter("b", 0), stream_id: "t2" });
  all[0].frame({ ...leave("a", 1), stream_id: "t2" }, "t2");
  all[0].frame({ ...ready("t2", 5, 1, true) }, "t2");
  assert.deepEqual([view.status, keys(view)], ["live", "b"]);
  all[0].frame({ ...update("b", 0), stream_id: "t3" }, "t3");
  // The host's own event of this name has data.
  all[0].frame({ op: "error", code: "host_stopping", detail: "bye", retry_ms: 3000 });
  assert.ok(all[0].closed);
  await clock.tick(3000);
  assert.equal(all[1].href.searchParams.get("last_event_id"), "t3");
  await clock.tick(1_000_000);
  assert.equal(all.length, 2, "its heartbeats cannot be heard, so that silence says nothing");
  // Refused for good: the reason is found with a request whose answer can be read.
  host.refuse(404, { code: "table_unknown", detail: "gone" });
  all[1].fail(2);
  await clock.tick(60_000);
  assert.deepEqual([view.status, view.error.code, host.calls.length], ["closed", "table_unknown", 1]);
  assert.deepEqual(seen, ["a", "b", "b", "b"]);
});

test("a query that is too long for an address is posted", async (t) => {
  new Clock(t);
  const { Source, all } = sources();
  const host = new Fetches();
  const { fetch } = globalThis;
  globalThis.fetch = host.fetch;
  t.after(() => Object.assign(globalThis, { fetch }));
  const value = Array.from({ length: 400 }, (_, at) => `value ${at}`);
  const view = live({ url, table: "things", where: [{ column: "a", op: "in", value }], EventSource: Source });
  t.after(() => view.close());
  await settle();
  assert.deepEqual([all.length, host.last.body.where[0].value.length], [0, 400]);
});

test("random commits, cut at random places and resumed, are what was never cut", async (t) => {
  const clock = new Clock(t);
  let cuts = 0;
  for (let seed = 1; seed <= 40; seed += 1) {
    const oracle = new Oracle(seed, 1 + (seed % 20));
    const host = new Fetches();
    const view = live({ url, table: "things", fetch: host.fetch });
    await settle();
    const log = []; // What a host keeps to resume from.
    const snapshotText = () =>
      oracle.snapshot().map((frame) => event(frame)).join("") + event(ready(`t${log.length}`, log.length), `t${log.length}`);
    await host.last.send(snapshotText());
    for (let step = 0; step < 25; step += 1) {
      const frames = oracle.commit();
      if (frames.length > 0) log.push(commit(`t${log.length + 1}`, ...frames));
      const text = frames.length > 0 ? log.at(-1) : ": ping\n\n";
      if (oracle.random(4) > 0) await host.last.send(text);
      else {
        cuts += 1;
        await host.last.send(text.slice(0, oracle.random(text.length)));
        await host.last.cut();
        await clock.tick(1000);
        const from = Number(host.last.headers["Last-Event-ID"].slice(1));
        const kept = oracle.random(5) > 0;
        const missed = log.slice(from).join("") + event(ready(`t${log.length}`, log.length, 0, true), `t${log.length}`);
        await host.last.send(kept ? missed : event(gap("expired")) + snapshotText());
      }
      assert.deepEqual(view.rows, oracle.window(), `seed ${seed}, step ${step}`);
      assert.equal(view.status, "live");
    }
    assert.equal(view.resets, 0);
    view.close();
  }
  assert.ok(cuts > 100, `${cuts} cuts`);
});
