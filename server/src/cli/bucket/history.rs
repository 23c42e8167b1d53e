//! `tidelog history --store`: the newest commits of a database, each with its bookmark.

use serde_json::{Value as Json, json};
use tidelog_engine::MasterKeys;
use tidelog_engine::bucket::Bucket;

use crate::cli::args::HistoryOptions;
use crate::cli::exit::Failure;
use crate::cli::output::{Output, cell, table};
use crate::routes::shape;

const HEADINGS: [&str; 5] = [
    "bookmark",
    "committed_at",
    "kind",
    "pages_changed",
    "page_count",
];

/// Lists commits, newest first.
pub(in crate::cli) async fn history(
    url: &str,
    keys: &MasterKeys,
    options: HistoryOptions,
    output: &Output,
) -> Result<(), Failure> {
    let bucket = Bucket::open_with_keys(url, keys).await?;
    let name = &options.database;
    let database = bucket.find(&name.namespace, &name.database).await?;
    let limit = u64::try_from(options.limit).unwrap_or(u64::MAX);
    let commits = bucket
        .commits(&database, options.from, options.to, limit)
        .await?;
    let items: Vec<Json> = commits.iter().rev().map(shape::commit).collect();
    let rows: Vec<Vec<String>> = items
        .iter()
        .map(|item| {
            HEADINGS
                .iter()
                .map(|heading| cell(&item[*heading]))
                .collect()
        })
        .collect();
    output.result(&json!({ "items": items }), || table(&HEADINGS, &rows));
    Ok(())
}
