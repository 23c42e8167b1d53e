//! How the engine's answers look as JSON.

use std::time::Duration;

use serde_json::{Value as Json, json};
use tidelog_archive::plan::CommitInfo;
use tidelog_engine::system::databases::DatabaseRow;
use tidelog_engine::system::tokens::{TokenInfo, token_id_text};
use tidelog_engine::travel::retention::{DAY_MICROS, WINDOW_MICROS};
use tidelog_engine::{Durability, StatementResult};
use tidelog_wal::Position;
use tidelog_wal::record::{RecordKind, tag};

use crate::http::Call;
use crate::problem::{Code, Problem};
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
        "history_limit_bytes": row.history_limit,
        "foreign_keys": row.foreign_keys,
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
        "last_insert_rowid": result.last_insert_rowid.map(|rowid| to_json(rowid.into(), integers)),
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
pub(crate) fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// A span of time that the body has to give.
pub(super) fn span(call: &mut Call, name: &str) -> Result<Duration, Problem> {
    let given = call.body.take(name).and_then(|value| span_of(&value));
    given.ok_or_else(|| {
        let detail = format!("{name} is required: seconds, or a text such as 30m, 24h, 7d");
        Problem::invalid(Code::InvalidRequest, &call.body.at(name), detail)
    })
}

/// A span of time: whole seconds, or a number with one of `s`, `m`, `h`, `d`.
fn span_of(value: &Json) -> Option<Duration> {
    let seconds = match value {
        Json::Number(number) => number.as_u64()?,
        Json::String(text) => {
            let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
            let unit = match unit {
                "s" => 1,
                "m" => 60,
                "h" => 3_600,
                "d" => 86_400,
                _ => return None,
            };
            let digits = number.bytes().all(|byte| byte.is_ascii_digit());
            let number: u64 = digits.then(|| number.parse().ok())??;
            number.checked_mul(unit)?
        }
        _ => return None,
    };
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_seconds_or_a_number_with_a_unit() {
        let of = |value: Json| span_of(&value).map(|span| span.as_secs());
        assert_eq!(of(json!(90)), Some(90));
        assert_eq!(of(json!("90s")), Some(90));
        assert_eq!(of(json!("30m")), Some(1_800));
        assert_eq!(of(json!("7d")), Some(604_800));
        for bad in [
            json!(""),
            json!("d"),
            json!("1w"),
            json!("-1h"),
            json!("1.5h"),
            json!("99999999999999999999d"),
            json!(-1),
            json!(1.5),
            json!(true),
        ] {
            assert_eq!(of(bad.clone()), None, "{bad}");
        }
    }
}
