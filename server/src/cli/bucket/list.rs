//! `tidelog list`: what is in a bucket, by name.

use serde_json::{Value as Json, json};
use tidelog_engine::MasterKeys;
use tidelog_engine::bucket::Bucket;

use crate::cli::exit::Failure;
use crate::cli::output::{Output, cell, table};
use crate::time;

const HEADINGS: [&str; 4] = ["database", "created_at", "state", "bookmark"];

const SNAPSHOT_HEADINGS: [&str; 5] = ["snapshot", "of", "committed_at", "state", "bookmark"];

/// A row for every snapshot of every database.
fn snapshots_of(items: &[Json]) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for item in items {
        for snapshot in item["snapshots"].as_array().into_iter().flatten() {
            rows.push(vec![
                cell(&snapshot["name"]),
                cell(&item["database"]),
                cell(&snapshot["committed_at"]),
                cell(&snapshot["state"]),
                cell(&snapshot["bookmark"]),
            ]);
        }
    }
    rows
}

/// Lists the databases of a bucket with their newest stored bookmark.
pub(in crate::cli) async fn list(
    url: &str,
    keys: &MasterKeys,
    output: &Output,
) -> Result<(), Failure> {
    let bucket = Bucket::open_with_keys(url, keys).await?;
    let mut items = Vec::new();
    for database in bucket.databases().await? {
        let head = bucket.head(&database).await?;
        let snapshots: Vec<Json> = bucket
            .snapshots(&database)
            .await?
            .iter()
            .map(|snapshot| {
                json!({
                    "name": snapshot.name,
                    "note": snapshot.note,
                    "bookmark": snapshot.bookmark.to_string(),
                    "committed_at": time::format(snapshot.committed_at),
                    "pinned": snapshot.pinned,
                    "state": snapshot.state.as_str(),
                    "expires_at": snapshot.expires_at.map(time::format),
                })
            })
            .collect();
        items.push(json!({
            "database": format!("{}/{}", database.namespace, database.name),
            "id": database.id.to_string(),
            "state": if database.deleted_at.is_some() { "deleted" } else { "ready" },
            "created_at": time::format(database.created_at),
            "deleted_at": database.deleted_at.map(time::format),
            "bookmark": head.map(|position| position.to_string()),
            "snapshots": snapshots,
        }));
    }
    let rows: Vec<Vec<String>> = items
        .iter()
        .map(|item: &Json| {
            HEADINGS
                .iter()
                .map(|heading| cell(&item[*heading]))
                .collect()
        })
        .collect();
    output.result(&json!({ "items": items }), || {
        let mut text = table(&HEADINGS, &rows);
        let named = snapshots_of(&items);
        if !named.is_empty() {
            text.push('\n');
            text.push_str(&table(&SNAPSHOT_HEADINGS, &named));
        }
        text
    });
    Ok(())
}
