//! What each call is for: a summary, its query parameters, its fields, an example. Names must be those of the
//! handlers; tests hold the examples against the served routes.

use axum::http::Method;

/// A query parameter or a field of a body. The kind is a name of `super::schema`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) kind: &'static str,
    pub(super) required: bool,
    pub(super) about: &'static str,
}

/// What is told of a route beside the table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Description {
    pub(super) summary: &'static str,
    pub(super) query: &'static [Field],
    pub(super) body: &'static [Field],
    pub(super) example: Option<&'static str>,
    pub(super) success: &'static [u16],
    /// The type of the body of an answer.
    pub(super) answer: Option<&'static str>,
}

const fn may(name: &'static str, kind: &'static str, about: &'static str) -> Field {
    Field {
        name,
        kind,
        required: false,
        about,
    }
}

const fn must(name: &'static str, kind: &'static str, about: &'static str) -> Field {
    Field {
        name,
        kind,
        required: true,
        about,
    }
}

const fn told(summary: &'static str, success: &'static [u16]) -> Description {
    Description {
        summary,
        query: &[],
        body: &[],
        example: None,
        success,
        answer: Some("application/json"),
    }
}

impl Description {
    const fn query(mut self, fields: &'static [Field]) -> Self {
        self.query = fields;
        self
    }

    const fn body(mut self, fields: &'static [Field], example: &'static str) -> Self {
        self.body = fields;
        self.example = Some(example);
        self
    }

    const fn answers(mut self, kind: &'static str) -> Self {
        self.answer = Some(kind);
        self
    }
}

const PAGE: &[Field] = &[
    may("limit", "integer", "Items of a page, 1 to 500."),
    may("cursor", "text", "Where the last page ended."),
];

const QUERY: Description = told("Run one statement", &[200]).body(
    &[
        must("sql", "text", "One SQL statement."),
        may("params", "params", "By position or by name."),
        may("durability", "text", "memory, local or remote."),
        may("integers", "text", "number or string."),
    ],
    r#"{"sql":"insert into t(a,b) values(?,?)","params":[1,"x"],"durability":"remote"}"#,
);
const BATCH: Description = told("Run statements in one transaction", &[200]).body(
    &[
        must(
            "statements",
            "objects",
            "Up to 100 objects with sql and params.",
        ),
        may(
            "transaction",
            "boolean",
            "false: each in a transaction of its own.",
        ),
        may("durability", "text", "memory, local or remote."),
        may("integers", "text", "number or string."),
    ],
    r#"{"statements":[{"sql":"delete from t where a = ?","params":[1]}],"transaction":true}"#,
);
const MAINTENANCE: Description = told("Switch maintenance on or off", &[200]).body(
    &[
        must("enabled", "boolean", "Whether writes are refused."),
        may("reason", "text", "Told to those who are refused."),
    ],
    r#"{"enabled":true,"reason":"moving"}"#,
);
const AUDIT: &[Field] = &[
    may(
        "action",
        "text",
        "An event, or the beginning of some when it ends in a dot.",
    ),
    may("since", "time", "Only lines from then on."),
    may("limit", "integer", "Lines of a page, 1 to 500."),
    may("cursor", "text", "Where the last page ended."),
];

type Row = (&'static str, &'static str, Description);

const ROWS: &[Row] = &[
    ("GET", "/healthz", told("The process answers", &[200])),
    ("GET", "/readyz", told("Requests can be judged", &[200])),
    (
        "GET",
        "/metrics",
        told("Counters for Prometheus", &[200]).answers("text/plain"),
    ),
    ("GET", "/v1/openapi.json", told("This document", &[200])),
    (
        "POST",
        "/v1/namespaces",
        told("Make a namespace and its first owner token", &[201]).body(
            &[must("name", "text", "1 to 63 of a-z, 0-9, _ and -.")],
            r#"{"name":"acme"}"#,
        ),
    ),
    (
        "GET",
        "/v1/audit",
        told("The server's own audit log, newest first", &[200]).query(AUDIT),
    ),
    (
        "GET",
        "/v1/maintenance",
        told("Whether the server is under maintenance", &[200]),
    ),
    ("PUT", "/v1/maintenance", MAINTENANCE),
    (
        "POST",
        "/v1/retention",
        told("Apply retention now, or show what that would do", &[200])
        .body(
            &[
                may("apply", "boolean", "Do it; only shown otherwise."),
                may("database", "text", "Only this database."),
            ],
            r#"{"apply":false}"#,
        ),
    ),
    (
        "POST",
        "/v1/namespaces/{ns}/databases",
        told("Make an empty database", &[201]).body(
            &[
                must("name", "text", "1 to 63 of a-z, 0-9, _ and -."),
                may("page_size", "integer", "A power of two from 512 to 65536."),
                may("auto_vacuum", "text", "none, full or incremental."),
                may(
                    "seed",
                    "object",
                    "database, and bookmark or timestamp, schema_only: a fork.",
                ),
                may("ttl_seconds", "integer", "Of a fork: a day to thirty days."),
                may("region", "text", "auto, or the server's own."),
            ],
            r#"{"name":"orders","page_size":4096}"#,
        ),
    ),
    (
        "GET",
        "/v1/operations/{operation}",
        told("An operation of a namespace that is gone", &[200]),
    ),
    (
        "GET",
        "/v1/namespaces/{ns}",
        told("A namespace, and whether it is deleted", &[200]),
    ),
    (
        "DELETE",
        "/v1/namespaces/{ns}",
        told(
            "Delete a namespace with all its databases; undone within seven days unless purged",
            &[200, 202],
        )
        .query(&[may("purge", "boolean", "For good, at once.")]),
    ),
    (
        "POST",
        "/v1/namespaces/{ns}/undelete",
        told("Bring a deleted namespace back with its databases", &[200]),
    ),
    (
        "GET",
        "/v1/namespaces/{ns}/databases",
        told("List databases", &[200]).query(PAGE),
    ),
    (
        "GET",
        "/v1/namespaces/{ns}/databases/{db}",
        told("A database, its size and where it stands", &[200]),
    ),
    (
        "PATCH",
        "/v1/namespaces/{ns}/databases/{db}",
        told("Change the settings of a database", &[200]).body(
            &[
                may("block_reads", "boolean", "Refuse reads."),
                may("block_writes", "boolean", "Refuse writes."),
                may("delete_protection", "boolean", "Refuse deletion."),
                may(
                    "durability",
                    "text or null",
                    "memory, local or remote; null goes back to the server's.",
                ),
                may(
                    "size_limit",
                    "integer or null",
                    "The most bytes it may have; null lifts it.",
                ),
                may(
                    "history_limit_bytes",
                    "integer or null",
                    "The most bytes its history may take in the store: near it writes are slowed, at it refused; null lifts it.",
                ),
                may("foreign_keys", "boolean", "Enforce foreign keys; the default."),
                may("retention", "object", "How long history is kept."),
                may("region", "text", "Refused: it does not change."),
            ],
            r#"{"block_writes":true}"#,
        ),
    ),
    (
        "DELETE",
        "/v1/namespaces/{ns}/databases/{db}",
        told(
            "Delete a database; undone within seven days unless purged",
            &[200, 202, 204],
        )
        .query(&[
            may("purge", "boolean", "For good, at once."),
            may(
                "detach_forks",
                "boolean",
                "With purge: makes its forks independent first.",
            ),
        ]),
    ),
    (
        "POST",
        "/v1/namespaces/{ns}/databases/{db}/undelete",
        told("Bring a deleted database back", &[200]),
    ),
    ("POST", "/v1/namespaces/{ns}/databases/{db}/query", QUERY),
    ("POST", "/v1/namespaces/{ns}/databases/{db}/batch", BATCH),
    ("POST", "/v1/db/{ns}/{db}/query", QUERY),
    ("POST", "/v1/db/{ns}/{db}/batch", BATCH),
    (
        "GET",
        "/v1/namespaces/{ns}/databases/{db}/bookmarks/current",
        told("Where a database stands", &[200]).query(&[may(
            "wait_durable_ms",
            "integer",
            "Wait so long for the newest commit to be stored.",
        )]),
    ),
    (
        "GET",
        "/v1/namespaces/{ns}/databases/{db}/bookmarks",
        told("The last commit at or before a time", &[200]).query(&[must(
            "timestamp",
            "time",
            "The time.",
        )]),
    ),
    (
        "GET",
        "/v1/namespaces/{ns}/databases/{db}/recovery-window",
        told("How far back a database can be put", &[200]),
    ),
    (
        "GET",
        "/v1/namespaces/{ns}/databases/{db}/history",
        told("Every commit, oldest first", &[200]).query(&[
            may("from", "text", "From this bookmark on."),
            may("to", "text", "Up to this bookmark."),
            may("limit", "integer", "Commits of a page, 1 to 500."),
            may("cursor", "text", "Where the last page ended."),
        ]),
    ),
    (
        "GET",
        "/v1/namespaces/{ns}/databases/{db}/export",
        told("The SQLite file of a state", &[200])
            .query(&[
                may("bookmark", "text", "Of this commit."),
                may("timestamp", "time", "At or before this time."),
            ])
            .answers("application/vnd.sqlite3"),
    ),
    (
        "POST",
        "/v1/namespaces/{ns}/databases/{db}/import",
        told(
            "Make a database of a SQLite file, or replace one by it",
            &[200, 201, 202],
        ),
    ),
    (
        "GET",
        "/v1/namespaces/{ns}/databases/{db}/insights",
        told("What queries cost, by hour, token and status", &[200]).query(&[may(
            "hours",
            "integer",
            "1 to 168.",
        )]),
    ),
    (
        "GET",
        "/v1/namespaces/{ns}/databases/{db}/slow-queries",
        told("Slow statements without literals, newest first", &[200]).query(PAGE),
    ),
    (
        "POST",
        "/v1/namespaces/{ns}/tokens",
        told("Make a token; its secret is shown once", &[201]).body(
            &[
                must("scopes", "texts", "read, write, admin."),
                may("kind", "text", "live, test or cli."),
                may("databases", "texts", "Only these databases."),
                may("allow_ddl", "boolean", "Whether it may change schemas."),
                may("expires_at", "time", "When it ends."),
                may("rate_per_minute", "integer", "Requests a minute."),
                may("principal", "text", "The member it stands for."),
            ],
            r#"{"kind":"live","scopes":["read"]}"#,
        ),
    ),
    (
        "GET",
        "/v1/namespaces/{ns}/tokens",
        told("List tokens, without secrets", &[200]).query(PAGE),
    ),
    (
        "GET",
        "/v1/namespaces/{ns}/tokens/{token}",
        told("A token, without its secret", &[200]),
    ),
    (
        "DELETE",
        "/v1/namespaces/{ns}/tokens/{token}",
        told("Revoke a token, effective with the next request", &[204]),
    ),
    (
        "POST",
        "/v1/namespaces/{ns}/tokens/{token}/rotate",
        told("Make a new secret with the same rights", &[201]).body(
            &[may(
                "overlap_seconds",
                "integer",
                "How long the old one stays valid.",
            )],
            r#"{"overlap_seconds":3600}"#,
        ),
    ),
    (
        "GET",
        "/v1/namespaces/{ns}/members",
        told("List members", &[200]).query(PAGE),
    ),
    (
        "GET",
        "/v1/namespaces/{ns}/members/{principal}",
        told("A member", &[200]),
    ),
    (
        "PUT",
        "/v1/namespaces/{ns}/members/{principal}",
        told("Make a member or change their roles", &[200]).body(
            &[
                must(
                    "role",
                    "text",
                    "owner, admin, operator, member, analyst or viewer.",
                ),
                may("databases", "object", "Other roles, by database."),
            ],
            r#"{"role":"viewer","databases":{"staging":"admin"}}"#,
        ),
    ),
    (
        "DELETE",
        "/v1/namespaces/{ns}/members/{principal}",
        told("End a membership", &[204]),
    ),
    (
        "POST",
        "/v1/namespaces/{ns}/members/{principal}/revoke",
        told("End every token of a member", &[200]),
    ),
    (
        "GET",
        "/v1/namespaces/{ns}/audit",
        told("The audit log, newest first", &[200]).query(AUDIT),
    ),
    (
        "GET",
        "/v1/namespaces/{ns}/maintenance",
        told("Whether the namespace is under maintenance", &[200]),
    ),
    ("PUT", "/v1/namespaces/{ns}/maintenance", MAINTENANCE),
    (
        "POST",
        "/v1/namespaces/{ns}/databases/{db}/snapshots",
        told("Name a commit", &[201]).body(
            &[
                must("name", "text", "1 to 80 characters."),
                may("note", "text", "At most 512 bytes."),
                may("bookmark", "text", "This commit; the newest without one."),
                may("timestamp", "time", "The last commit at or before it."),
                may("pin", "boolean", "Keep the state beyond the window."),
                may("expires_at", "time", "When the name goes."),
            ],
            r#"{"name":"before-migration"}"#,
        ),
    ),
    (
        "GET",
        "/v1/namespaces/{ns}/databases/{db}/snapshots",
        told("List snapshots", &[200]).query(PAGE),
    ),
    (
        "GET",
        "/v1/namespaces/{ns}/databases/{db}/snapshots/{snapshot}",
        told("A snapshot", &[200]),
    ),
    (
        "DELETE",
        "/v1/namespaces/{ns}/databases/{db}/snapshots/{snapshot}",
        told("Delete the name, not the history", &[204]).query(&[may(
            "unpin",
            "boolean",
            "Delete a pinned one.",
        )]),
    ),
    (
        "POST",
        "/v1/namespaces/{ns}/databases/{db}/forks",
        told(
            "Make a database that begins at a state of this one",
            &[200, 201, 202],
        )
        .body(
            &[
                must("name", "text", "The name of the fork."),
                may(
                    "target",
                    "object",
                    "bookmark, timestamp or snapshot; the newest state without it.",
                ),
                may("schema_only", "boolean", "Tables without rows."),
                may("ttl_seconds", "integer", "A day to thirty days."),
            ],
            r#"{"name":"orders-copy"}"#,
        ),
    ),
    (
        "POST",
        "/v1/namespaces/{ns}/databases/{db}/restores",
        told(
            "Put a database back in place, or show what that would do",
            &[200, 201, 202],
        )
        .body(
            &[
                may(
                    "target",
                    "object",
                    "Exactly one of bookmark, timestamp, snapshot, before_restore, archive.",
                ),
                may("plan", "text", "A plan that was previewed."),
                may("mode", "text", "in_place, or new for a fork."),
                may("name", "text", "The name of the fork."),
                may("dry_run", "boolean", "Only show it."),
                may("verify", "text", "none or quick."),
                may("reason", "text", "Kept with the record."),
            ],
            r#"{"target":{"timestamp":"2026-01-02T03:04:05Z"},"dry_run":true}"#,
        ),
    ),
    (
        "GET",
        "/v1/namespaces/{ns}/databases/{db}/restores",
        told("List restores, newest first", &[200]).query(PAGE),
    ),
    (
        "GET",
        "/v1/namespaces/{ns}/databases/{db}/time_travel/bookmark",
        told("The present bookmark, or one of a time, as D1 tells it", &[200]).query(&[may(
            "timestamp",
            "time",
            "The last commit at or before it.",
        )]),
    ),
    (
        "POST",
        "/v1/namespaces/{ns}/databases/{db}/time_travel/restore",
        told("Put a database back in place, as D1 is asked", &[200, 202]).query(&[
            may("bookmark", "text", "Where to; or timestamp."),
            may("timestamp", "time", "The last commit at or before it."),
        ]),
    ),
    (
        "POST",
        "/v1/namespaces/{db}/fork/{to}",
        told(
            "Make a fork, as sqld is asked: of a database in the token's namespace",
            &[200, 202],
        )
        .body(
            &[may("timestamp", "time", "UTC where it names no zone.")],
            r#"{"timestamp":"2026-01-02T03:04:05"}"#,
        ),
    ),
    (
        "GET",
        "/v1/namespaces/{ns}/databases/{db}/restores/{restore}",
        told("A restore", &[200]),
    ),
    (
        "POST",
        "/v1/namespaces/{ns}/databases/{db}/restores/{restore}/undo",
        told("Take a restore back", &[200, 202]).body(
            &[may(
                "force",
                "text",
                "The current bookmark, to undo commits made since.",
            )],
            r"{}",
        ),
    ),
    (
        "POST",
        "/v1/namespaces/{ns}/databases/{db}/archives",
        told("Make a self-contained export", &[201, 202]).body(
            &[
                may(
                    "target",
                    "object",
                    "bookmark, timestamp or snapshot; the newest state without it.",
                ),
                may("format", "text", "sqlite or sql."),
                may("name", "text", "1 to 80 characters."),
                may("retain_until", "time", "Not to be deleted before."),
                may(
                    "retain_for",
                    "text",
                    "The same by a regulation's name: gdpr (30 days), soc2 (90), hipaa or pci (365).",
                ),
                may(
                    "legal_hold",
                    "boolean",
                    "Not to be deleted while it stands.",
                ),
            ],
            r#"{"name":"end of year"}"#,
        ),
    ),
    (
        "GET",
        "/v1/namespaces/{ns}/databases/{db}/archives",
        told("List archives, newest first", &[200]).query(PAGE),
    ),
    (
        "POST",
        "/v1/namespaces/{ns}/databases/{db}/detach",
        told("Make a fork independent of its parent", &[200, 202]),
    ),
    (
        "PATCH",
        "/v1/namespaces/{ns}/databases/{db}/archives/{archive}",
        told("Change how long an archive is held", &[200]).body(
            &[
                may("retain_until", "time", "Put off, never brought forward."),
                may("legal_hold", "boolean", "Set or lifted."),
            ],
            r#"{"legal_hold":true}"#,
        ),
    ),
    (
        "GET",
        "/v1/namespaces/{ns}/databases/{db}/archives/{archive}/content",
        told("Its compressed bytes, or a range of them", &[200, 206]).answers("application/zstd"),
    ),
    (
        "POST",
        "/v1/namespaces/{ns}/databases/{db}/archives/{archive}/verify",
        told("Prove an archive", &[200, 202]),
    ),
    (
        "POST",
        "/v1/namespaces/{ns}/databases/{db}/verifications",
        told("Prove that history can be had back", &[200, 202]).body(
            &[
                must("level", "text", "objects, chain, restore or full."),
                may(
                    "target",
                    "object",
                    "bookmark, timestamp or snapshot; the newest state without it.",
                ),
                may(
                    "sample_percent",
                    "integer",
                    "Of every hundred objects, how many are read.",
                ),
            ],
            r#"{"level":"restore"}"#,
        ),
    ),
    (
        "GET",
        "/v1/namespaces/{ns}/databases/{db}/verifications",
        told("List verifications, newest first", &[200]).query(PAGE),
    ),
    (
        "PUT",
        "/v1/namespaces/{ns}/databases/{db}/verification-schedule",
        told("Verify the database by itself", &[200]).body(
            &[
                must("every", "text", "Seconds, or a text such as 30m, 24h, 7d."),
                must("level", "text", "objects, chain, restore or full."),
                may(
                    "sample_percent",
                    "integer",
                    "Of every hundred objects, how many are read.",
                ),
            ],
            r#"{"every":"24h","level":"restore"}"#,
        ),
    ),
    (
        "GET",
        "/v1/namespaces/{ns}/databases/{db}/archive-schedule",
        told("When archives are made by themselves", &[200]),
    ),
    (
        "PUT",
        "/v1/namespaces/{ns}/databases/{db}/archive-schedule",
        told("Have archives made by themselves", &[200]).body(
            &[
                must("every", "text", "Seconds, or a text such as 24h, 7d; an hour at least."),
                may("format", "text", "sqlite or sql."),
                may(
                    "retain",
                    "object",
                    "newest, days: which of the schedule's archives stay; all without it.",
                ),
            ],
            r#"{"every":"24h","retain":{"newest":7,"days":90}}"#,
        ),
    ),
    (
        "GET",
        "/v1/namespaces/{ns}/operations",
        told("List operations", &[200]).query(&[
            may("state", "text", "Only of this state."),
            may("type", "text", "Only of this type."),
            may("database", "text", "Only of this database."),
            may("limit", "integer", "Operations of a page, 1 to 500."),
            may("cursor", "text", "Where the last page ended."),
        ]),
    ),
    (
        "GET",
        "/v1/namespaces/{ns}/operations/{operation}",
        told("An operation", &[200]),
    ),
    (
        "POST",
        "/v1/namespaces/{ns}/operations/{operation}/cancel",
        told("Ask an operation to stop", &[200]),
    ),
    (
        "GET",
        "/v1/namespaces/{ns}/operations/{operation}/events",
        told("The progress of an operation as it comes", &[200]).answers("text/event-stream"),
    ),
];

/// Every description.
#[cfg(test)]
pub(super) fn all() -> impl Iterator<Item = Row> {
    ROWS.iter().copied()
}

/// The description of a route; a plain one where there is none.
pub(super) fn of(method: &Method, path: &str) -> Description {
    let row = ROWS
        .iter()
        .find(|(of, at, _)| *of == method.as_str() && *at == path);
    row.map_or_else(
        || match *method {
            Method::GET => told("Read", &[200]),
            Method::DELETE => told("Delete", &[204]),
            _ => told("Change", &[200, 201, 202]),
        },
        |(_, _, told)| *told,
    )
}
