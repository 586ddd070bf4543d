// The departures board: three queries a second, each free while nothing changes (If-None-Match).
"use strict";

const POLL_MS = 1000;
const LEAD_MS = 25 * 60 * 1000; // The board shows what leaves in the next minutes, and what left before.
const ROWS = 36;

const byId = (id) => document.getElementById(id);
const zone = "America/New_York";
const clock = new Intl.DateTimeFormat("en-GB", { timeZone: zone, hour: "2-digit", minute: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { timeZone: zone, weekday: "short", day: "numeric", month: "long", year: "numeric" });

let origin = "";
let token = "";
const answers = new Map(); // What each address answered last, with its ETag.
const revisions = new Map(); // The revision of each row that has been shown, by table and key.

class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail || `the host answered ${status}`);
    this.status = status;
    this.code = problem.code;
  }
}

async function rows(table, parameters) {
  const address = `/v1/tables/${table}?${new URLSearchParams(parameters)}`;
  const known = answers.get(address);
  const headers = {};
  if (known) headers["If-None-Match"] = known.etag;
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch(address, { headers, cache: "no-store" });
  if (response.status === 304 && known) return known.page;
  const page = await response.json().catch(() => ({}));
  if (!response.ok) {
    // The plugin may not be deployed yet.
    if (page.code === "table_unknown") return { rows: [], revision: 0 };
    throw new Refused(response.status, page);
  }
  if (answers.size > 40) answers.clear();
  answers.set(address, { etag: response.headers.get("ETag"), page });
  return page;
}

function element(name, text, options = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  if (options.className) made.className = options.className;
  Object.assign(made.dataset, options.data || {});
  return made;
}

// A row flashes when it is shown again with another revision.
function hasChanged(table, row) {
  const name = `${table}/${row.key}`;
  const before = revisions.get(name);
  revisions.set(name, row.revision);
  return before !== undefined && before !== row.revision;
}

function fill(body, table, page, cells) {
  const lines = page.rows.map((row) => {
    const line = document.createElement("tr");
    line.append(...cells(row.values, row));
    if (hasChanged(table, row)) line.className = "changed";
    return line;
  });
  body.replaceChildren(...lines);
}

function delay(minutes) {
  if (minutes === null || minutes === undefined) return element("td", "", { className: "number" });
  const rounded = Math.round(minutes);
  const className = rounded > 15 ? "number late" : rounded <= 0 ? "number early" : "number";
  return element("td", rounded > 0 ? `+${rounded}` : `${rounded}`, { className });
}

function showFlights(page) {
  fill(document.querySelector("#flights tbody"), "flights", page, (flight) => [
    element("td", clock.format(new Date(flight.scheduled))),
    element("td", flight.flight),
    element("td", flight.dest_name || flight.dest),
    element("td", flight.airline, { className: "wide" }),
    element("td", flight.origin),
    element("td", flight.status, { data: { status: flight.status } }),
    delay(flight.status === "arrived" ? flight.arr_delay_min : flight.dep_delay_min),
  ]);
  byId("flights-empty").hidden = page.rows.length > 0;
}

function showCarriers(page) {
  fill(document.querySelector("#carriers tbody"), "carriers", page, (carrier, row) => [
    element("td", carrier.name || row.key),
    element("td", carrier.flights.toLocaleString("en"), { className: "number" }),
    delay(carrier.delay_mean_min),
    delay(carrier.worst_delay_min),
  ]);
}

function showAlerts(page) {
  const lines = page.rows.map(({ values: alert }) => {
    const open = !alert.cleared_at;
    const line = element("li", `${alert.airport} ${open ? "is delayed" : "was delayed"}`, {
      data: { status: open ? "open" : "cleared" },
    });
    const since = `${day.format(new Date(alert.raised_at))} ${clock.format(new Date(alert.raised_at))}`;
    const until = open ? "" : `–${clock.format(new Date(alert.cleared_at))}`;
    const mean = Math.round(alert.mean_delay_min);
    line.append(element("small", `${since}${until} · mean ${mean} min over ${alert.departures} departures`));
    return line;
  });
  byId("alerts").replaceChildren(...lines);
  byId("alerts-empty").hidden = lines.length > 0;
}

// The time of the newest departure, or else two hours before the last flight that is announced.
async function eventTime() {
  const airports = await rows("airports", { order: "at:desc", limit: 1 });
  if (airports.rows.length > 0) return Date.parse(airports.rows[0].values.at);
  const newest = await rows("flights", { order: "scheduled:desc", limit: 1 });
  if (newest.rows.length === 0) return null;
  return Date.parse(newest.rows[0].values.scheduled) - 2 * 3600 * 1000;
}

async function refresh() {
  const now = await eventTime();
  const board = new URLSearchParams({ order: "scheduled:desc", limit: ROWS });
  if (now !== null) board.append("where", `scheduled:lte:${new Date(now + LEAD_MS).toISOString()}`);
  if (origin) board.append("where", `origin:eq:${origin}`);
  const alerts = new URLSearchParams({ order: "raised_at:desc", limit: 8 });
  if (origin) alerts.append("where", `airport:eq:${origin}`);
  const [flights, recent, carriers] = await Promise.all([
    rows("flights", board),
    rows("alerts", alerts),
    rows("carriers", { order: "delay_mean_min:desc", limit: 20 }),
  ]);
  if (revisions.size > 2000) revisions.clear();
  showFlights(flights);
  showAlerts(recent);
  showCarriers(carriers);
  if (now !== null) {
    byId("now").textContent = clock.format(new Date(now));
    byId("day").textContent = day.format(new Date(now));
  }
  byId("revision").textContent = Math.max(flights.revision, recent.revision, carriers.revision).toLocaleString("en");
}

function tell(state, text) {
  const shown = byId("state");
  shown.dataset.state = state;
  if (shown.textContent !== text) shown.textContent = text;
}

async function poll() {
  try {
    await refresh();
    tell("live", "live");
    byId("token-form").hidden = true;
  } catch (error) {
    const denied = error instanceof Refused && (error.status === 401 || error.status === 403);
    byId("token-form").hidden = !denied;
    tell("lost", error instanceof Refused ? error.message : "the host does not answer");
  }
  setTimeout(poll, POLL_MS);
}

for (const button of document.querySelectorAll("nav button")) {
  button.addEventListener("click", () => {
    origin = button.dataset.origin;
    for (const other of document.querySelectorAll("nav button")) {
      other.setAttribute("aria-pressed", String(other === button));
    }
    refresh().catch(() => tell("lost", "the host does not answer"));
  });
}
// The token stays in this page's memory and is gone with it.
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = byId("token").value.trim();
  answers.clear();
});
poll();
