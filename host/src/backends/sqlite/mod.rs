//! The embedded store: log, tables, checkpoints and deployments in one SQLite database.
