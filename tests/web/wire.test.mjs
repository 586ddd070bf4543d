// Claims about the client over real connections, against the stand-in for the host.

import assert from "node:assert/strict";
import test from "node:test";

import { connect, cursorOf, live } from "../../host/src/gateway/client/client.js";
import { numbers } from "./fakes.mjs";
import { Host } from "./host.mjs";
import { WebSocket } from "./websocket.mjs";

const query = { table: "carriers", sort: [{ column: "rank" }], limit: 7 };

/** A host with rows, and what waits until a view has something. */
async function rig(t) {
  const host = await new Host().start();
  t.after(() => host.stop());
  for (let key = 0; key < 20; key += 1) host.put("carriers", `k${key}`, { rank: key, big: 2n ** 60n + BigInt(key) });
  host.commit();
  return host;
}

function until(view, holds) {
  return new Promise((done) => {
    const listener = view._listener;
    const look = () => holds(view) && done();
    view._listener = (...told) => {
      listener?.(...told);
      look();
    };
    look();
  });
}

const isLive = (view) => view.status === "live";

for (const [name, begin] of [
  ["fetch", (host) => live({ ...query, url: host.url, token: "secret" })],
  ["WebSocket", (host) => live({ ...query, url: host.url, transport: "ws", WebSocket })],
]) {
  test(`over ${name}, random commits and cuts end as the host has it`, async (t) => {
    const host = await rig(t);
    const view = begin(host);
    t.after(() => view.close());
    await until(view, isLive);
    assert.equal(view.rows[3].big, 2n ** 60n + 3n);
    const random = numbers(11);
    for (let step = 0; step < 200; step += 1) {
      for (let rows = 1 + random(4); rows > 0; rows -= 1) host.put("carriers", `k${random(20)}`, { rank: random(50), big: BigInt(step) + 2n ** 60n });
      host.commit();
      if (step % 60 === 30) {
        const lost = until(view, (it) => it.status === "catching-up");
        host.cut();
        await lost;
      }
    }
    const [watched] = host.watched.values();
    const exact = ({ rows, status }) => status === "live" && JSON.stringify(rows.map(({ key, rank }) => [key, rank])) === JSON.stringify(watched.rows.map(({ key, rank }) => [key, rank]));
    await until(view, exact);
    assert.deepEqual(view.rows, watched.rows);
    assert.deepEqual([view.resets, view.gaps], [0, 0]);
    view.reanchor(cursorOf(view.rows[6]), 3);
    await until(view, isLive);
    const next = [...host.tables.get("carriers").values()].sort((a, b) => a.rank - b.rank || (a.key < b.key ? -1 : 1)).slice(7, 10);
    assert.deepEqual(view.rows, next);
    assert.equal(host.watched.size, 2);
  });
}

test("many views share one real socket", async (t) => {
  const host = await rig(t);
  const connection = connect(host.url, { WebSocket });
  t.after(() => connection.close());
  const views = Array.from({ length: 10 }, (_, at) => connection.live({ ...query, limit: at + 1 }));
  await Promise.all(views.map((view) => until(view, isLive)));
  assert.deepEqual(views.map((view) => view.rows.length), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  assert.equal(host.requests.filter(({ method }) => method === "WS").length, 1);
  const refused = connection.live({ table: "nothing" });
  await until(refused, ({ status }) => status === "closed");
  assert.equal(refused.error.code, "table_unknown");
});
