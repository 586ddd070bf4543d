// A conversation with the sample plugin: requests go to one channel of a process of this page's own, and the answers come
// from another one. What an EventSource misses it asks for again by itself, from the position of its last entry on.

const PARTY = "plugin:answers";
const AGAIN_MS = 1000;
const REFUSED =
  "Ended: the host refused to go on, because the token is no longer good, the conversation is gone, or the host is not ready. " +
  "Reload the page to begin a new one; it asks for a token if it needs one";

const byId = (id) => document.getElementById(id);
const letters = crypto.getRandomValues(new Uint8Array(8));
const name = `demo-${[...letters].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
const process = `/v1/processes/${name}`;
const entries = (channel) => `${process}/channels/${channel}/entries`;

let open = null; // The answer that is being written.
let pieces = 0;

function tell(state, text) {
  byId("state").dataset.state = state;
  byId("state").textContent = text;
}

function line(className, text) {
  const made = document.createElement("li");
  made.className = className;
  made.textContent = text;
  byId("talk").append(made);
  made.scrollIntoView({ block: "nearest" });
  return made;
}

/** Asks the host for something; a refusal is an error with its code and what to do. */
async function ask(path, options) {
  const response = await fetch(path, { cache: "no-store", ...options });
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  const refused = new Error(problem.detail || problem.title || `the host answered ${response.status}`);
  throw Object.assign(refused, { status: response.status, code: problem.code });
}

const send = (method, path, body) =>
  ask(path, { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

function text({ text, payload }) {
  if (typeof text === "string") return text;
  if (!payload) return "";
  return new TextDecoder().decode(Uint8Array.from(atob(payload), (letter) => letter.charCodeAt(0)));
}

/** An answer is over with its line break. */
function show(entry) {
  if (entry.type === "error") line("failed", entry.error || "the plugin gave up");
  if (entry.type !== "data") return finished("The plugin has ended its answers");
  const piece = text(entry);
  open ??= line("answer", "");
  open.append(piece);
  open.scrollIntoView({ block: "nearest" });
  pieces += 1;
  byId("places").textContent = `${pieces} pieces, the last one at position ${entry.position} of ${name}_answers`;
  if (piece.endsWith("\n")) open = null;
}

let source = null;
function follow() {
  source = new EventSource(`${entries("answers")}?payload=text`);
  source.addEventListener("ready", () => tell("live", "Live"));
  source.addEventListener("entry", ({ data }) => show(JSON.parse(data)));
  source.addEventListener("lagged", ({ data }) => {
    const { missed } = JSON.parse(data);
    if (missed > 0) line("failed", `${missed} pieces were dropped before this page read them`);
  });
  source.addEventListener("closed", ({ data }) => finished(`The channel is closed: ${JSON.parse(data).reason}`));
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CONNECTING) tell("lost", "Connection lost; the page keeps trying");
    // Any refusal ends an EventSource for good, and it does not say which one it was.
    if (source.readyState === EventSource.CLOSED) finished(REFUSED);
  });
}

function finished(why) {
  source.close();
  byId("ask").hidden = true;
  tell("finished", why);
}

async function begin() {
  try {
    await ask("/v1/plugins/answers").catch((error) => {
      byId("missing").hidden = error.code !== "plugin_unknown";
      throw error;
    });
    const channels = [{ name: "requests", events: true }, { name: "answers" }];
    await send("PUT", process, { executor: PARTY, channels });
  } catch (error) {
    const denied = error.status === 401 || error.status === 403;
    byId("token-form").hidden = !denied;
    tell("waiting", denied ? "Waiting for a token" : error.message);
    if (!denied) setTimeout(begin, AGAIN_MS);
    return;
  }
  for (const id of ["token-form", "missing"]) byId(id).hidden = true;
  byId("ask").hidden = false;
  byId("text").focus();
  follow();
}

async function request(body, said) {
  const asked = line("asked", said);
  try {
    await send("POST", entries("requests"), body);
  } catch (error) {
    asked.classList.add("failed");
    tell("lost", error.message);
  }
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const field = byId("text");
  request({ text: field.value }, field.value);
  field.value = "";
});
byId("finish").addEventListener("click", () => request({ type: "end" }, "That is all."));
// The token becomes a cookie that no script reads: an EventSource sends no header.
byId("token-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const token = byId("token").value.trim();
  byId("token").value = "";
  await ask("/v1/session", { method: "POST", headers: { Authorization: `Bearer ${token}` } }).catch(() => {});
  begin();
});
begin();
