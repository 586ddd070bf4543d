// What a processor says of itself, and the tables it declares. A mistake shows when the plugin is built.

const WINDOW_ROWS_DEFAULT = 1_000;
const TABLE_NAME = /^[a-z][a-z0-9_]*$/;
const PLUGIN_NAME = /^[a-z][a-z0-9-]*$/;
const GRANTS = ['clock', 'random', 'env', 'http', 'read_dir', 'channels'];
const MANIFEST_MEMBERS = [
  'name',
  'version',
  'summary',
  'stateContentType',
  'orderingKey',
  'types',
  'aggregates',
  'tables',
  'grants',
  'flushIntervalMs',
  'changes',
];

/** Types of columns, in the order of the codes that cells are written by. */
export const TYPES = ['text', 'int', 'timestamp', 'bool', 'float', 'bytes', 'json'];

/** A column. Cannot be null, filtered or sorted by unless it says so. */
export class Column {
  constructor(type, flags = {}) {
    this.type = type;
    this.isNullable = flags.isNullable === true;
    this.isFilterable = flags.isFilterable === true;
    this.isSortable = flags.isSortable === true;
    Object.freeze(this);
  }

  /** May be null: `null`, or a member that a row does not have. */
  nullable() {
    return new Column(this.type, { ...this, isNullable: true });
  }

  /** May stand in `where`. */
  filterable() {
    return new Column(this.type, { ...this, isFilterable: true });
  }

  /** May stand in `order`; gets an index. */
  sortable() {
    return new Column(this.type, { ...this, isSortable: true });
  }
}

/** True or false. */
export const bool = () => new Column('bool');
/** A whole number of 64 bits, signed: a number that is exact, or a BigInt. */
export const int = () => new Column('int');
/** A number of 64 bits, finite. */
export const float = () => new Column('float');
export const text = () => new Column('text');
/** A Uint8Array. */
export const bytes = () => new Column('bytes');
/** Anything that can be written as JSON; a Uint8Array is taken as JSON text. */
export const json = () => new Column('json');
/** Microseconds since 1970 as a number or a BigInt, a Date, or RFC 3339 text. */
export const timestamp = () => new Column('timestamp');

/** A table as a plugin declares it. */
export class Table {
  constructor(name, { columns, versioned = false, windowRowsMax = WINDOW_ROWS_DEFAULT, ...rest }) {
    const what = `table \`${name}\``;
    if (typeof name !== 'string' || !TABLE_NAME.test(name)) throw new Error(`${what}: lower-case letters, digits and _`);
    none(rest, what);
    this.name = name;
    this.versioned = versioned;
    this.windowRowsMax = windowRowsMax;
    this.columns = Object.entries(columns ?? {}).map(([of, column]) => {
      if (!TABLE_NAME.test(of)) {
        throw new Error(`${what}: \`${of}\` is no name of a column: lower-case letters, digits and _`);
      }
      if (!(column instanceof Column)) throw new Error(`${what}: \`${of}\` is not a column such as \`text()\``);
      return { name: of, type: column.type, code: TYPES.indexOf(column.type), nullable: column.isNullable, column };
    });
  }

  toWire() {
    const columns = this.columns.map(({ name, type, nullable, column }) => {
      return { name, type, nullable, filterable: column.isFilterable, sortable: column.isSortable };
    });
    return { name: this.name, columns, versioned: this.versioned, windowRowsMax: this.windowRowsMax };
  }
}

/** Declares a table: its columns in their order; `versioned` leaves out what is not newer than the row that is there. */
export function table(name, declaration) {
  return new Table(name, declaration);
}

function none(rest, what) {
  const [unknown] = Object.keys(rest);
  if (unknown !== undefined) throw new Error(`${what}: there is no \`${unknown}\``);
}

function orderingKey(key) {
  if (key === 'aggregate' || key === 'single') return { tag: key };
  if (typeof key?.payloadField === 'string') return { tag: 'payload-field', val: key.payloadField };
  throw new Error("`orderingKey` is 'aggregate', 'single' or { payloadField: 'name' }");
}

function changeScope(scope) {
  if (scope === 'id' || scope === 'tenant') return { tag: scope };
  if (typeof scope?.field === 'string') {
    return { tag: 'field', val: { name: scope.name ?? scope.field, member: scope.field } };
  }
  throw new Error("a scope of changes is 'id', 'tenant' or { field: 'member' }");
}

/** The manifest as it crosses. */
export function manifestToWire(manifest) {
  if (manifest === null || typeof manifest !== 'object') throw new Error('a processor has a `static manifest = { … }`');
  const unknown = Object.keys(manifest).find((member) => !MANIFEST_MEMBERS.includes(member));
  if (unknown !== undefined) {
    throw new Error(`the manifest has no member \`${unknown}\`; it may have ${MANIFEST_MEMBERS.join(', ')}`);
  }
  const { name, version, tables = [], grants = [], changes = {} } = manifest;
  if (typeof name !== 'string' || !PLUGIN_NAME.test(name)) {
    throw new Error('the manifest has a `name` of lower-case letters, digits and -, beginning with a letter');
  }
  if (typeof version !== 'string') throw new Error('the manifest has a `version` such as 0.1.0');
  const foreign = tables.find((of) => !(of instanceof Table));
  if (foreign !== undefined) throw new Error('`tables` of the manifest are what `table(…)` answers');
  const grant = grants.find((of) => !GRANTS.includes(of));
  if (grant !== undefined) throw new Error(`\`${grant}\` is not a grant; there are ${GRANTS.join(', ')}`);
  return {
    name,
    version,
    summary: manifest.summary ?? '',
    stateContentType: manifest.stateContentType ?? undefined,
    orderingKey: orderingKey(manifest.orderingKey ?? 'aggregate'),
    subscription: { types: manifest.types ?? [], aggregates: manifest.aggregates ?? [] },
    tables: tables.map((of) => of.toWire()),
    grants,
    flushIntervalMs: manifest.flushIntervalMs ?? undefined,
    changes: Object.entries(changes).map(([aggregate, scopes]) => ({ aggregate, scopes: scopes.map(changeScope) })),
  };
}
