//! How the engine's answers look as JSON.

use serde_json::{Value as Json, json};
use tidelog_engine::system::databases::DatabaseRow;
use tidelog_engine::system::tokens::{TokenInfo, token_id_text};
use tidelog_engine::{Durability, StatementResult};
use tidelog_wal::Position;

use crate::time;
use crate::values::{Integers, to_json};

/// A position, or null.
pub(super) fn position(position: Option<Position>) -> Json {
    position.map_or(Json::Null, |position| json!(position.to_string()))
}

/// A database's settings.
pub(super) fn database(row: &DatabaseRow) -> Json {
    json!({
        "name": row.name,
        "id": row.id.to_string(),
        "created_at": time::format(row.created_at),
        "page_size": row.page_size,
        "state": if row.deleted_at.is_some() { "deleted" } else { "ready" },
        "durability": row.durability.map(Durability::as_str),
        "block_reads": row.block_reads,
        "block_writes": row.block_writes,
        "delete_protection": row.delete_protection,
        "size_limit": row.size_limit,
    })
}

/// A token, without its secret.
pub(super) fn token(info: &TokenInfo) -> Json {
    json!({
        "id": token_id_text(&info.id),
        "kind": info.kind.as_str(),
        "display": info.display,
        "scopes": info.scopes,
        "role": info.role.as_str(),
        "databases": info.databases,
        "allow_ddl": info.allow_ddl,
        "created_at": time::format(info.created_at),
        "expires_at": info.expires_at.map(time::format),
        "revoked_at": info.revoked_at.map(time::format),
    })
}

/// The result of one statement.
pub(super) fn result(result: StatementResult, integers: Integers) -> Json {
    let row = |row: Vec<_>| {
        row.into_iter()
            .map(|value| to_json(value, integers))
            .collect::<Json>()
    };
    json!({
        "columns": result.columns.into_iter().map(|column| column.name).collect::<Vec<_>>(),
        "rows": result.rows.into_iter().map(row).collect::<Vec<_>>(),
        "rows_read": result.rows_read,
        "rows_written": result.rows_written,
        "last_insert_rowid": to_json(result.last_insert_rowid.into(), integers),
    })
}

/// A duration in milliseconds, to the microsecond.
pub(super) fn millis(duration: std::time::Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
