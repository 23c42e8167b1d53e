//! What the operator of a server does by hand, on a listener of its own and with the server token alone:
//! the databases of all namespaces, flush, checkpoint, the retention window, objects that nothing lists.

use std::collections::HashMap;

use axum::http::Method;
use serde_json::{Value as Json, json};
use tidelog_engine::travel::retention::ObjectGone;
use tidelog_wal::NamespaceId;

use super::{retention, shape};
use crate::http::{Access, Answer, BodyKind, Call, Route};
use crate::problem::Problem;

/// Every route of the operator's listener.
pub(crate) fn table() -> Vec<Route> {
    let server = Access::Server;
    vec![
        Route::new(
            Method::GET,
            "/healthz",
            Access::Public,
            handler!(super::health::alive),
        ),
        Route::new(Method::GET, "/v1/admin/databases", server, handler!(list)),
        Route::new(Method::POST, "/v1/admin/flush", server, handler!(flush)),
        Route::new(
            Method::POST,
            "/v1/admin/checkpoint",
            server,
            handler!(checkpoint),
        ),
        Route::new(
            Method::POST,
            "/v1/admin/retention",
            server,
            handler!(retention::run),
        )
        .body(BodyKind::Json),
        Route::new(
            Method::POST,
            "/v1/admin/reconcile",
            server,
            handler!(reconcile),
        )
        .body(BodyKind::Json),
    ]
}

async fn names(call: &Call) -> Result<HashMap<NamespaceId, String>, Problem> {
    let all = call.app.engine.namespaces().await?;
    Ok(all.into_iter().map(|one| (one.id, one.name)).collect())
}

async fn list(mut call: Call) -> Result<Answer, Problem> {
    let (page, link) = call.page()?;
    call.finish()?;
    let found = call.app.engine.all_databases(page).await?;
    let names = names(&call).await?;
    let shown = |row| {
        let mut document = shape::database(row, &call.app.region);
        document["namespace"] = json!(names.get(&row.namespace));
        document
    };
    let items: Vec<Json> = found.items.iter().map(shown).collect();
    Ok(Answer::page(&items, found.next_cursor.as_deref(), &link))
}

async fn flush(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let flushed = call.app.engine.flush().await?;
    Ok(Answer::ok(json!({
        "commits": flushed.commits,
        "waiting_bytes": flushed.waiting_bytes,
    })))
}

async fn checkpoint(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let (done, failed) = call.app.engine.checkpoint().await;
    match failed {
        None => Ok(Answer::ok(json!({ "databases": done }))),
        Some(error) => Err(Problem::from(error).with("databases", done)),
    }
}

async fn reconcile(mut call: Call) -> Result<Answer, Problem> {
    let apply = call.body.boolean("apply")?.unwrap_or(false);
    let unnamed = call.body.boolean("unnamed")?.unwrap_or(false);
    let (page, link) = call.page()?;
    call.finish()?;
    let found = call.app.engine.reconcile(page, apply, unnamed).await?;
    let names = names(&call).await?;
    let object = |gone: &ObjectGone| json!({ "key": gone.key, "bytes": gone.bytes });
    let mut items = Vec::new();
    for (row, objects) in &found.databases.items {
        items.push(json!({
            "namespace": names.get(&row.namespace),
            "database": row.name,
            "id": row.id.to_string(),
            "applied": apply,
            "unlisted": objects.iter().map(object).collect::<Json>(),
        }));
    }
    for one in &found.unnamed {
        items.push(json!({
            "namespace": names.get(&one.namespace),
            "database": Json::Null,
            "id": one.id.to_string(),
            "name_hint": one.name_hint,
            "applied": apply && unnamed,
            "unlisted": one.objects.iter().map(object).collect::<Json>(),
        }));
    }
    let next = found.databases.next_cursor;
    Ok(Answer::page(&items, next.as_deref(), &link))
}

#[cfg(test)]
mod tests {
    use super::table;
    use crate::http::Access;
    use crate::http::router::defects;

    #[test]
    fn the_operators_routes_take_the_server_token_alone() {
        for route in table() {
            assert!(defects(&route).is_empty(), "{}", route.path);
            let open = route.path == "/healthz";
            assert_eq!(open, route.access != Access::Server, "{}", route.path);
        }
    }
}
