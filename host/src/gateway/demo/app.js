// The departures board: five live queries. Every choice of the reader is another query, and so is every hour that the
// replay passes; what is shown stays until the new rows are complete.

import { connect, live } from "/client.js";
import { keyed } from "/demo/rows.js";

const ROWS = 12;
const HOURS = 12; // Flights that were scheduled longer ago are not of now.
const DRAW_MS = 200; // Between two drawings: eyes need time, and a fast replay has thousands of commits a second.
const REQUERY_MS = 500;
const AGAIN_MS = 1000;
const LOST_MS = 3000; // A shorter loss is shown by the dot only.
const LATE_MIN = 60;
const TABLES = ["flights", "alerts", "carriers", "airports"];
const AIRPORTS = [["", "All airports"], ["EWR", "Newark"], ["JFK", "Kennedy"], ["LGA", "LaGuardia"]];
const STATUSES = [["departed", "In the air"], ["arrived", "Landed"], ["", "All"]];
const WORDS = { departed: "In the air", arrived: "Landed", cancelled: "Cancelled", scheduled: "Scheduled" };
const STATES = {
  connecting: "Connecting", live: "Live", "catching-up": "Catching up", reset: "Reset", lost: "Connection lost", waiting: "Waiting",
};

const byId = (id) => document.getElementById(id);
const zone = "America/New_York";
const clock = new Intl.DateTimeFormat("en-GB", { timeZone: zone, hour: "2-digit", minute: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { timeZone: zone, weekday: "short", day: "numeric", month: "short" });
const longDay = new Intl.DateTimeFormat("en-GB", { timeZone: zone, weekday: "long", day: "numeric", month: "long" });
const count = (number) => number.toLocaleString("en");
const plain = (name) => (name || "").replace(/,? (Inc|Co|Corporation)\.?$/, "");

const chosen = { airport: "", status: "departed", carrier: "" };
const views = {}; // By what they show: airports, carriers, open, cleared, flights.
const overSse = new URLSearchParams(location.search).get("transport") === "sse";
let token = "";
let connection = null;
let coming = null; // Flights as chosen last; they become `views.flights` when they are complete.
let horizon = null; // Where the flights of now begin.
let requeried = 0;
let revision = 0; // The one that was named last.
let commits = 0; // Since then.
let missing = [];
let lostSince = 0;

function element(name, options = {}, ...children) {
  const made = document.createElement(name);
  if (options.className) made.className = options.className;
  if (options.role) made.setAttribute("role", options.role);
  Object.assign(made.dataset, options.data || {});
  made.append(...children);
  return made;
}

const cell = (className, ...children) => element("td", { className, role: "cell" }, ...children);

function minutes(value) {
  const rounded = Math.round(value);
  return rounded > 0 ? `+${count(rounded)}` : rounded < 0 ? `−${count(-rounded)}` : "0";
}

// ---- What is asked ----

function open(query, listener) {
  if (overSse || token) return live({ ...query, token: token || undefined }, listener);
  connection ??= connect();
  return connection.live(query, listener);
}

// The host refuses a query when its table goes, or the token: both may come back.
function changed(_, { type, final }) {
  if (type === "rows") commits += 1;
  if (type === "error" && final) restart();
  draw();
}

function watchFlights() {
  const where = [{ column: "dep_delay_min", op: "gt", value: 0 }];
  if (horizon) where.push({ column: "scheduled", op: "gte", value: new Date(horizon).toISOString() });
  if (chosen.airport) where.push({ column: "origin", op: "eq", value: chosen.airport });
  if (chosen.carrier) where.push({ column: "carrier", op: "eq", value: chosen.carrier });
  if (chosen.status) where.push({ column: "status", op: "eq", value: chosen.status });
  requeried = Date.now();
  coming?.close();
  coming = open({ table: "flights", where, sort: [{ column: "dep_delay_min", desc: true }], limit: ROWS }, (view, change) => {
    if (view === coming && view.status === "live") {
      views.flights?.close();
      views.flights = coming;
      coming = null;
    }
    if (view === coming || view === views.flights) changed(view, change);
  });
  views.flights ??= coming;
}

function watch() {
  const last = (column) => [{ column, desc: true }];
  views.airports = open({ table: "airports", limit: 20 }, changed);
  views.open = open({ table: "alerts", where: [{ column: "cleared_at", op: "isnull" }], sort: last("raised_at"), limit: 6 }, changed);
  views.cleared = open({ table: "alerts", where: [{ column: "cleared_at", op: "isnotnull" }], sort: last("cleared_at"), limit: 3 }, changed);
  views.carriers = open({ table: "carriers", where: [{ column: "departed", op: "gt", value: 0 }], sort: last("delay_mean_min"), limit: 20 }, changed);
}

function unwatch() {
  coming?.close();
  coming = null;
  horizon = null; // The host may come back as another one.
  connection?.close();
  connection = null;
  for (const name of Object.keys(views)) {
    views[name].close();
    delete views[name];
  }
}

function restart() {
  unwatch();
  clearTimeout(restart.timer);
  restart.timer = setTimeout(begin, AGAIN_MS);
}

// Plugins may be deployed while the page is open.
async function begin() {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  try {
    const response = await fetch("/v1/tables", { headers, cache: "no-store" });
    const denied = response.status === 401 || response.status === 403;
    byId("token-form").hidden = !denied;
    if (denied) return tell("waiting", "for a token");
    const { tables } = await response.json();
    missing = TABLES.filter((table) => !tables.some(({ name }) => name === table));
  } catch {
    tell("lost", "");
    return restart();
  }
  if (missing.length === 0) return watch();
  tell("waiting", "for the plugins");
  showEmpty(true);
  restart();
}

// ---- What is shown ----

const showFlights = keyed(document.querySelector("#flights tbody"), () => element("tr", { role: "row" }), (line, flight) => {
  const scheduled = Date.parse(flight.scheduled);
  const destination = cell("dest", element("b", {}, flight.dest), flight.dest_name || "");
  destination.title = flight.dest_name || flight.dest;
  const delay = flight.dep_delay_min;
  line.replaceChildren(
    cell("delay", element("b", { className: delay > LATE_MIN ? "late" : "" }, minutes(delay)), element("small", {}, " min")),
    cell("time", clock.format(scheduled)), cell("flight", flight.flight), destination,
    cell("airline", plain(flight.airline)), cell("from", flight.origin),
    cell("status", element("span", { data: { status: flight.status } }, WORDS[flight.status] || flight.status)),
  );
});

const showCarriers = keyed(document.querySelector("#carriers tbody"), () => element("tr", { role: "row" }), (line, carrier) => {
  const mean = carrier.delay_mean_min;
  const bar = element("i", { className: mean < 0 ? "bar early" : "bar" });
  bar.style.width = `${Math.min(100, Math.round(Math.abs(mean) * 2.5))}%`;
  const name = cell("name", plain(carrier.name) || carrier.key, bar);
  name.title = carrier.name;
  line.replaceChildren(name, cell("number", count(carrier.departed)), cell("number", `${minutes(mean)} min`));
});

function alertLine(line, alert) {
  const isOpen = !alert.cleared_at;
  const raised = Date.parse(alert.raised_at);
  const until = isOpen ? `since ${clock.format(raised)}` : `${clock.format(raised)} to ${clock.format(Date.parse(alert.cleared_at))}`;
  line.dataset.alert = isOpen ? "open" : "cleared";
  line.replaceChildren(element("b", {}, alert.airport), ` ${isOpen ? "delayed" : "cleared"} `,
    element("small", {}, `${day.format(raised)}, ${until}, ${minutes(alert.mean_delay_min)} min`));
}
const showOpen = keyed(byId("alerts"), () => element("li"), alertLine);
const showCleared = keyed(byId("cleared"), () => element("li"), alertLine);

function showAirports(rows) {
  const byKey = new Map(rows.map((row) => [row.key, row]));
  const alerts = rows.filter((row) => row.open_alert).length;
  for (const button of byId("airports").children) {
    const { value } = button.dataset;
    const airport = byKey.get(value);
    button.querySelector("em").hidden = !(airport && airport.open_alert);
    const text = !value ? (alerts === 0 ? "no open alert" : alerts === 1 ? "1 open alert" : `${alerts} open alerts`)
      : airport ? `${airport.departures} an hour, ${minutes(airport.delay_mean_min)} min` : "no departures yet";
    if (button.lastChild.textContent !== text) button.lastChild.textContent = text;
  }
}

function showChoices(carriers) {
  const names = carriers.map(({ key, name }) => [key, plain(name) || key]).sort((a, b) => a[1].localeCompare(b[1]));
  const select = byId("carrier");
  if (names.length + 1 === select.options.length) return;
  select.replaceChildren(new Option("All airlines", ""), ...names.map(([key, name]) => new Option(`${name} (${key})`, key)));
  select.value = chosen.carrier;
}

function showEmpty(isEmpty) {
  const filtered = horizon !== null;
  byId("flights").hidden = isEmpty;
  byId("unmatched").hidden = !isEmpty || !filtered;
  byId("none").hidden = !isEmpty || filtered;
  const isDeployed = missing.length === 0;
  byId("none-why").textContent = isDeployed
    ? "The plugins run and wait for events. Publish the month that comes with them:"
    : `There is no table ${missing.join(", ")}: the demo's plugins are not all deployed. Start the whole demo:`;
  byId("none-do").textContent = isDeployed
    ? "millrace publish plugins/flight-board/data/flights-2013-01.ndjson.gz --rate 100"
    : "cargo xtask demo --rate 100";
}

// The replay's time is that of the newest departure; how fast it goes is measured over some seconds.
const past = [];
function showClock(airports) {
  if (airports.length === 0) return views.flights || watchFlights();
  const now = Math.max(...airports.map((row) => Date.parse(row.at)));
  const real = performance.now();
  if (now !== showClock.now) {
    showClock.now = now;
    byId("now").textContent = clock.format(now);
    byId("now").dateTime = new Date(now).toISOString();
    byId("day").textContent = longDay.format(now);
  }
  past.push([real, now]);
  while (past.length > 1 && past[0][0] < real - 5000) past.shift();
  const [first, begun] = past[0];
  const speed = real - first > 1000 ? (now - begun) / (real - first) : 0;
  byId("speed").textContent = speed > 0.5 ? `replay at ×${count(Number(speed.toPrecision(2)))}` : "the replay stands still";
  const hour = 3_600_000;
  const next = Math.floor(now / hour) * hour - HOURS * hour;
  if (!views.flights || (next !== horizon && (horizon === null || Date.now() - requeried > REQUERY_MS))) {
    horizon = next;
    watchFlights();
  }
}

function tell(state, text) {
  byId("state").dataset.state = state;
  if (byId("state-word").textContent !== STATES[state]) byId("state-word").textContent = STATES[state];
  byId("state-text").textContent = text;
  lostSince = state === "live" || state === "waiting" ? 0 : lostSince || Date.now();
  const isLost = lostSince > 0 && Date.now() - lostSince > LOST_MS;
  document.body.classList.toggle("lost", isLost);
  if (byId("lost").hidden === isLost) {
    byId("lost").hidden = !isLost;
    byId("lost").textContent = isLost ? "The host does not answer. What you see is what it said last; the page keeps trying." : "";
  }
}

function showState() {
  const all = Object.values(views);
  if (all.length === 0) return;
  const has = (status) => all.some((view) => view.status === status);
  const state = ["reset", "catching-up", "connecting"].find(has) ?? "live";
  const isLost = state !== "live" && all.some((view) => view.error && view.error.code === "connection_lost");
  const newest = Math.max(...all.map((view) => Number(view.revision ?? 0)));
  if (newest !== revision) commits = 0;
  revision = newest;
  const text = state === "connecting" ? "" : `revision ${count(revision)}${commits > 0 ? ` +${count(commits)}` : ""}`;
  tell(isLost ? "lost" : state, text);
}

let drawn = { at: 0 };
function draw() {
  if (draw.waits) return;
  draw.waits = true;
  setTimeout(() => requestAnimationFrame(() => {
    draw.waits = false;
    paint();
  }), Math.max(0, drawn.at + DRAW_MS - performance.now()));
}

function paint() {
  const before = drawn;
  drawn = { at: performance.now() };
  for (const [name, view] of Object.entries(views)) drawn[name] = view.rows;
  const show = (name, how) => {
    if (views[name] && views[name].revision !== null && drawn[name] !== before[name]) how(drawn[name], Boolean(before[name]));
  };
  show("airports", showAirports);
  show("open", (rows, moving) => {
    showOpen(rows, moving);
    byId("alerts-empty").hidden = rows.length > 0;
  });
  show("cleared", (rows) => {
    showCleared(rows);
    byId("cleared-title").hidden = rows.length === 0;
  });
  show("carriers", (rows, moving) => {
    showCarriers(rows, moving);
    showChoices(rows);
    byId("carriers").hidden = rows.length === 0;
    byId("carriers-empty").hidden = rows.length > 0;
  });
  show("flights", (rows, moving) => {
    showEmpty(rows.length === 0);
    showFlights(rows, moving);
  });
  // Which flights are of now says the clock.
  if (views.airports && views.airports.revision !== null) showClock(views.airports.rows);
  showState();
}

// ---- What is chosen ----

function choose(what, value) {
  chosen[what] = value;
  for (const [group, name] of [["airports", "airport"], ["statuses", "status"]]) {
    for (const button of byId(group).querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.value === chosen[name]));
    }
  }
  byId("carrier").value = chosen.carrier;
  if (views.flights) watchFlights();
}

function choice(what, value, ...children) {
  const button = element("button", { data: { value } }, ...children);
  button.type = "button";
  button.setAttribute("aria-pressed", String(value === chosen[what]));
  button.addEventListener("click", () => choose(what, value));
  return button;
}

byId("airports").append(...AIRPORTS.map(([code, name]) => {
  const alert = element("em", {}, "ALERT");
  alert.hidden = true;
  return choice("airport", code, element("b", {}, code && `${code} `, element("span", {}, name), " ", alert), element("span", {}, " "));
}));
byId("statuses").append(...STATUSES.map(([value, name]) => choice("status", value, name)));
byId("carrier").addEventListener("change", (event) => choose("carrier", event.target.value));
byId("clear").addEventListener("click", () => {
  Object.assign(chosen, { airport: "", carrier: "" });
  choose("status", "departed");
});
// The token stays in this page's memory and is gone with it.
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = byId("token").value.trim();
  begin();
});
// The speed and a loss are told also while nothing comes.
setInterval(draw, 500);
begin();
