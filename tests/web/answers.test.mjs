// Claims about the demo's page of answers, in Chromium, against a stand-in for the host: one process, its two channels,
// and a plugin that says back what it is told, word by word.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import http from "node:http";
import test, { after } from "node:test";

import { open } from "./browser.mjs";

const gateway = new URL("../../host/src/gateway/demo/", import.meta.url);
const FILES = {
  "/demo/answers/": ["answers.html", "text/html"],
  "/demo/answers/answers.js": ["answers.js", "text/javascript"],
  "/demo/answers/answers.css": ["answers.css", "text/css"],
  "/page.css": ["page.css", "text/css"],
};
const POLICY =
  "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

class Host {
  made = [];
  asked = [];
  entries = [];
  followers = new Set();
  begun = []; // Where each follower has begun.
  isDeployed = true;
  holds = false; // While it does, the plugin says nothing.
  refusal = null; // The status that followers get instead of a stream.
  isFull = false; // While it is, requests are refused.
  token = null; // Without it nobody is let in.
  state = "running";

  async start() {
    this.server = http.createServer((request, response) => this.answer(request, response));
    await new Promise((done) => this.server.listen(0, "127.0.0.1", done));
    this.url = `http://127.0.0.1:${this.server.address().port}`;
    return this;
  }

  async stop() {
    this.server.closeAllConnections();
    await new Promise((done) => this.server.close(done));
  }

  async answer(request, response) {
    const { pathname } = new URL(request.url, this.url);
    const json = (status, body) => response.writeHead(status, { "Content-Type": "application/json" }).end(JSON.stringify(body));
    const file = FILES[pathname];
    if (file) {
      const headers = { "Content-Type": file[1], "Content-Security-Policy": POLICY };
      return response.writeHead(200, headers).end(readFileSync(new URL(file[0], gateway)));
    }
    let body = "";
    for await (const chunk of request) body += chunk;
    if (pathname === "/v1/session") {
      if (request.headers.authorization !== `Bearer ${this.token}`) return json(401, { code: "token_unknown" });
      return response.writeHead(204, { "Set-Cookie": "in=1; HttpOnly; Path=/" }).end();
    }
    if (this.token && request.headers.cookie !== "in=1") return json(401, { code: "token_missing" });
    if (pathname === "/v1/plugins/answers") {
      return this.isDeployed ? json(200, { state: this.state }) : json(404, { code: "plugin_unknown", detail: "there is no such plugin" });
    }
    const [, channel] = /^\/v1\/processes\/demo-[0-9a-f]{16}(?:\/channels\/(\w+)\/entries)?$/.exec(pathname) ?? [null, null];
    if (request.method === "PUT") {
      this.made.push(JSON.parse(body));
      return json(201, {});
    }
    if (request.method === "POST" && channel === "requests") {
      if (this.isFull) return json(507, { code: "channel_full", detail: "the channel is full" });
      const asked = JSON.parse(body);
      this.asked.push(asked);
      json(201, { position: this.asked.length });
      if (asked.type === "end") this.append({ type: "end" });
      else if (!this.holds) this.say(asked.text);
      return;
    }
    if (channel !== "answers" || request.headers.accept !== "text/event-stream") return json(404, { code: "path_unknown" });
    if (this.refusal) return json(this.refusal, { code: "refused" });
    const after = Number(request.headers["last-event-id"] ?? 0);
    this.begun.push(after);
    response.writeHead(200, { "Content-Type": "text/event-stream" });
    response.write(`retry: 50\nevent: ready\ndata: {"after":${after}}\n\n`);
    for (const entry of this.entries.slice(after)) this.send(response, entry);
    this.followers.add(response);
    response.on("close", () => this.followers.delete(response));
  }

  say(text) {
    for (const piece of `You said ${text}\n`.split(/(?<= )/)) this.append({ type: "data", text: piece });
  }

  append(entry) {
    const whole = { position: this.entries.length + 1, senderid: "plugin:answers", ...entry };
    this.entries.push(whole);
    for (const follower of this.followers) this.send(follower, whole);
  }

  send(follower, entry) {
    follower.write(`id: ${entry.position}\nevent: entry\ndata: ${JSON.stringify(entry)}\n\n`);
  }

  /** The network breaks. */
  cut() {
    for (const follower of this.followers) follower.destroy();
  }
}

// One browser for all of them: its start takes longer than most tests.
const page = await open();
after(() => page.close());

const state = (wanted) => `document.getElementById('state').dataset.state === '${wanted}'`;
const ANSWERS = "JSON.stringify([...document.querySelectorAll('#talk li.answer')].map((it) => it.textContent))";
const answers = (...texts) => `${ANSWERS} === ${JSON.stringify(JSON.stringify(texts.map((text) => `${text}\n`)))}`;

async function rig(t, before = () => {}) {
  const host = await new Host().start();
  t.after(async () => {
    await page.goto("about:blank");
    await host.stop();
  });
  before(host);
  page.errors.length = 0;
  await page.goto(`${host.url}/demo/answers/`);
  return host;
}

async function ask(text) {
  await page.evaluate(`document.getElementById('text').value = ${JSON.stringify(text)}`);
  await page.evaluate("document.querySelector('#ask button').click()");
}

test("what is asked is answered piece by piece", async (t) => {
  const host = await rig(t);
  await page.wait(state("live"));
  assert.deepEqual(host.made, [
    { executor: "plugin:answers", channels: [{ name: "requests", events: true }, { name: "answers" }] },
  ]);
  await ask("hello <b>mill</b>");
  await page.wait(answers("You said hello <b>mill</b>"));
  await ask("again");
  await page.wait(answers("You said hello <b>mill</b>", "You said again"));
  assert.deepEqual(host.asked, [{ text: "hello <b>mill</b>" }, { text: "again" }]);
  assert.match(await page.evaluate("document.getElementById('places').textContent"), /^7 pieces, the last one at position 7 of demo-/);
  // Bytes come as base64 where they are no text.
  host.append({ type: "data", payload: Buffer.from("bytes\n").toString("base64") });
  await page.wait(answers("You said hello <b>mill</b>", "You said again", "bytes"));
  assert.deepEqual(page.errors, []);
});

test("a broken connection costs no piece and doubles none", async (t) => {
  const host = await rig(t, (host) => (host.holds = true));
  await page.wait(state("live"));
  await ask("one");
  await page.wait("document.querySelectorAll('#talk li.asked').length === 1");
  host.append({ type: "data", text: "first " });
  await page.wait(`${ANSWERS} === ${JSON.stringify(JSON.stringify(["first "]))}`);
  host.cut();
  host.append({ type: "data", text: "second " });
  host.append({ type: "data", text: "third\n" });
  await page.wait(answers("first second third"));
  assert.deepEqual(host.begun, [0, 1], "it goes on behind the last piece that it has");
  const other = page.errors.filter((text) => !/ERR_/.test(text));
  assert.deepEqual(other, []);
});

for (const status of [401, 403, 404]) {
  test(`who is refused with ${status} when coming back is told that it is over, and to reload`, async (t) => {
    const host = await rig(t);
    await page.wait(state("live"));
    host.refusal = status;
    host.cut();
    await page.wait(state("finished"));
    const text = await page.evaluate("document.getElementById('state').textContent");
    assert.match(text, /^Ended: .*because.*Reload the page/);
    assert.equal(await page.evaluate("document.getElementById('ask').hidden"), true);
  });
}

test("who finishes is told so, and follows no more", async (t) => {
  const host = await rig(t);
  await page.wait(state("live"));
  await page.evaluate("document.getElementById('finish').click()");
  await page.wait(state("finished"));
  assert.deepEqual(host.asked, [{ type: "end" }]);
  await page.wait("document.getElementById('ask').hidden");
  assert.equal(host.followers.size === 0 || (await gone(host)), true);
});

async function gone(host) {
  while (host.followers.size > 0) await new Promise((done) => setTimeout(done, 5));
  return true;
}

test("without the plugin the page says what is missing, and begins when it is there", async (t) => {
  const host = await rig(t, (host) => (host.isDeployed = false));
  await page.wait("!document.getElementById('missing').hidden");
  assert.equal(await page.evaluate("document.getElementById('ask').hidden"), true);
  assert.equal(host.made.length, 0);
  host.isDeployed = true;
  await page.wait(`${state("live")} && document.getElementById('missing').hidden`);
  await ask("now");
  await page.wait(answers("You said now"));
});

test("what could not be sent says why, is in its field again, and leaves the page live", async (t) => {
  const host = await rig(t, (host) => (host.isFull = true));
  await page.wait(state("live"));
  await ask("too much");
  await page.wait("document.querySelector('#talk li.asked.failed small')?.textContent === 'Not sent: the channel is full'");
  assert.equal(await page.evaluate("document.getElementById('text').value"), "too much");
  assert.equal(await page.evaluate(state("live")), true);
  host.isFull = false;
  await page.evaluate("document.querySelector('#ask button').click()");
  await page.wait(answers("You said too much"));
});

test("a token that is not known is told so, and a good one begins", async (t) => {
  const host = await rig(t, (host) => (host.token = "good"));
  await page.wait("!document.getElementById('token-form').hidden");
  const give = async (token) => {
    await page.evaluate(`document.getElementById('token').value = '${token}'`);
    await page.evaluate("document.querySelector('#token-form button').click()");
  };
  await give("bad");
  await page.wait("/does not know this token/.test(document.getElementById('state').textContent)");
  assert.equal(host.made.length, 0);
  await give("good");
  await page.wait(`${state("live")} && document.getElementById('token-form').hidden`);
});

test("a plugin that does not work is told of, and waited for", async (t) => {
  const host = await rig(t, (host) => (host.state = "paused"));
  await page.wait("document.getElementById('state').textContent === 'Waiting: the plugin is paused'");
  assert.equal(await page.evaluate("document.getElementById('ask').hidden"), true);
  host.state = "running";
  await page.wait(state("live"));
});

for (const width of [360, 1280]) {
  test(`a long talk fits ${width} pixels, with its state and its field in view`, async (t) => {
    const host = await rig(t);
    await page.size(width, 800);
    t.after(() => page.size(1280, 900));
    await page.wait(state("live"));
    for (const text of ["x".repeat(500), "word ".repeat(100).trim(), "last"]) await ask(text);
    await page.wait("document.querySelectorAll('#talk li.answer').length === 3");
    assert.equal(await page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), true);
    const inView = (id) =>
      `(({ top, bottom }) => top >= 0 && bottom <= innerHeight + 1)(document.getElementById('${id}').getBoundingClientRect())`;
    await page.wait(`${inView("state")} && ${inView("ask")}`);
    assert.equal(host.asked.length, 3);
  });
}
