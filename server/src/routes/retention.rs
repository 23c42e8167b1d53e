//! The retention window, applied by hand: dry unless told otherwise. For whoever holds the server token.

use serde_json::{Value as Json, json};
use tidelog_engine::system::databases::DatabaseRow;
use tidelog_engine::travel::retention::{ObjectGone, RetentionReport};

use crate::http::{Answer, Call};
use crate::problem::{Code, Problem};
use crate::time;

fn objects(gone: &[ObjectGone]) -> Json {
    let object = |gone: &ObjectGone| json!({ "key": gone.key, "bytes": gone.bytes });
    gone.iter().map(object).collect()
}

fn shown((row, report): &(DatabaseRow, RetentionReport)) -> Json {
    json!({
        "database": row.name,
        "id": row.id.to_string(),
        "namespace_id": row.namespace.to_string(),
        "applied": report.applied,
        "held": report.held,
        "horizon": report.horizon.to_string(),
        "image_at": report.image_at.map(|txid| txid.to_string()),
        "marked": objects(&report.marked),
        "deleted": objects(&report.deleted),
        "snapshots_removed": report.labels,
        "next_look_at": report.next.map(time::format),
    })
}

/// `POST /v1/retention`: one database, or a page of all of them.
pub(super) async fn run(mut call: Call) -> Result<Answer, Problem> {
    let apply = call.body.boolean("apply")?.unwrap_or(false);
    let name = call.body.text("database")?;
    let (page, link) = call.page()?;
    call.finish()?;
    let engine = &call.app.engine;
    let Some(name) = name else {
        let found = engine.retention(page, apply).await?;
        let items: Vec<Json> = found.items.iter().map(shown).collect();
        return Ok(Answer::page(&items, found.next_cursor.as_deref(), &link));
    };
    let Some((namespace, database)) = name.split_once('/') else {
        let detail = "database is NAMESPACE/DATABASE";
        return Err(Problem::invalid(Code::InvalidRequest, "/database", detail));
    };
    let namespace = engine.namespace_by_name(namespace).await?;
    let looked = engine.retention_of(namespace.id, database, apply).await?;
    Ok(Answer::ok(
        json!({ "items": [shown(&looked)], "next_cursor": null }),
    ))
}
