/** Live queries of a Millrace host: an array of rows that is kept up to date, over SSE or WebSocket. */

/** A whole number beyond 2^53 arrives as a `bigint`, and may be given as one. */
export type Value = string | number | bigint | boolean | null | Value[] | { [name: string]: Value };

export type Condition =
  | { column: string; op: Operator; value?: Value }
  | { and: Condition[] }
  | { or: Condition[] }
  | { not: Condition };

export type Operator =
  | "eq" | "ne" | "gt" | "gte" | "lt" | "lte" | "in" | "notin" | "like" | "ilike" | "isnull" | "isnotnull";

/** A place in the order: one value for each sort column, then the key. */
export interface Cursor {
  values: Value[];
}

export interface Query {
  table: string;
  /** All of them must hold. */
  where?: Condition[];
  /** Then by key. */
  sort?: { column: string; desc?: boolean }[];
  /** Rows of the window; 50 unless given. */
  limit?: number;
  /** The window begins after this place; at the head unless given. */
  cursor?: Cursor | null;
  /** `maintained` (the default) is an ordered window; `streamed` is whatever matches, in no order. */
  mode?: "maintained" | "streamed" | 0 | 1;
  /** The columns that are sent, besides the key; all unless given. */
  columns?: string[];
}

export interface Connecting {
  /**
   * A bearer token, or what answers one; it is asked again for every connection. For a WebSocket, which cannot
   * send it, it is turned into a ticket first. Nothing is needed where the page has a session.
   */
  token?: string | (() => string | undefined | Promise<string | undefined>);
  fetch?: typeof fetch;
  WebSocket?: unknown;
}

export interface LiveOptions extends Query, Connecting {
  /**
   * The host's address, with a slash at its end if it has a path; or what answers it, asked for every
   * connection. Where this script came from unless given.
   */
  url?: string | URL | (() => string | URL | Promise<string | URL>);
  /**
   * `sse` (the default) is one HTTP stream for this query: a plain `EventSource` where that is possible, a
   * posted `fetch` with a token or a long query. `ws` is a WebSocket of its own; `connect` shares one.
   */
  transport?: "sse" | "ws";
  EventSource?: unknown;
}

/**
 * `connecting`: no rows yet. `live`: the rows are the query's answer. `catching-up`: the rows are old, what was
 * missed is on its way. `reset`: what was missed cannot be told, all rows are on their way. `closed`: the end.
 */
export type Status = "connecting" | "live" | "catching-up" | "reset" | "closed";

/** As the host sends it. */
export interface Frame<R = Row> {
  op: string;
  agg_id?: string;
  version?: number | bigint;
  row?: R;
  old_index?: number;
  new_index?: number;
  cursor?: Cursor;
  stream_id?: string;
  revision?: number | bigint;
}

export type Row = { readonly key: string } & { readonly [column: string]: Value };

export type Change<R = Row> =
  /** `rows` is another array: all frames of a commit or of a snapshot were applied. */
  | { type: "rows"; frames: Frame<R>[] }
  | { type: "status"; status: Status }
  /** What was missed cannot be told; all rows follow. */
  | { type: "gap"; reason: string; detail: string }
  /** Final: the host refuses this query, and the view is closed. Otherwise it is tried again. */
  | { type: "error"; code: string; detail: string; fix?: string; final: boolean };

export type Listener<R = Row> = (view: View<R>, change: Change<R>) => void;

export interface View<R = Row> extends AsyncIterable<readonly R[]> {
  /** Replaced, never changed, when a commit is complete: half a commit is never seen. */
  readonly rows: readonly R[];
  readonly status: Status;
  /** The revision that the host named last; `null` before the first rows. */
  readonly revision: number | bigint | null;
  /** Why it is not live; `null` while it is. */
  readonly error: { code: string; detail: string; fix?: string; final: boolean } | null;
  /** How often what was missed could not be told. */
  readonly gaps: number;
  /** How often a frame did not fit the rows, so that all were fetched anew. */
  readonly resets: number;
  /** Moves the window after a place (`null` is the head) or gives it another size; `undefined` keeps what it is. */
  reanchor(cursor?: Cursor | null, limit?: number): void;
  close(): void;
  /** The rows as they are, then each time that they change; what nobody took in time is left out. */
  [Symbol.asyncIterator](): AsyncIterator<readonly R[]>;
}

export interface Connection {
  live<R = Row>(query: Query, listener?: Listener<R>): View<R>;
  /** Sends the token again, before the old one expires. */
  authenticate(): Promise<void>;
  /** Closes its views as well. */
  close(): void;
}

/** Watches a query. It connects again by itself, and goes on where it was, until it is closed. */
export function live<R = Row>(options: LiveOptions, listener?: Listener<R>): View<R>;

/** One WebSocket for many queries. */
export function connect(url?: LiveOptions["url"], options?: Connecting): Connection;

/** The place of a row of a view, to anchor a window after it. */
export function cursorOf(row: object): Cursor | undefined;

/** A new array: `rows` after `frames`. Throws when a frame does not fit. */
export function applyFrames<R = Row>(rows: readonly R[], frames: Frame<R>[], streamed?: boolean): R[];

/** JSON in which whole numbers that a `number` cannot hold are `bigint`s. */
export function parseJson(text: string): Value;
export function writeJson(value: unknown): string;
