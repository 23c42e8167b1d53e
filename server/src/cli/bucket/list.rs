//! `tidelog list`: what is in a bucket, by name.

use serde_json::{Value as Json, json};
use tidelog_engine::bucket::Bucket;

use crate::cli::exit::Failure;
use crate::cli::output::{Output, cell, table};
use crate::time;

const HEADINGS: [&str; 4] = ["database", "created_at", "state", "bookmark"];

/// Lists the databases of a bucket with their newest stored bookmark.
pub(in crate::cli) async fn list(url: &str, output: &Output) -> Result<(), Failure> {
    let bucket = Bucket::open(url).await?;
    let mut items = Vec::new();
    for database in bucket.databases().await? {
        let head = bucket.head(&database).await?;
        items.push(json!({
            "database": format!("{}/{}", database.namespace, database.name),
            "id": database.id.to_string(),
            "state": if database.deleted_at.is_some() { "deleted" } else { "ready" },
            "created_at": time::format(database.created_at),
            "deleted_at": database.deleted_at.map(time::format),
            "bookmark": head.map(|position| position.to_string()),
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
    output.result(&json!({ "items": items }), || table(&HEADINGS, &rows));
    Ok(())
}
