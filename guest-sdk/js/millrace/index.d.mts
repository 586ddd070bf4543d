// What a plugin imports, with its types.

/** Microseconds since 1970 as a number or a BigInt, a Date, or RFC 3339 text. */
export type Time = number | bigint | string | Date;

/** An event could not be handled. Throw one; anything else that is thrown ends the instance. */
export class Failure extends Error {
  readonly kind: 'retry' | 'reject' | 'fatal';
  /** Transient: the host tries again later. */
  static retry(message: string): Failure;
  /** The event itself is bad: it becomes a dead letter, and work goes on after it. */
  static reject(message: string): Failure;
  /** The processor cannot go on: the host stops it. */
  static fatal(message: string): Failure;
}

export interface Column {
  /** May be null: `null`, or a member that a row does not have. */
  nullable(): Column;
  /** May stand in `where`. */
  filterable(): Column;
  /** May stand in `order`; gets an index. */
  sortable(): Column;
}

export function bool(): Column;
/** A whole number of 64 bits, signed: a number that is exact, or a BigInt. */
export function int(): Column;
/** A number of 64 bits, finite. */
export function float(): Column;
export function text(): Column;
/** A Uint8Array. */
export function bytes(): Column;
/** Anything that can be written as JSON; a Uint8Array is taken as JSON text. */
export function json(): Column;
/** Microseconds since 1970 as a number or a BigInt, a Date, or RFC 3339 text. */
export function timestamp(): Column;

export interface Table {
  readonly name: string;
}

/** Declares a table, its columns in their order. */
export function table(
  name: string,
  declaration: {
    columns: Record<string, Column>;
    /** A put or delete with a version not above the stored one is left out as stale. */
    versioned?: boolean;
    /** The most rows one query may ask for; 1,000 where it is not said. */
    windowRowsMax?: number;
  },
): Table;

/** An event. It belongs to its batch: text and numbers may be kept, the payload's bytes are to be copied. */
export interface Event {
  readonly id: string;
  readonly aggregate: string;
  readonly aggId: string;
  readonly type: string;
  readonly scope: string | undefined;
  readonly kind: string | undefined;
  readonly cursor: string | undefined;
  readonly traceparent: string | undefined;
  /** JSON text, as bytes. */
  readonly payload: Uint8Array;
  readonly payloadText: string;
  /** The payload, read once. A whole number beyond 2^53 is a BigInt. What is not JSON is rejected. */
  json(): any;
  /** The payload as an object of this class, such as `ChannelEntry`, which is made of it. One that does not fit is rejected. */
  payloadAs<T>(Kind: new (payload: any) => T): T;
  /** A number that would not be exact is rejected; the BigInt always is. */
  readonly position: number;
  readonly positionBig: bigint;
  readonly version: number;
  readonly versionBig: bigint;
  /** When it happened: microseconds since 1970. */
  readonly at: number;
  readonly atBig: bigint;
  /** The same: a BigInt only where a number would not be exact. */
  readonly anyAt: number | bigint;
  /** The same in RFC 3339. */
  readonly atText: string;
  readonly schemaVersion: number;
  readonly depth: number;
}

export interface Entry {
  readonly key: string;
  readonly keyBytes: Uint8Array;
  readonly value: Uint8Array;
  readonly expiresAt: number | bigint | undefined;
  text(): string;
  json(): any;
}

export interface State {
  get(key: string | Uint8Array): Uint8Array | undefined;
  getText(key: string | Uint8Array): string | undefined;
  getJson(key: string | Uint8Array): any;
  /** `ttlMs`: gone so long after the event at hand; `until`: gone from this time on. */
  put(key: string | Uint8Array, value: string | Uint8Array, end?: { ttlMs?: number; until?: Time }): void;
  putJson(key: string | Uint8Array, value: unknown, end?: { ttlMs?: number; until?: Time }): void;
  delete(key: string | Uint8Array): void;
  /** In the order of the keys' bytes. To change entries on the way, collect their keys first. */
  scan(prefix?: string | Uint8Array, options?: { after?: string | Uint8Array; limit?: number }): Generator<Entry>;
}

/** What an emitted event says besides its payload. A member that is null counts as absent. */
export interface NewEvent {
  aggregate: string;
  aggId: string;
  type: string;
  /** That of the event at hand where it is not said. */
  at?: Time | null;
  /** 1 where it is not said, as is the schema version. */
  version?: number | bigint | null;
  schemaVersion?: number | null;
  /** Derived from the other parts where it is not said. */
  id?: string | null;
}

/** An entry for a channel. A member that is null counts as absent; what is neither text nor bytes is refused. */
export interface NewEntry {
  type?: 'data' | 'end' | 'error' | null;
  payload?: string | Uint8Array | null;
  /** With the type `error` only. */
  error?: string | null;
  /** The number of an entry that somebody else has sent on the same channel. */
  inReplyTo?: number | bigint | null;
}

/** An entry as an event tells it: `event.payloadAs(ChannelEntry)`. Numbers are BigInts only beyond 2^53. */
export class ChannelEntry {
  constructor(payload: unknown);
  readonly process: string;
  readonly channel: string;
  /** Its place in the channel, from 1 on without holes. */
  readonly position: number | bigint;
  readonly epoch: number;
  /** Counted by its sender. */
  readonly sequence: number | bigint;
  readonly inReplyTo: number | bigint | undefined;
  readonly sender: string;
  /** Who executed the channel when this was appended; a plugin is `plugin:<name>`. */
  readonly executor: string | undefined;
  readonly entryType: 'data' | 'end' | 'error';
  /** Base64; `bytes` has what it stands for. */
  readonly payload: string | undefined;
  /** The payload, where it is text. */
  readonly text: string | undefined;
  readonly error: string | undefined;
  /** The payload; undefined where the entry has none. */
  bytes(): Uint8Array | undefined;
}

/** Takes what a processor asks for. It all happens together with the event's position, or not at all. */
export interface Effects {
  /** Writes a row over the one with the same key. `version` is 1 or more in a versioned table; 0 will do in another. */
  put(table: Table, key: string, version: number | bigint, row: Record<string, unknown>): void;
  delete(table: Table, key: string, version: number | bigint): void;
  /** Appends an event to the stream; a Uint8Array is taken as JSON text. */
  emit(event: NewEvent, payload: unknown): void;
  /** Appends an entry to a channel of a process. */
  append(process: string, channel: string, entry?: NewEntry | null): void;
  readonly state: State;
  /** What has been asked for so far in this batch. */
  readonly bytes: number;
  readonly length: number;
}

export interface Config {
  /** The operator's setting; undefined where it is not set. */
  get(name: string): string | undefined;
  /** The setting as a whole number of at least `least`; `otherwise` where it is not set. What is none is refused. */
  integer(name: string, otherwise: number, least?: number): number;
  /** `true` or `false`. */
  flag(name: string, otherwise?: boolean): boolean;
  /** One of these words; the first where it is not set. */
  oneOf(name: string, words: string[]): string;
  /** A time such as `500ms`, `30s`, `5m`, `2h` or `1d`, in milliseconds. */
  durationMs(name: string, otherwise: string): number;
}

export const config: Config;

/** Messages for the operator. The host bounds their size and rate. */
export const log: Record<'debug' | 'info' | 'warn' | 'error', (message: unknown) => void>;

export interface Context {
  readonly tenant: string;
  /** This lane, from 0, and how many there are. */
  readonly lane: number;
  readonly lanes: number;
  readonly config: Config;
  /** The keyed state as it is stored. */
  readonly state: {
    get(key: string | Uint8Array): Uint8Array | undefined;
    scan(prefix?: string | Uint8Array, options?: { after?: string | Uint8Array }): Generator<Entry>;
  };
}

/** What the task last committed. */
export interface Saved {
  readonly contentType: string;
  readonly state: Uint8Array;
  text(): string;
  /** The state as JSON; refuses another content type than this one, where it is given. */
  json(contentType?: string): any;
  /** Reads a state of one of several content types, each in its own way. */
  migrate<T>(ways: Record<string, (value: any) => T>): T;
}

export type ChangeScope = 'id' | 'tenant' | { field: string; name?: string };

export interface Manifest {
  /** Lower-case letters, digits and `-`, beginning with a letter. */
  name: string;
  /** A semantic version. */
  version: string;
  summary?: string;
  /** What `snapshot` writes. Change it when the bytes change their meaning. */
  stateContentType?: string;
  orderingKey?: 'aggregate' | 'single' | { payloadField: string };
  /** The events it gets; a trailing `*` stands for any ending. All, where it is not said. */
  types?: string[];
  aggregates?: string[];
  tables?: Table[];
  grants?: ('clock' | 'random' | 'env' | 'http' | 'read_dir' | 'channels')[];
  /** How often `flush('tick')` is wanted; never, where it is not said. */
  flushIntervalMs?: number;
  /** By what the changes of an aggregate can be followed. */
  changes?: Record<string, ChangeScope[]>;
}

export interface Processor {
  handle(event: Event, out: Effects): void;
  flush?(reason: 'tick' | 'shutdown' | 'swap', out: Effects): void;
  snapshot?(): string | Uint8Array;
}

export interface ProcessorClass {
  readonly manifest: Manifest;
  /** Begins work for a task. What it throws is a refusal. */
  new (context: Context, saved: Saved | undefined): Processor;
}

/** What a component exports. */
export interface Handler {
  describe(): object;
  load(context: object, saved?: object): void;
  handle(arena: Uint8Array, events: Uint8Array): object;
  flush(reason: string): object;
  snapshot(): Uint8Array;
}

/** Makes a component's `handler` out of a class. */
export function processor(processorClass: ProcessorClass): Handler;

/** Reads JSON; a whole number beyond 2^53 is a BigInt. */
export function parseJson(text: string): any;
/** Writes JSON, BigInts as numbers. What has none is rejected: `NaN`, a Map or Set, half a surrogate pair. */
export function toJson(value: unknown): string;
/** JSON text that is the same for the same content: members in one order, a Map as an object. A Set is rejected. */
export function stableJson(value: unknown): string;
/** Microseconds since 1970 of an RFC 3339 time; undefined where the text is none. */
export function parseTime(text: string): number | bigint | undefined;
/** Whether the plugin was built with the grant `clock`, so that its clocks are the machine's. In tests they never are. */
export function hasClock(): boolean;
export function formatTime(time: number | bigint): string;
