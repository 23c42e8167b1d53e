//! `tidelog list`: what is in a bucket, by name.

use serde_json::{Value as Json, json};

use super::{Bucket, text};
use crate::cli::exit::Failure;
use crate::cli::output::{Output, cell, table};
use crate::time;

const HEADINGS: [&str; 4] = ["database", "page_size", "state", "bookmark"];

/// Lists the databases of a bucket with their newest stored bookmark.
pub(in crate::cli) async fn list(url: &str, output: &Output) -> Result<(), Failure> {
    let bucket = Bucket::open(url).await?;
    let mut items = Vec::new();
    for (namespace, row) in bucket.catalog().await? {
        let head = bucket.history(row.namespace, row.id).await?.head();
        items.push(json!({
            "database": format!("{}/{}", namespace.name, row.name),
            "id": row.id.to_string(),
            "page_size": row.page_size,
            "state": if row.deleted_at.is_some() { "deleted" } else { "ready" },
            "created_at": time::format(row.created_at),
            "deleted_at": row.deleted_at.map(time::format),
            "bookmark": text(head),
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
