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
  showNewest();
  return made;
}

/** What came last is in view, and below it the field for what comes next. */
function showNewest() {
  const last = byId("ask").hidden ? byId("talk").lastElementChild : byId("ask");
  last?.scrollIntoView({ block: "nearest" });
}

/** Asks the host for something; a refusal is an error with its code and what to do. */
async function ask(path, options) {
  const response = await fetch(path, { cache: "no-store", ...options }).catch(() => {
    throw new Error("the host does not answer");
  });
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
  if (entry.type !== "data") return finished("The plugin has ended its answers. Reload the page to begin a new conversation");
  const piece = text(entry);
  open ??= line("answer", "");
  open.append(piece);
  showNewest();
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
  source.addEventListener("closed", ({ data }) => finished(`The channel is closed: ${JSON.parse(data).reason}. Reload the page to begin a new conversation`));
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
    const plugin = await ask("/v1/plugins/answers").catch((error) => {
      const isMissing = error.code === "plugin_unknown";
      byId("missing").hidden = !isMissing;
      throw isMissing ? new Error("the plugin is not there yet") : error;
    });
    const { state } = await plugin.json();
    if (state === "paused" || state === "failed") throw new Error(`the plugin is ${state}`);
    const channels = [{ name: "requests", events: true }, { name: "answers" }];
    await send("PUT", process, { executor: PARTY, channels });
  } catch (error) {
    const denied = error.status === 401 || error.status === 403;
    byId("token-form").hidden = !denied;
    tell("waiting", denied ? "Waiting for a token" : `Waiting: ${error.message}`);
    if (!denied) setTimeout(begin, AGAIN_MS);
    return;
  }
  for (const id of ["token-form", "missing"]) byId(id).hidden = true;
  byId("ask").hidden = false;
  byId("text").focus();
  follow();
}

/** What could not be sent says why, and goes back to its field. */
async function request(body, said) {
  const asked = line("asked", said);
  try {
    await send("POST", entries("requests"), body);
  } catch (error) {
    asked.classList.add("failed");
    const why = document.createElement("small");
    why.textContent = `Not sent: ${error.message}`;
    asked.append(why);
    byId("text").value ||= body.text ?? "";
    showNewest();
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
  try {
    await ask("/v1/session", { method: "POST", headers: { Authorization: `Bearer ${token}` } });
    begin();
  } catch (error) {
    tell("lost", error.status === 401 ? "The host does not know this token" : `No session: ${error.message}`);
  }
});
begin();
