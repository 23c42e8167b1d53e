//! `tidelog history --store`: the newest commits of a database, each with its bookmark.

use serde_json::{Value as Json, json};
use tidelog_archive::plan::{PlanError, Target};
use tidelog_wal::TxId;

use super::Bucket;
use crate::cli::args::HistoryOptions;
use crate::cli::exit::Failure;
use crate::cli::output::{Output, cell, table};
use crate::time;

const HEADINGS: [&str; 3] = ["bookmark", "committed_at", "pages"];

/// Lists commits, newest first.
pub(in crate::cli) async fn history(
    url: &str,
    options: HistoryOptions,
    output: &Output,
) -> Result<(), Failure> {
    let bucket = Bucket::open(url).await?;
    let row = bucket.find(&options.database).await?;
    let mut history = bucket.history(row.namespace, row.id).await?;
    let newest = match options.to {
        Some(to) => Target::Position(to),
        None => Target::Head,
    };
    let oldest = options.from.map_or(TxId::FIRST, |from| from.txid);
    let mut at = Some(
        history
            .resolve(&bucket.store, newest, bucket.terms())
            .await?,
    );
    let mut items: Vec<Json> = Vec::new();
    while let Some(commit) = at.filter(|commit| commit.position.txid >= oldest) {
        if items.len() >= options.limit {
            break;
        }
        items.push(json!({
            "bookmark": commit.position.to_string(),
            "committed_at": time::format(commit.time),
            "pages": commit.n.get(),
        }));
        let earlier = commit
            .position
            .txid
            .prev()
            .filter(|txid| *txid > TxId::ZERO);
        at = match earlier {
            None => None,
            Some(txid) => {
                match history
                    .resolve(&bucket.store, Target::TxId(txid), bucket.terms())
                    .await
                {
                    Ok(found) => Some(found),
                    // What has left the window ends the list; it is no failure of it.
                    Err(PlanError::Expired { .. } | PlanError::BeforeHistory { .. }) => None,
                    Err(error) => return Err(error.into()),
                }
            }
        };
    }
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
