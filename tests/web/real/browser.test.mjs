// Claims about a page that uses the browser's own `EventSource` and `WebSocket`, in Chromium, against a host.

import test, { after, before } from "node:test";

import { open } from "../browser.mjs";
import { aWebSocketIsServed, anEventSourceResumes } from "./claims.mjs";
import { converse, follow } from "./followers.mjs";
import { ADDRESS, Millrace, Relay } from "./host.mjs";

let page;
before(async () => (page = await open()));
after(() => page?.close());

/** On a page of the relay, so that all that it opens is of the same origin. */
async function rig(t) {
  const host = await Millrace.start(t);
  const relay = await Relay.start(t, host);
  await host.publish(300);
  await page.goto(`${relay.url}/healthz`);
  await page.wait("document.readyState === 'complete'");
  return { host, relay };
}

test("Chromium's EventSource comes back by itself with exactly what it missed, or is told what it lost", async (t) => {
  const { host, relay } = await rig(t);
  await page.evaluate(`void (window.it = (${follow})(EventSource, ${JSON.stringify(relay.url + ADDRESS)}))`);
  await anEventSourceResumes(t, host, relay, (member) => page.evaluate(`it.${member}`));
  await page.evaluate("it.close()");
});

test("Chromium's WebSocket is served in both protocols, and resumes with its token", async (t) => {
  const { host, relay } = await rig(t);
  await page.evaluate("window.all = []");
  let count = 0;
  await aWebSocketIsServed(host, relay, async (protocol, windows = {}) => {
    const it = `all[${count++}]`;
    const address = `${relay.url.replace("http", "ws")}/v1/live/ws`;
    await page.evaluate(`void (${it} = (${converse})(WebSocket, ${JSON.stringify(address)}, ${JSON.stringify(protocol)}))`);
    await page.evaluate(`void (${it}.windows = ${JSON.stringify(windows)})`);
    return {
      say: (command) => page.evaluate(`${it}.say(${JSON.stringify(command)})`),
      look: (member) => page.evaluate(`${it}.${member}`),
    };
  });
});
