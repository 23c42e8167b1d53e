//! `tidelog snapshot`: names for commits, on a server.

use reqwest::Method;
use serde_json::json;

use super::args::SnapshotCommand;
use super::client::Client;
use super::exit::Failure;
use super::output::Output;
use super::remote::{database, fields, items, listed};
use crate::time;

pub(super) async fn snapshot(
    client: &Client,
    command: SnapshotCommand,
    output: &Output,
) -> Result<(), Failure> {
    match command {
        SnapshotCommand::Create {
            database: name,
            snapshot,
            note,
            at,
            bookmark,
            pin,
            expires_at,
        } => {
            let mut body = json!({ "name": snapshot, "pin": pin });
            let texts = [
                ("note", note),
                ("timestamp", at.map(time::format)),
                ("bookmark", bookmark.map(|at| at.to_string())),
                ("expires_at", expires_at.map(time::format)),
            ];
            for (field, text) in texts {
                if let Some(text) = text {
                    body[field] = json!(text);
                }
            }
            let request = client.request(Method::POST, &database(&name, &["snapshots"]));
            fields(*output, &client.json(request.json(&body)).await?);
        }
        SnapshotCommand::List { database: name } => {
            let path = database(&name, &["snapshots"]);
            let found = items(client, &path, &[], usize::MAX).await?;
            let headings = [
                "name",
                "state",
                "pinned",
                "committed_at",
                "expires_at",
                "bookmark",
            ];
            listed(*output, &found, &headings);
        }
        SnapshotCommand::Delete {
            database: name,
            snapshot,
            unpin,
        } => {
            let path = database(&name, &["snapshots", &snapshot]);
            let request = client.request(Method::DELETE, &path);
            client.json(request.query(&[("unpin", unpin)])).await?;
            let done = json!({ "deleted": snapshot, "database": name.to_string() });
            output.result(&done, || {
                format!("snapshot {snapshot} of {name} is deleted\n")
            });
        }
    }
    Ok(())
}
