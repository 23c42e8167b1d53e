//! The tables of the system database, step by step.
//!
//! A step is never changed once released; `user_version` counts the steps that were made. A step is one
//! transaction, so that a crash leaves whole steps.

/// The steps, in order: the first takes an empty database to version 1.
pub(super) const STEPS: &[&str] = &[
    "
CREATE TABLE namespaces(
  id BLOB PRIMARY KEY, name TEXT NOT NULL UNIQUE, created INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE databases(
  id BLOB PRIMARY KEY, namespace BLOB NOT NULL REFERENCES namespaces(id), name TEXT NOT NULL,
  page_size INTEGER NOT NULL, created INTEGER NOT NULL, deleted INTEGER, durability TEXT,
  block_reads INTEGER NOT NULL DEFAULT 0, block_writes INTEGER NOT NULL DEFAULT 0,
  delete_protection INTEGER NOT NULL DEFAULT 0, size_limit INTEGER) WITHOUT ROWID;
CREATE UNIQUE INDEX databases_live ON databases(namespace, name) WHERE deleted IS NULL;
CREATE TABLE tokens(
  id BLOB PRIMARY KEY, namespace BLOB REFERENCES namespaces(id), hash BLOB NOT NULL UNIQUE,
  display TEXT NOT NULL, kind TEXT NOT NULL, role TEXT NOT NULL, scopes TEXT NOT NULL,
  databases TEXT, allow_ddl INTEGER NOT NULL, created INTEGER NOT NULL, expires INTEGER,
  revoked INTEGER) WITHOUT ROWID;
CREATE INDEX tokens_of ON tokens(namespace, id);
CREATE TABLE operations(
  id TEXT PRIMARY KEY, namespace BLOB NOT NULL, database TEXT NOT NULL, type TEXT NOT NULL,
  state TEXT NOT NULL, started INTEGER NOT NULL, ended INTEGER, result TEXT, error TEXT) WITHOUT ROWID;
CREATE INDEX operations_of ON operations(namespace, id);
",
    // Operations became real: they name their database by id and carry what a next life needs to end them.
    "
DROP TABLE operations;
CREATE TABLE operations(
  id TEXT PRIMARY KEY, namespace BLOB NOT NULL, database BLOB, database_name TEXT, type TEXT NOT NULL,
  state TEXT NOT NULL, note TEXT NOT NULL, token TEXT, started INTEGER NOT NULL, ended INTEGER,
  phase TEXT, result TEXT, error TEXT) WITHOUT ROWID;
CREATE INDEX operations_of ON operations(namespace, id);
CREATE INDEX operations_open ON operations(state) WHERE ended IS NULL;
CREATE TABLE restores(
  id TEXT PRIMARY KEY, namespace BLOB NOT NULL, database BLOB NOT NULL, operation TEXT NOT NULL,
  created INTEGER NOT NULL, ended INTEGER, token TEXT, reason TEXT, undo_of TEXT,
  target TEXT NOT NULL, previous TEXT NOT NULL, bookmark TEXT, outcome TEXT NOT NULL,
  preserved_as TEXT, pages_changed INTEGER, duration_us INTEGER, error TEXT) WITHOUT ROWID;
CREATE INDEX restores_of ON restores(database, id);
CREATE TABLE rolled_back_keys(
  database BLOB NOT NULL, key TEXT NOT NULL, restore TEXT NOT NULL, until INTEGER NOT NULL,
  PRIMARY KEY(database, key)) WITHOUT ROWID;
",
    RECORDS,
    // Forks: where a database begins in another's history, the branch it is, when it goes by itself.
    "
ALTER TABLE databases ADD COLUMN parent BLOB;
ALTER TABLE databases ADD COLUMN parent_at TEXT;
ALTER TABLE databases ADD COLUMN branch TEXT;
ALTER TABLE databases ADD COLUMN expires INTEGER;
CREATE INDEX databases_forked ON databases(parent) WHERE parent IS NOT NULL;
CREATE UNIQUE INDEX databases_branch ON databases(parent, branch)
  WHERE branch IS NOT NULL AND deleted IS NULL;
",
    // Windows, expiry and purges, and when the calendar looks at a database next.
    "
ALTER TABLE databases ADD COLUMN retention INTEGER;
ALTER TABLE databases ADD COLUMN purging INTEGER;
ALTER TABLE databases ADD COLUMN due INTEGER;
UPDATE databases SET due = 0;
CREATE INDEX databases_due ON databases(due) WHERE due IS NOT NULL;
CREATE TABLE purged(
  id BLOB PRIMARY KEY, namespace BLOB NOT NULL, name TEXT NOT NULL, purged INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX purged_of ON purged(namespace, name);
",
    PROOF,
    // A restore may have read an archive.
    "ALTER TABLE restores ADD COLUMN archive TEXT;",
    // Archives by schedule, and namespaces that end.
    "
ALTER TABLE archives ADD COLUMN scheduled INTEGER NOT NULL DEFAULT 0;
CREATE TABLE archive_schedules(
  database BLOB PRIMARY KEY, namespace BLOB NOT NULL, every INTEGER NOT NULL, format TEXT NOT NULL,
  keep_newest INTEGER, keep_for INTEGER, due INTEGER NOT NULL, begun INTEGER, operation TEXT,
  failed TEXT) WITHOUT ROWID;
ALTER TABLE namespaces ADD COLUMN deleted INTEGER;
ALTER TABLE namespaces ADD COLUMN purging INTEGER;
",
    // Whose branch a database is: of a state that its source inherited, not that of the database it hangs on.
    "
ALTER TABLE databases ADD COLUMN branch_of BLOB;
UPDATE databases SET branch_of = parent WHERE branch IS NOT NULL;
DROP INDEX databases_branch;
CREATE UNIQUE INDEX databases_branch ON databases(branch_of, branch)
  WHERE branch IS NOT NULL AND deleted IS NULL;
",
    // What a history may take in the store, and whether foreign keys are enforced.
    "
ALTER TABLE databases ADD COLUMN history_limit INTEGER;
ALTER TABLE databases ADD COLUMN foreign_keys INTEGER NOT NULL DEFAULT 1;
",
];

/// Answers to repeat, rates and owners of tokens, members, audit lines, insights, maintenance.
const RECORDS: &str = "
CREATE TABLE requests(
  key TEXT PRIMARY KEY, fingerprint BLOB NOT NULL, at INTEGER NOT NULL, answer TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX requests_age ON requests(at);
ALTER TABLE tokens ADD COLUMN rate INTEGER;
ALTER TABLE tokens ADD COLUMN principal TEXT;
CREATE TABLE token_uses(token BLOB PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE members(
  namespace BLOB NOT NULL REFERENCES namespaces(id), principal TEXT NOT NULL, role TEXT NOT NULL,
  databases TEXT NOT NULL, created INTEGER NOT NULL, changed INTEGER NOT NULL,
  PRIMARY KEY(namespace, principal)) WITHOUT ROWID;
CREATE TABLE revoked_principals(
  namespace BLOB NOT NULL, principal TEXT NOT NULL, at INTEGER NOT NULL,
  PRIMARY KEY(namespace, principal)) WITHOUT ROWID;
CREATE TABLE maintenance(
  scope BLOB PRIMARY KEY, reason TEXT NOT NULL, started INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE audit(
  namespace BLOB NOT NULL, id TEXT NOT NULL, at INTEGER NOT NULL, action TEXT NOT NULL,
  line TEXT NOT NULL, shipped INTEGER NOT NULL DEFAULT 0, PRIMARY KEY(namespace, id)) WITHOUT ROWID;
CREATE INDEX audit_unshipped ON audit(namespace, id) WHERE shipped = 0;
CREATE INDEX audit_age ON audit(at);
CREATE TABLE audit_objects(key TEXT PRIMARY KEY, newest INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX audit_objects_age ON audit_objects(newest);
CREATE TABLE insights(
  database BLOB NOT NULL, hour INTEGER NOT NULL, token BLOB NOT NULL, status INTEGER NOT NULL,
  requests INTEGER NOT NULL, rows_read INTEGER NOT NULL, rows_written INTEGER NOT NULL,
  micros INTEGER NOT NULL, micros_max INTEGER NOT NULL,
  PRIMARY KEY(database, hour, token, status)) WITHOUT ROWID;
CREATE INDEX insights_age ON insights(hour);
CREATE TABLE slow_queries(
  database BLOB NOT NULL, id TEXT NOT NULL, at INTEGER NOT NULL, line TEXT NOT NULL,
  PRIMARY KEY(database, id)) WITHOUT ROWID;
CREATE INDEX slow_queries_age ON slow_queries(at);
";

/// Archives, verifications and when they are due.
const PROOF: &str = "
CREATE TABLE archives(
  id TEXT PRIMARY KEY, namespace BLOB NOT NULL, database BLOB NOT NULL, state TEXT NOT NULL,
  term INTEGER NOT NULL, created INTEGER NOT NULL, retain_until INTEGER, legal_hold INTEGER NOT NULL,
  operation TEXT, request TEXT UNIQUE, fingerprint BLOB, document TEXT, verified TEXT) WITHOUT ROWID;
CREATE INDEX archives_of ON archives(database, id);
CREATE INDEX archives_unfinished ON archives(state) WHERE state <> 'ready';
CREATE TABLE verifications(
  id TEXT PRIMARY KEY, namespace BLOB NOT NULL, database BLOB NOT NULL, level TEXT NOT NULL,
  outcome TEXT NOT NULL, started INTEGER NOT NULL, ended INTEGER NOT NULL, bookmark TEXT,
  restore_us INTEGER, scheduled INTEGER NOT NULL, report TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX verifications_of ON verifications(database, id);
CREATE INDEX verifications_age ON verifications(ended);
CREATE TABLE verification_schedules(
  database BLOB PRIMARY KEY, namespace BLOB NOT NULL, every INTEGER NOT NULL, level TEXT NOT NULL,
  sample INTEGER NOT NULL, due INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX verification_schedules_due ON verification_schedules(due);
";
