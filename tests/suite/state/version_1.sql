-- The schema of a store of version 1, as it was released.
CREATE TABLE meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE tenants(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, appended INTEGER NOT NULL DEFAULT 0);
CREATE TABLE events(
  position INTEGER PRIMARY KEY, tenant INTEGER NOT NULL, id TEXT NOT NULL, aggregate TEXT NOT NULL,
  agg_id TEXT NOT NULL, version INTEGER NOT NULL, type TEXT NOT NULL, at INTEGER NOT NULL,
  schema_version INTEGER NOT NULL, depth INTEGER NOT NULL, scope TEXT, kind TEXT, cursor TEXT,
  traceparent TEXT, appended_at INTEGER NOT NULL, payload TEXT NOT NULL);
CREATE INDEX events_tenant ON events(tenant);
CREATE TABLE tasks(
  id INTEGER PRIMARY KEY AUTOINCREMENT, processor TEXT NOT NULL, tenant TEXT NOT NULL, lane INTEGER NOT NULL,
  generation INTEGER NOT NULL, position INTEGER NOT NULL, revision INTEGER NOT NULL, at INTEGER NOT NULL,
  UNIQUE(processor, tenant, lane));
CREATE TABLE states(task INTEGER PRIMARY KEY, content_type TEXT NOT NULL, state BLOB NOT NULL);
CREATE TABLE keyed_state(task INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY(task, key)) WITHOUT ROWID;
CREATE TABLE dead_letters(
  seq INTEGER PRIMARY KEY, processor TEXT NOT NULL, task_tenant TEXT NOT NULL, lane INTEGER NOT NULL,
  reason TEXT NOT NULL, message TEXT NOT NULL, attempts INTEGER NOT NULL, dead_at INTEGER NOT NULL,
  position INTEGER NOT NULL, tenant TEXT NOT NULL, id TEXT NOT NULL, aggregate TEXT NOT NULL,
  agg_id TEXT NOT NULL, version INTEGER NOT NULL, type TEXT NOT NULL, at INTEGER NOT NULL,
  schema_version INTEGER NOT NULL, depth INTEGER NOT NULL, scope TEXT, kind TEXT, cursor TEXT,
  traceparent TEXT, payload TEXT NOT NULL);
CREATE INDEX dead_letters_processor ON dead_letters(processor);
CREATE TABLE tables(name TEXT PRIMARY KEY, owner TEXT, schema TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE deployments(plugin TEXT PRIMARY KEY, deployment TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE deployment_history(seq INTEGER PRIMARY KEY, plugin TEXT NOT NULL, deployment TEXT NOT NULL);
CREATE INDEX deployment_history_plugin ON deployment_history(plugin);
INSERT INTO meta VALUES ('trimmed', 0), ('revision', 0), ('generation', 0);
