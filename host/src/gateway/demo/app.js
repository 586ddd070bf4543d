// The departures board. Every second it asks for five small pages of rows; what has not changed costs an empty
// answer (If-None-Match), and what has not changed is not drawn again.
"use strict";

const POLL_MS = 1000;
const POLL_LOST_MS = 8000; // The longest wait between two attempts while the host does not answer.
const ANSWER_MS = 10000;
const ROWS = 26;
const ROWS_COMING = 12; // Of these, how many may be still to come.
const LATE_MIN = 15;
const TABLES = ["flights", "alerts", "carriers", "airports"];
const AIRPORTS = [["", "All airports"], ["EWR", "Newark"], ["JFK", "Kennedy"], ["LGA", "LaGuardia"]];
// What each choice asks of the table.
const STATUSES = [
  ["", "All", []],
  ["scheduled", "Scheduled", ["status:eq:scheduled"]],
  ["departed", "Departed", ["status:eq:departed"]],
  ["arrived", "Arrived", ["status:eq:arrived"]],
  ["late", `Over ${LATE_MIN} min late`, [`dep_delay_min:gt:${LATE_MIN}`]],
  ["cancelled", "Cancelled", ["status:eq:cancelled"]],
];
const WORDS = { scheduled: "Scheduled", waiting: "Waiting", departed: "Departed", arrived: "Arrived", cancelled: "Cancelled" };

const byId = (id) => document.getElementById(id);
const zone = "America/New_York";
const clock = new Intl.DateTimeFormat("en-GB", { timeZone: zone, hour: "2-digit", minute: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { timeZone: zone, weekday: "short", day: "numeric", month: "short" });
const longDay = new Intl.DateTimeFormat("en-GB", { timeZone: zone, weekday: "long", day: "numeric", month: "long" });

const chosen = { airport: "", status: "", carrier: "" };
const answers = new Map(); // What each address answered last, with its ETag.
const known = new Set(); // The tables that exist.
const shown = new Map(); // What each part of the page was drawn from.
let revisions = new Map(); // The revision of each flight on the board.
let token = "";
let failures = 0;
let timer = 0;
let turn = 0; // Counts refreshes: only the newest may draw.

class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail || `the host answered ${status}`);
    this.status = status;
  }
}

async function ask(address, headers = {}) {
  if (token) headers.Authorization = `Bearer ${token}`;
  return fetch(address, { headers, cache: "no-store", signal: AbortSignal.timeout(ANSWER_MS) });
}

async function read(response) {
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(response.status, body);
  return body;
}

async function rows(table, parameters, where = []) {
  if (!known.has(table)) return { rows: [], revision: 0 };
  const query = new URLSearchParams(parameters);
  for (const condition of where) query.append("where", condition);
  const address = `/v1/tables/${table}?${query}`;
  const before = answers.get(address);
  const response = await ask(address, before ? { "If-None-Match": before.etag } : {});
  if (response.status === 304 && before) return before.page;
  const page = await read(response);
  if (answers.size > 40) answers.clear();
  answers.set(address, { etag: response.headers.get("ETag"), page });
  return page;
}

// Plugins may be deployed while the page is open: it asks until all tables are there.
async function findTables() {
  if (TABLES.every((table) => known.has(table))) return;
  const { tables } = await read(await ask("/v1/tables"));
  known.clear();
  for (const { name } of tables) known.add(name);
}

// Calls `draw` unless the part was drawn from the same things already.
function show(part, from, draw) {
  const before = shown.get(part);
  if (before && before.length === from.length && before.every((it, index) => it === from[index])) return;
  shown.set(part, from);
  draw();
}

function element(name, options = {}, ...children) {
  const made = document.createElement(name);
  if (options.className) made.className = options.className;
  Object.assign(made.dataset, options.data || {});
  made.append(...children);
  return made;
}

const cell = (className, ...children) => element("td", { className }, ...children);
const plain = (name) => (name || "").replace(/,? (Inc|Co|Corporation)\.?$/, "");
const count = (number) => number.toLocaleString("en");

function minutes(value) {
  const rounded = Math.round(value);
  return rounded > 0 ? `+${count(rounded)}` : rounded < 0 ? `−${count(-rounded)}` : "0";
}

const tone = (value) => (value > LATE_MIN ? "late" : value < 0 ? "early" : "");

function flightLine({ key, revision, values: flight }, now) {
  const scheduled = Date.parse(flight.scheduled);
  const late = flight.status === "scheduled" && scheduled < now;
  const status = late ? "waiting" : flight.status;
  const destination = cell("dest", element("b", {}, flight.dest), flight.dest_name || "");
  destination.title = flight.dest_name || flight.dest;
  const delayed = flight.dep_delay_min;
  const delay = cell("number delay", ...(delayed === null ? [] : [element("span", { className: tone(delayed) }, `${minutes(delayed)} min`)]));
  const line = element("tr", { data: { row: status } },
    cell("time", clock.format(scheduled)), cell("flight", flight.flight), destination,
    cell("airline", plain(flight.airline)), cell("from", flight.origin),
    cell("status", element("span", { data: { status } }, WORDS[status] || status)), delay);
  const before = revisions.get(key);
  if (before === undefined) line.className = revisions.size > 0 ? "entered" : "";
  else if (before !== revision) line.className = "changed";
  return line;
}

function divider(text) {
  const words = cell("", text);
  words.colSpan = 7;
  return element("tr", { className: "line" }, words);
}

function showFlights(left, coming, now) {
  const past = left.rows.slice(0, ROWS - coming.rows.length).reverse();
  const lines = [];
  let date = day.format(now);
  const add = (row) => {
    const its = day.format(Date.parse(row.values.scheduled));
    if (its !== date) lines.push(divider(its));
    date = its;
    lines.push(flightLine(row, now));
  };
  past.forEach(add);
  if (lines.length > 0 && coming.rows.length > 0) {
    lines.push(divider(`Now ${clock.format(now)}`));
    date = day.format(now);
  }
  coming.rows.forEach(add);
  revisions = new Map([...past, ...coming.rows].map((row) => [row.key, row.revision]));
  document.querySelector("#flights tbody").replaceChildren(...lines);
  byId("flights").hidden = lines.length === 0;
  const filtered = Boolean(chosen.airport || chosen.status || chosen.carrier);
  byId("unmatched").hidden = lines.length > 0 || !filtered;
  byId("none").hidden = lines.length > 0 || filtered;
  const deployed = known.has("flights");
  byId("none-why").textContent = deployed
    ? "The plugins run and wait for events. Publish the month that comes with them:"
    : "The plugin flight-board is not deployed. Start the whole demo:";
  byId("none-do").firstChild.textContent = deployed
    ? "millrace publish plugins/flight-board/data/flights-2013-01.ndjson.gz --rate 300"
    : "cargo xtask demo";
}

function showAirports(page) {
  const byKey = new Map(page.rows.map((row) => [row.key, row.values]));
  for (const button of byId("airports").children) {
    const origin = button.dataset.value;
    const name = button.firstChild;
    const airport = byKey.get(origin);
    name.querySelector("em")?.remove();
    if (airport && airport.open_alert) name.append(element("em", {}, "ALERT"));
    const open = page.rows.filter((row) => row.values.open_alert).length;
    const alerts = open === 0 ? "no open alert" : open === 1 ? "1 open alert" : `${open} open alerts`;
    button.lastChild.textContent = !origin ? alerts
      : airport ? `${airport.departures} in the last hour, mean ${minutes(airport.delay_mean_min)} min` : "no departures yet";
  }
}

function showAlerts(page) {
  const lines = page.rows.map(({ values: alert }) => {
    const open = !alert.cleared_at;
    const raised = Date.parse(alert.raised_at);
    const until = open ? `since ${clock.format(raised)}` : `${clock.format(raised)} to ${clock.format(Date.parse(alert.cleared_at))}`;
    const line = element("li", { data: { alert: open ? "open" : "cleared" } },
      element("b", {}, alert.airport), element("em", {}, open ? "delayed now" : "cleared"));
    line.append(element("small", {}, `${day.format(raised)}, ${until}. Mean ${minutes(alert.mean_delay_min)} min`));
    return line;
  });
  byId("alerts").replaceChildren(...lines);
  byId("alerts-empty").hidden = lines.length > 0;
}

function showCarriers(page) {
  const worst = Math.max(1, ...page.rows.map((row) => Math.abs(row.values.delay_mean_min ?? 0)));
  const lines = page.rows.map(({ key, values: carrier }) => {
    const mean = carrier.delay_mean_min;
    const bar = element("i", { className: mean < 0 ? "bar early" : "bar" });
    bar.style.width = `${Math.round((100 * Math.abs(mean ?? 0)) / worst)}%`;
    const name = cell("", plain(carrier.name) || key, bar);
    name.title = carrier.name;
    const line = element("tr", {}, name, cell("number", count(carrier.flights)), cell("number", count(carrier.cancelled)),
      cell("number", mean === null ? "" : element("span", { className: tone(mean) }, `${minutes(mean)} min`)));
    if (key === chosen.carrier) line.setAttribute("aria-current", "true");
    return line;
  });
  document.querySelector("#carriers tbody").replaceChildren(...lines);
  byId("carriers").hidden = lines.length === 0;
  byId("carriers-empty").hidden = lines.length > 0;
  const names = page.rows.map(({ key, values }) => [key, plain(values.name) || key]).sort((a, b) => a[1].localeCompare(b[1]));
  const select = byId("carrier");
  if (names.length + 1 !== select.options.length) {
    select.replaceChildren(new Option("All airlines", ""), ...names.map(([key, name]) => new Option(`${name} (${key})`, key)));
    select.value = chosen.carrier;
  }
}

// The time of the newest departure, or else two hours before the last flight that is announced.
async function eventTime(airports) {
  if (airports.rows.length > 0) return Math.max(...airports.rows.map((row) => Date.parse(row.values.at)));
  const newest = await rows("flights", { order: "scheduled:desc", limit: 1 });
  return newest.rows.length > 0 ? Date.parse(newest.rows[0].values.scheduled) - 2 * 3600 * 1000 : null;
}

async function refresh() {
  const mine = ++turn;
  await findTables();
  const airports = await rows("airports", { limit: 20 });
  const now = await eventTime(airports);
  const at = new Date(now ?? 0).toISOString();
  const where = [...STATUSES.find(([value]) => value === chosen.status)[2]];
  if (chosen.airport) where.push(`origin:eq:${chosen.airport}`);
  if (chosen.carrier) where.push(`carrier:eq:${chosen.carrier}`);
  const [left, coming, alerts, carriers] = await Promise.all([
    rows("flights", { order: "scheduled:desc", limit: ROWS }, [...where, `scheduled:lte:${at}`]),
    rows("flights", { order: "scheduled", limit: ROWS_COMING }, [...where, `scheduled:gt:${at}`]),
    rows("alerts", { order: "raised_at:desc", limit: 6 }, chosen.airport ? [`airport:eq:${chosen.airport}`] : []),
    rows("carriers", { order: "delay_mean_min:desc", limit: 30 }),
  ]);
  if (mine !== turn) return;
  show("airports", [airports], () => showAirports(airports));
  show("flights", [left, coming, now, known.has("flights"), Object.values(chosen).join()], () => showFlights(left, coming, now));
  show("alerts", [alerts], () => showAlerts(alerts));
  show("carriers", [carriers, chosen.carrier], () => showCarriers(carriers));
  if (now !== null) {
    byId("now").textContent = clock.format(now);
    byId("now").dateTime = at;
    byId("day").textContent = longDay.format(now);
  }
  const revision = Math.max(left.revision, coming.revision, alerts.revision, carriers.revision, airports.revision);
  tell("live", "Live", `revision ${count(revision)}`);
}

function tell(state, word, text) {
  document.body.classList.toggle("lost", state === "lost");
  byId("state").dataset.state = state;
  if (byId("state-word").textContent !== word) byId("state-word").textContent = word;
  byId("state-text").textContent = text;
}

async function poll() {
  clearTimeout(timer);
  let wait = POLL_MS;
  try {
    await refresh();
    failures = 0;
    byId("lost").hidden = true;
    byId("token-form").hidden = true;
  } catch (error) {
    const denied = error instanceof Refused && (error.status === 401 || error.status === 403);
    wait = Math.min(POLL_MS * 2 ** failures++, POLL_LOST_MS);
    known.clear(); // The host may come back as another one.
    byId("token-form").hidden = !denied;
    byId("lost").hidden = denied;
    const why = error instanceof Refused ? `The host refuses: ${error.message}.` : "The host does not answer.";
    byId("lost").textContent = `${why} ${shown.size > 0 ? "What you see is what it said last. " : ""}The page keeps trying.`;
    tell("lost", denied ? "Token needed" : "Connection lost", denied ? "" : `next attempt in ${Math.round(wait / 1000)} s`);
  }
  clearTimeout(timer);
  timer = setTimeout(poll, wait);
}

function choose(what, value) {
  chosen[what] = value;
  revisions = new Map(); // Another selection is no change of its rows.
  for (const [group, name] of [["airports", "airport"], ["statuses", "status"]]) {
    for (const button of byId(group).querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.value === chosen[name]));
    }
  }
  byId("carrier").value = chosen.carrier;
  poll();
}

function choice(what, value, ...children) {
  const button = element("button", { data: { value } }, ...children);
  button.type = "button";
  button.setAttribute("aria-pressed", String(value === ""));
  button.addEventListener("click", () => choose(what, value));
  return button;
}

byId("airports").append(...AIRPORTS.map(([code, name]) =>
  choice("airport", code, element("b", {}, code ? `${code} ${name}` : name), element("span", {}, " "))));
byId("statuses").append(...STATUSES.map(([value, name]) => choice("status", value, name)));
byId("carrier").addEventListener("change", (event) => choose("carrier", event.target.value));
byId("clear").addEventListener("click", () => {
  Object.assign(chosen, { airport: "", status: "", carrier: "" });
  choose("status", "");
});
// The token stays in this page's memory and is gone with it.
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = byId("token").value.trim();
  answers.clear();
  poll();
});
poll();
