// Each line that ends in a number must be refused with that error, and no other line.

import { applyFrames, connect, cursorOf, live, writeJson, type View } from "../../../host/src/gateway/client/client.js";

live({ table: 7 }); // 2322
live({ limit: 5 }); // 2345
live({ table: "flights", where: [{ column: "carrier", op: "equals", value: "UA" }] }); // 2322
live({ table: "flights", sort: "carrier" }); // 2322
live({ table: "flights", transport: "http" }); // 2322
live({ table: "flights", offset: 5 }); // 2353
live({ table: "flights" }, (view, change) => change.frames); // 2339
const view: View<{ key: string; size: number }> = live({ table: "things" });
view.rows[0]!.size.toUpperCase(); // 2339
view.rows.push({ key: "a", size: 1 }); // 2339
view.status = "live"; // 2540
view.reanchor("k"); // 2345
connect("http://localhost/", { tokens: "secret" }); // 2561
connect().live({ where: [] }); // 2345
cursorOf(undefined); // 2345
const text: number = writeJson({}); // 2322
applyFrames([], [{ row: { key: "a" } }]); // 2741
export { text };
