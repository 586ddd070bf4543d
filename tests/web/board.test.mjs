// Claims about the demo's board, in Chromium, against the stand-in for the host.

import assert from "node:assert/strict";
import test, { after } from "node:test";

import { open } from "./browser.mjs";
import { Host, events } from "./host.mjs";

const all = await events(9000);
const LIVE = "document.getElementById('state').dataset.state === 'live'";
const KEYS = "[...document.querySelectorAll('#flights tbody tr:not(.gone)')].map((line) => line.cells[2].textContent + line.cells[5].textContent).join()";

// One browser for all of them: its start takes longer than most tests.
const page = await open();
after(() => page.close());

/** A host that is in the evening of a bad day, and the board in a browser. */
async function rig(t, { search = "", before, width = 1280, height = 900, reducedMotion = false } = {}) {
  const host = await new Host().start();
  t.after(async () => {
    await page.goto("about:blank");
    await host.stop();
  });
  host.handle(all.slice(0, 7800));
  before?.(host);
  await page.size(width, height);
  await page.motion(reducedMotion);
  page.errors.length = 0;
  await page.goto(`${host.url}/demo/${search}`);
  return host;
}

const HOURS_12 = 12 * 3_600_000;
const HOUR = 3_600_000;

/** The rows that the board must show, from the tables. */
function expected(host, holds = ({ status }) => status === "departed") {
  const now = Math.max(...[...host.tables.get("airports").values()].map(({ at }) => Date.parse(at)));
  const begin = Math.floor(now / HOUR) * HOUR - HOURS_12;
  return [...host.tables.get("flights").values()]
    .filter((it) => it.dep_delay_min > 0 && Date.parse(it.scheduled) >= begin && holds(it))
    .sort((a, b) => b.dep_delay_min - a.dep_delay_min || (a.key < b.key ? -1 : 1))
    .slice(0, 12)
    .map((it) => it.flight + it.origin)
    .join();
}

const shows = (host, holds) => `${LIVE} && ${KEYS} === ${JSON.stringify(expected(host, holds))}`;

for (const search of ["", "?transport=sse"]) {
  test(`the board follows the tables, choices and losses (${search || "WebSocket"})`, async (t) => {
    const host = await rig(t, { search });
    await page.wait(shows(host));
    for (let at = 7800; at < 8400; at += 60) host.handle(all.slice(at, at + 60));
    await page.wait(shows(host));
    assert.equal(await page.evaluate("document.getElementById('day').textContent"), "Friday 4 January");
    const alerts = [...host.tables.get("alerts").values()].filter(({ cleared_at }) => cleared_at === null);
    await page.wait(`document.querySelectorAll('#alerts li:not(.gone)').length === ${alerts.length}`);
    assert.ok(await page.evaluate("document.querySelectorAll('#carriers tbody tr').length") > 10);
    // A choice is another query.
    await page.evaluate("document.querySelector('#airports [data-value=LGA]').click()");
    await page.evaluate("document.querySelector('#statuses [data-value=\"\"]').click()");
    const chosen = ({ origin }) => origin === "LGA";
    await page.wait(shows(host, chosen));
    await page.evaluate("(() => { const it = document.getElementById('carrier'); it.value = 'DL'; it.dispatchEvent(new Event('change')); })()");
    const both = ({ origin, carrier }) => origin === "LGA" && carrier === "DL";
    await page.wait(shows(host, both));
    assert.deepEqual(page.errors, []);
    const clients = [...host.watched.values()].reduce((sum, { clients }) => sum + clients.size, 0);
    assert.equal(clients, 5, "what was chosen before is not watched any more");
    // The network breaks: what is missed comes after it.
    await page.evaluate("new MutationObserver(() => (window.lost = true)).observe(document.getElementById('state'), { attributeFilter: ['data-state'] })");
    host.cut();
    host.handle(all.slice(8400, 8700));
    await page.wait(`window.lost && ${shows(host, both)}`);
    const other = page.errors.filter((text) => !/ERR_|WebSocket connection/.test(text));
    assert.deepEqual(other, []);
  });
}

test("on a phone nothing is wider than the screen, and each flight has two lines", async (t) => {
  const host = await rig(t, { width: 360, height: 800 });
  await page.wait(shows(host));
  host.handle(all.slice(7800, 8100));
  await page.wait(shows(host));
  for (const width of [320, 360, 700, 1000]) {
    await page.size(width, 800);
    assert.equal(await page.evaluate("document.documentElement.scrollWidth"), width);
  }
  await page.size(360, 800);
  const [first, second] = await page.evaluate(
    "['.dest', '.flight'].map((name) => document.querySelector(`#flights tbody tr ${name}`).getBoundingClientRect().top)",
  );
  assert.ok(second > first + 10, `${first} ${second}`);
  assert.deepEqual(page.errors, []);
});

test("who wants less motion sees none", async (t) => {
  const host = await rig(t, { reducedMotion: true });
  await page.wait(shows(host));
  await page.evaluate("Element.prototype.animate = () => (window.moved = true)");
  host.handle(all.slice(7800, 8400));
  await page.wait(shows(host));
  assert.equal(await page.evaluate("window.moved"), undefined);
});

test("a host with tokens is asked with one", async (t) => {
  const host = await rig(t, { before: (host) => (host.token = "secret") });
  await page.wait("!document.getElementById('token-form').hidden");
  await page.evaluate("(() => { document.getElementById('token').value = 'secret'; document.querySelector('#token-form button').click(); })()");
  await page.wait(shows(host));
  assert.deepEqual(page.errors.filter((text) => !/401/.test(text)), []);
});

test("without flights, or without plugins, the board says what to do", async (t) => {
  const host = await rig(t, { before: (host) => host.tables.clear() });
  await page.wait("!document.getElementById('none').hidden");
  assert.match(await page.evaluate("document.getElementById('none-do').textContent"), /cargo xtask demo/);
  for (const table of ["flights", "carriers", "airports", "alerts"]) host.tables.set(table, new Map());
  await page.wait(`${LIVE} && document.getElementById('none-do').textContent.includes('millrace publish')`);
  host.handle(all.slice(0, 500));
  await page.wait(shows(host));
  assert.deepEqual(page.errors, []);
});

test("a browser reads whole numbers of any size", async (t) => {
  await rig(t);
  const text = '{"a":9007199254740993,"b":"~n1"}';
  for (const source of ["", ", true", ", false"]) {
    const read = `import("/client.js").then(({ parseJson }) => { const { a, b } = parseJson('${text}'${source}); return typeof a + a + b; })`;
    assert.equal(await page.evaluate(read), "bigint9007199254740993~n1");
  }
});
