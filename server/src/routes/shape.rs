//! How the engine's answers look as JSON.

use serde_json::{Value as Json, json};
use tidelog_archive::plan::CommitInfo;
use tidelog_engine::system::databases::DatabaseRow;
use tidelog_engine::system::tokens::{TokenInfo, token_id_text};
use tidelog_engine::travel::retention::{DAY_MICROS, WINDOW_MICROS};
use tidelog_engine::{Durability, StatementResult};
use tidelog_wal::Position;
use tidelog_wal::record::{RecordKind, tag};

use crate::time;
use crate::values::{Integers, to_json};

/// A position, or null.
pub(crate) fn position(position: Option<Position>) -> Json {
    position.map_or(Json::Null, |position| json!(position.to_string()))
}

/// A database's settings. A server has one store, so that every database lies in its region.
pub(crate) fn database(row: &DatabaseRow, region: &str) -> Json {
    json!({
        "region": region,
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
        "retention": { "days": row.retention_micros.unwrap_or(WINDOW_MICROS) / DAY_MICROS },
        "parent": row.parent.map(|parent| json!({
            "id": parent.database.to_string(),
            "bookmark": parent.at.to_string(),
        })),
        "expires_at": row.expires_at.map(time::format),
    })
}

/// A token, without its secret.
pub(crate) fn token(info: &TokenInfo) -> Json {
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
        "last_used_at": info.last_used_at.map(time::format),
        "rate_per_minute": info.rate,
        "principal": info.principal,
    })
}

/// The result of one statement, without its rows: those are put in as they are written.
pub(crate) fn result(result: &StatementResult, integers: Integers) -> Json {
    let names = result.columns.iter().map(|column| column.name.as_str());
    json!({
        "columns": names.collect::<Vec<_>>(),
        "rows": [],
        "rows_read": result.rows_read,
        "rows_written": result.rows_written,
        "last_insert_rowid": to_json(result.last_insert_rowid.into(), integers),
    })
}

/// A commit of a history.
pub(crate) fn commit(commit: &CommitInfo) -> Json {
    let value = |tag| {
        commit
            .annotations
            .iter()
            .find(|one| one.tag == tag)
            .map(|one| &one.value[..])
    };
    let token = value(tag::TOKEN).and_then(|id| <[u8; 16]>::try_from(id).ok());
    let kind = match commit.kind {
        RecordKind::Delta => "delta",
        RecordKind::Image => "image",
        RecordKind::Fork => "fork",
        RecordKind::Restore => "restore",
        RecordKind::Reference => "reference",
    };
    json!({
        "bookmark": commit.position.to_string(),
        "committed_at": time::format(commit.time),
        "kind": kind,
        "pages_changed": commit.pages_changed,
        "page_count": commit.n.get(),
        "token": token.map(|id| token_id_text(&id)),
        "request_id": value(tag::REQUEST).map(String::from_utf8_lossy),
    })
}

/// A duration in milliseconds, to the microsecond.
pub(crate) fn millis(duration: std::time::Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
