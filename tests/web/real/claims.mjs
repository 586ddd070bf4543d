// What any client that is not ours must see, whatever it is made of. A client here answers promises, since it may
// live in a browser.

import assert from "node:assert/strict";
import { EventSource } from "eventsource";

import { follow } from "./followers.mjs";
import { ADDRESS, QUERY, eventually } from "./host.mjs";

const deltas = (frames) => frames.filter(({ op }) => op !== "ready");
const names = (frames) => frames.map(({ op }) => op);

/** `look` reads a member of a follower that came through the relay. */
export async function anEventSourceResumes(t, host, relay, look) {
  // Next to the host, and never lost: what it is told is what there is to be told.
  const steady = follow(EventSource, host.url + ADDRESS);
  t.after(() => steady.close());
  const both = async () => {
    await host.shownBy(() => look("rows"));
    await host.shownBy(() => steady.rows);
  };
  await both();
  assert.deepEqual(await look("frames"), steady.frames, "the same rows");
  await host.publish();
  await both();
  assert.deepEqual(deltas(await look("frames")), deltas(steady.frames), "and the same changes");
  assert.ok(deltas(steady.frames).length > 30, "there were changes");
  assert.deepEqual(relay.sent("Last-Event-ID"), []);

  // The connection breaks, and rows change meanwhile.
  const before = (await look("frames")).length;
  const token = steady.frames.at(-1).stream_id;
  relay.cut();
  await host.publish();
  await both();
  await eventually("it says that it goes on", async () => (await look("frames")).slice(before).some(({ resumed }) => resumed));
  assert.deepEqual(relay.sent("Last-Event-ID"), [token], "it asked for what comes after what it had");
  assert.deepEqual(deltas(await look("frames")), deltas(steady.frames), "what it missed came once, in order, and nothing else");
  assert.ok((await look("frames")).length > before + 1, "there was something to miss");

  // The host ends, and another one begins on its store: what a client had is told anew.
  await host.restart();
  await eventually("it came back once more", async () => (await look("opens")) === 3);
  const all = await look("frames");
  await host.publish();
  await both();
  const after = (await look("frames")).slice(before);
  const gap = after.findIndex(({ op }) => op === "gap");
  assert.ok(gap > 0, `it is told that it has a gap: ${names(after)}`);
  assert.equal(after[gap + 1].op, "reset");
  assert.deepEqual(names(after.slice(gap + 2, gap + 23)), [...Array(20).fill("enter"), "ready"]);
  assert.equal(after[gap + 22].resumed, false);
  assert.ok(after.length > gap + 23 && all.length > 0, "and changes go on");
  assert.deepEqual(await look("errors"), ["host_stopping"], "the host said why it closed");
}

/** Both protocols. `open` answers a conversation that goes through the relay: `say` and `look`. */
export async function aWebSocketIsServed(host, relay, open) {
  const single = await open();
  await single.say({ action: "subscribe", query: QUERY });
  const several = await open("millrace.live.v1");
  const head = { ...QUERY, limit: 5 };
  await several.say({ action: "subscribe", id: "a", query: QUERY });
  await several.say({ action: "subscribe", id: "b", query: head });
  const first = "order=dep_delay_min:desc&limit=5";
  const shown = async () => {
    await host.shownBy(async () => (await single.look("windows"))[""]);
    await host.shownBy(async () => (await several.look("windows")).a);
    await host.shownBy(async () => (await several.look("windows")).b, first);
  };
  await shown();
  assert.equal(await single.look("protocol"), "");
  assert.equal(await several.look("protocol"), "millrace.live.v1");
  await host.publish();
  await shown();

  // A window moves: it is what a new subscription would be.
  const rows = (await several.look("windows")).a;
  const values = [rows[4].dep_delay_min, rows[4].key];
  await several.say({ action: "reanchor", id: "a", cursor: { values }, limit: 3 });
  await single.say({ action: "reanchor", cursor: { values }, limit: 3 });
  const below = rows.slice(5, 8).map(({ key }) => key);
  const keys = async (socket, id) => (await socket.look("windows"))[id].map(({ key }) => key).join();
  await eventually("both windows move", async () => (await keys(several, "a")) === below.join() && (await keys(single, "")) === below.join());

  await several.say({ action: "ping", nonce: "n" });
  await several.say({ action: "unsubscribe", id: "a" });
  const heard = async (wanted) => (await several.look("heard")).some((it) => it.type === wanted);
  await eventually("it is acknowledged", () => heard("unsubscribed"));
  assert.ok((await heard("pong")) && (await heard("reanchored")) && (await heard("subscribed")));
  await single.say({ action: "unsubscribe" });
  await eventually("the single one is closed well", async () => (await single.look("closed")) === 1000);

  // The connection breaks: a new one goes on with the token, with what was missed and no more.
  const { b: token } = await several.look("tokens");
  const { b: had } = await several.look("windows");
  relay.cut();
  await eventually("it is lost", async () => (await several.look("closed")) === 1006);
  await host.publish();
  const again = await open("millrace.live.v1", { b: had });
  await again.say({ action: "subscribe", id: "b", query: head, resume: token });
  await host.shownBy(async () => (await again.look("windows")).b, first);
  const told = (await again.look("heard")).flatMap(({ deltas = [] }) => names(deltas));
  await eventually("it says that it goes on", async () => (await again.look("heard")).some(({ deltas = [] }) => deltas.some(({ resumed }) => resumed)));
  assert.ok(!told.includes("reset") && !told.includes("gap"), `${told}`);
  await again.say({ action: "unsubscribe", id: "b" });
}
