// Every export of client.d.ts, used as it is meant. It is checked, never run.

import {
  applyFrames, connect, cursorOf, live, parseJson, writeJson,
  type Change, type Condition, type Connecting, type Connection, type Cursor, type Frame, type Listener,
  type LiveOptions, type Operator, type Query, type Row, type Status, type Value, type View,
} from "../../../host/src/gateway/client/client.js";

interface Flight {
  key: string;
  carrier: string;
  dep_delay_min: number | null;
}

const op: Operator = "gte";
const late: Condition = { column: "dep_delay_min", op, value: 9007199254740993n };
const query: Query = {
  table: "flights",
  where: [late, { not: { or: [{ and: [late] }, { column: "tail", op: "isnull" }] } }],
  sort: [{ column: "dep_delay_min", desc: true }, { column: "key" }],
  limit: 20,
  cursor: { values: [null, 1, "k"] },
  mode: "maintained",
  columns: ["carrier", "dep_delay_min"],
};
const connecting: Connecting = { token: async () => undefined, fetch, WebSocket };
const options: LiveOptions = { ...query, ...connecting, url: () => new URL("http://localhost/"), transport: "sse", EventSource };

const said: string[] = [];
const listener: Listener<Flight> = (view, change: Change<Flight>) => {
  if (change.type === "rows") for (const { op, row } of change.frames) said.push(op, row?.carrier ?? "");
  else if (change.type === "gap") said.push(change.reason);
  else if (change.type === "error") said.push(change.final ? change.code : change.fix ?? change.detail);
  else said.push(change.status satisfies Status);
  const delays: (number | null)[] = view.rows.map(({ dep_delay_min }) => dep_delay_min);
  said.push(String(delays));
};

export async function follow(): Promise<readonly Flight[]> {
  const view: View<Flight> = live<Flight>(options, listener);
  const place: Cursor | undefined = cursorOf(view.rows[0]!);
  view.reanchor(place ?? null, 10);
  view.reanchor(undefined, 5);
  const counts: number = view.gaps + view.resets;
  const revision: number | bigint | null = view.revision;
  said.push(view.error?.code ?? view.status, String(revision), String(counts));
  for await (const rows of view) if (rows.length > 0) return rows;
  view.close();
  return view.rows;
}

export async function share(): Promise<Row[]> {
  const connection: Connection = connect("http://localhost/", { token: "secret" });
  const view = connection.live(query);
  await connection.authenticate();
  const frames: Frame[] = [{ op: "enter", row: { key: "a", carrier: "UA" }, old_index: -1, new_index: 0 }];
  const rows: Row[] = applyFrames(view.rows, frames, false);
  const value: Value = parseJson(writeJson({ rows, whole: 9007199254740993n }));
  said.push(String(value), String(rows[0]?.carrier));
  connection.close();
  return rows;
}
