#!/usr/bin/env node
// Opens a page in headless Chromium, waits for a condition and takes a picture.
//
//   node tests/web/browser.mjs --url URL [--width 1280] [--height 900] [--wait EXPRESSION] [--timeout SECONDS]
//     [--screenshot FILE.png] [--full] [--reduced-motion] [--eval EXPRESSION]
//
// Prints JSON: {ok, waited_ms, eval, scroll_width, errors}. `errors` are messages of the console, exceptions, failed
// loads and violations of the content security policy. Ends with 1 when there are any, or the condition does not come.
// CHROMIUM names another program.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

import { WebSocket } from "./websocket.mjs";

const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
  "--remote-debugging-port=0", "--remote-allow-origins=*",
];

/** A Chromium with one blank page. `page` evaluates, waits and takes pictures. */
export async function open({ width = 1280, height = 900, reducedMotion = false } = {}) {
  const folder = mkdtempSync(join(tmpdir(), "millrace-browser-"));
  const program = process.env.CHROMIUM || "chromium";
  const child = spawn(program, [...FLAGS, `--user-data-dir=${folder}`, "about:blank"], { stdio: ["ignore", "ignore", "pipe"] });
  const ended = new Promise((done) => child.on("close", done));
  const close = async () => {
    child.kill("SIGKILL");
    await ended;
    rmSync(folder, { recursive: true, force: true, maxRetries: 5 });
  };
  try {
    const endpoint = await new Promise((done, fail) => {
      let text = "";
      child.on("error", (error) => fail(new Error(`${program} does not start (${error.code}); on Debian: apt-get install chromium`)));
      child.on("close", () => fail(new Error(`${program} ended:\n${text.slice(-2000)}`)));
      child.stderr.on("data", (chunk) => {
        text += chunk;
        const found = /DevTools listening on (\S+)/.exec(text);
        if (found) done(found[1]);
      });
    });
    const browser = await session(endpoint);
    const { targetInfos } = await browser.ask("Target.getTargets");
    const { targetId } = targetInfos.find(({ type }) => type === "page");
    const page = await session(endpoint.replace(/browser\/.*/, `page/${targetId}`));
    return Object.assign(await prepare(page, { width, height, reducedMotion }), { close });
  } catch (error) {
    await close();
    throw error;
  }
}

/** A connection to the DevTools protocol. */
async function session(endpoint) {
  const socket = new WebSocket(endpoint);
  const waiting = new Map();
  const listeners = new Map();
  let last = 0;
  await new Promise((done, fail) => {
    socket.onopen = done;
    socket.onclose = () => fail(new Error("the browser refuses the connection"));
  });
  socket.onclose = () => {
    for (const { fail } of waiting.values()) fail(new Error("the browser is gone"));
  };
  socket.onmessage = ({ data }) => {
    const { id, method, params, result, error } = JSON.parse(data);
    if (method) return listeners.get(method)?.(params);
    const { done, fail } = waiting.get(id);
    waiting.delete(id);
    if (error) fail(new Error(error.message));
    else done(result);
  };
  const ask = (method, params = {}) =>
    new Promise((done, fail) => {
      waiting.set(++last, { done, fail });
      socket.send(JSON.stringify({ id: last, method, params }));
    });
  return { ask, on: (method, listener) => listeners.set(method, listener) };
}

async function prepare({ ask, on }, { width, height, reducedMotion }) {
  const errors = [];
  on("Runtime.exceptionThrown", ({ exceptionDetails: { text, exception } }) => errors.push(`exception: ${exception?.description ?? text}`));
  on("Runtime.consoleAPICalled", ({ type, args }) => {
    if (type === "error" || type === "warning") errors.push(`${type}: ${args.map((it) => it.value ?? it.description).join(" ")}`);
  });
  // Failed loads, and what the content security policy blocks.
  on("Log.entryAdded", ({ entry: { level, text, url = "" } }) => {
    if (level === "error" || level === "warning") errors.push(`${level}: ${text} ${url}`.trim());
  });
  for (const domain of ["Page", "Runtime", "Log"]) await ask(`${domain}.enable`);
  const size = (width, height) => ask("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile: width < 600 });
  const motion = (reduced) =>
    ask("Emulation.setEmulatedMedia", { features: [{ name: "prefers-reduced-motion", value: reduced ? "reduce" : "no-preference" }] });
  await size(width, height);
  await motion(reducedMotion);

  async function evaluate(expression) {
    const { result, exceptionDetails } = await ask("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
    if (exceptionDetails) throw new Error(`${expression}: ${exceptionDetails.exception?.description ?? exceptionDetails.text}`);
    return result.value;
  }
  async function goto(url) {
    const { errorText } = await ask("Page.navigate", { url });
    if (errorText) throw new Error(`${url} does not load: ${errorText}`);
  }
  // Looks again and again: a page may also be loading.
  async function wait(expression, seconds = 20) {
    const begun = Date.now();
    let why;
    while (Date.now() - begun < seconds * 1000) {
      try {
        if (await evaluate(`Boolean(${expression})`)) return Date.now() - begun;
      } catch (error) {
        why = error.message;
      }
      await new Promise((done) => setTimeout(done, 50));
    }
    throw new Error(`after ${seconds} s this does not hold: ${expression}${why ? ` (${why})` : ""}`);
  }
  async function screenshot(path, full = false) {
    const { data } = await ask("Page.captureScreenshot", { format: "png", captureBeyondViewport: full });
    writeFileSync(path, Buffer.from(data, "base64"));
  }
  return { errors, evaluate, goto, wait, screenshot, size, motion };
}

function options(words) {
  const found = { width: "1280", height: "900", timeout: "20" };
  for (let at = 0; at < words.length; at += 1) {
    const name = words[at].replace(/^--/, "");
    if (name === "full" || name === "reduced-motion") found[name] = true;
    else if (["url", "width", "height", "wait", "timeout", "screenshot", "eval"].includes(name) && at + 1 < words.length) found[name] = words[++at];
    else throw new Error(`\`${words[at]}\` is no option, or has no value; the head of this file has them`);
  }
  if (!found.url) throw new Error("--url is missing");
  return found;
}

async function main() {
  const asked = options(process.argv.slice(2));
  const page = await open({ width: Number(asked.width), height: Number(asked.height), reducedMotion: asked["reduced-motion"] });
  const report = { ok: false };
  try {
    await page.goto(asked.url);
    report.waited_ms = await page.wait(asked.wait ?? "document.readyState === 'complete'", Number(asked.timeout));
    if (asked.eval) report.eval = await page.evaluate(asked.eval);
    report.scroll_width = await page.evaluate("document.documentElement.scrollWidth");
  } catch (error) {
    page.errors.push(error.message);
  }
  try {
    if (asked.screenshot) await page.screenshot(asked.screenshot, asked.full);
  } finally {
    await page.close();
  }
  Object.assign(report, { ok: page.errors.length === 0, errors: page.errors });
  console.log(JSON.stringify(report, null, 2));
  process.exitCode = report.ok ? 0 : 1;
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  main().catch((error) => {
    console.error(`error: ${error.message}`);
    process.exitCode = 1;
  });
}
