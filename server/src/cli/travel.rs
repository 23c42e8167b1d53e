//! The commands that move a database in time, against a server: `restore`, `undo`, `fork`, `detach`, `operations`.
//!
//! What changes a live database asks first: `--yes`, or a terminal's confirmation.

use reqwest::Method;
use serde_json::{Value as Json, json};

use super::args::{
    At, DetachOptions, ForkOptions, Name, OperationsOptions, RestoreOptions, UndoOptions,
};
use super::client::Client;
use super::exit::{Exit, Failure};
use super::operation::followed;
use super::output::{Output, bytes, cell, table};
use super::remote::{confirm, database, fields, items, listed};
use crate::time;

/// The state that the arguments name, as the API's `target`; `None` for the newest.
fn target(at: &At) -> Option<Json> {
    if let Some(bookmark) = at.bookmark {
        return Some(json!({ "bookmark": bookmark.to_string() }));
    }
    if let Some(snapshot) = &at.snapshot {
        return Some(json!({ "snapshot": snapshot }));
    }
    at.at.map(|at| json!({ "timestamp": time::format(at) }))
}

/// `restore --url`: puts a live database back, in place.
pub(super) async fn restore(
    client: &Client,
    options: RestoreOptions,
    output: &Output,
) -> Result<(), Failure> {
    let name = &options.database;
    if options.out.is_some() {
        return Err(Failure::usage(
            "--out writes a file from a bucket (--store); a server's database is put back in place, or written to \
             a file with `tidelog export`",
        ));
    }
    let archive = options.archive.as_ref();
    let archive = archive.map(|id| json!({ "archive": id }));
    let target = archive.or_else(|| target(&options.at)).ok_or_else(|| {
        Failure::usage(
            "say where to: --at TIME, --bookmark BOOKMARK, --snapshot NAME or --archive ID",
        )
    })?;
    let path = database(name, &["restores"]);
    let preview = json!({ "target": target, "dry_run": true });
    let preview = client.request(Method::POST, &path).json(&preview);
    let preview = client.json(preview).await?;
    let plan = &preview["plan"];
    if options.dry_run {
        fields(*output, plan);
        return Ok(());
    }
    if !options.yes {
        let (commits, at) = (cell(&plan["commits_undone"]), cell(&plan["committed_at"]));
        confirm(&format!(
            "put {name} back to {at}, taking back {commits} commits and those made meanwhile?"
        ))?;
    }
    let mut body = if options.if_unchanged {
        json!({ "plan": plan["id"] })
    } else if options.archive.is_some() {
        json!({ "target": target })
    } else {
        // The commit that was shown, not what the arguments mean by now.
        json!({ "target": { "bookmark": plan["bookmark"] } })
    };
    if let Some(reason) = options.reason {
        body["reason"] = json!(reason);
    }
    if let Some(preserve_as) = options.preserve_as {
        body["preserve_as"] = json!(preserve_as);
    }
    let request = client.request(Method::POST, &path).json(&body);
    let answer = followed(client, &name.namespace, request, output).await?;
    restored(*output, name, &answer);
    Ok(())
}

fn restored(output: Output, name: &Name, answer: &Json) {
    output.result(answer, || {
        let restore = &answer["restore"];
        format!(
            "{name} is at {}, as it was at {}; {} commits taken back, {} pages changed\n\
             `tidelog undo {name} {}` takes it back\n",
            cell(&restore["bookmark"]),
            cell(&restore["to"]),
            cell(&restore["commits_undone"]),
            cell(&restore["pages_changed"]),
            cell(&restore["id"]),
        )
    });
}

/// `undo`: takes a restore back, the newest one unless told which.
pub(super) async fn undo(
    client: &Client,
    options: UndoOptions,
    output: &Output,
) -> Result<(), Failure> {
    let name = &options.database;
    let id = match options.restore {
        Some(id) => id,
        None => {
            let found = items(client, &database(name, &["restores"]), &[], 500).await?;
            let newest = found.iter().find(|item| item["outcome"] == "succeeded");
            let newest = newest.ok_or_else(|| {
                Failure::new(Exit::NotFound, format!("{name} was never put back"))
            })?;
            cell(&newest["id"])
        }
    };
    if !options.yes {
        confirm(&format!("take restore {id} of {name} back?"))?;
    }
    let body = match options.force {
        Some(bookmark) => json!({ "force": bookmark.to_string() }),
        None => json!({}),
    };
    let path = database(name, &["restores", &id, "undo"]);
    let request = client.request(Method::POST, &path).json(&body);
    let answer = followed(client, &name.namespace, request, output).await?;
    restored(*output, name, &answer);
    Ok(())
}

/// `fork`: a database that begins at a state of another.
pub(super) async fn fork(
    client: &Client,
    options: ForkOptions,
    output: &Output,
) -> Result<(), Failure> {
    let name = &options.database;
    let mut body = json!({ "name": options.name, "schema_only": options.schema_only });
    if let Some(target) = target(&options.at) {
        body["target"] = target;
    }
    if let Some(days) = options.ttl_days {
        body["ttl_seconds"] = json!(days.saturating_mul(86_400));
    }
    let request = client
        .request(Method::POST, &database(name, &["forks"]))
        .json(&body);
    let answer = followed(client, &name.namespace, request, output).await?;
    output.result(&answer, || {
        let made = &answer["database"];
        format!(
            "{}/{} begins at {}\n",
            name.namespace,
            cell(&made["name"]),
            cell(&answer["bookmark"])
        )
    });
    Ok(())
}

/// `detach`: a fork shares nothing any more.
pub(super) async fn detach(
    client: &Client,
    options: DetachOptions,
    output: &Output,
) -> Result<(), Failure> {
    let name = &options.database;
    let request = client.request(Method::POST, &database(name, &["detach"]));
    let answer = followed(client, &name.namespace, request, output).await?;
    output.result(&answer, || match answer["bytes"].as_u64() {
        Some(copied) => format!("{name} shares nothing any more; {} copied\n", bytes(copied)),
        None => format!("{name} shares nothing with another database\n"),
    });
    Ok(())
}

/// `operations`: the long work of a namespace.
pub(super) async fn operations(
    client: &Client,
    options: OperationsOptions,
    output: &Output,
) -> Result<(), Failure> {
    let path = ["namespaces", &options.namespace, "operations"];
    if let Some(id) = options.cancel {
        let path = [&path[..], &[&id, "cancel"]].concat();
        let answer = client.json(client.request(Method::POST, &path)).await?;
        fields(*output, &answer);
        return Ok(());
    }
    let found = items(client, &path, &[], options.limit).await?;
    let headings = [
        "id",
        "type",
        "state",
        "phase",
        "progress_percent",
        "started_at",
    ];
    if found.is_empty() {
        output.result(&json!({ "items": [] }), || table(&headings, &[]));
        return Ok(());
    }
    listed(*output, &found, &headings);
    Ok(())
}
