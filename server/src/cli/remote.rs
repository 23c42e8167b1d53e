//! The commands that ask a server.

use std::io::{IsTerminal, Write};
use std::path::Path;

use futures::StreamExt;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value as Json, json};
use tokio::io::AsyncWriteExt;
use tokio_util::io::ReaderStream;

use super::args::{
    BookmarkOptions, DbCommand, ExportOptions, HistoryOptions, ImportOptions, Name,
    NamespaceCommand, QueryOptions, TokenCommand,
};
use super::client::Client;
use super::exit::{Exit, Failure};
use super::operation::followed;
use super::output::{Output, bytes, cell, table};
use crate::time;

/// The most items a page may have.
const PAGE_MAX: usize = 500;

pub(super) fn database<'a>(name: &'a Name, rest: &[&'a str]) -> Vec<&'a str> {
    let mut path = vec!["namespaces", &name.namespace, "databases", &name.database];
    path.extend(rest);
    path
}

/// Every item of a list, page by page, up to a number.
pub(super) async fn items(
    client: &Client,
    path: &[&str],
    query: &[(&str, String)],
    most: usize,
) -> Result<Vec<Json>, Failure> {
    let page = |left: usize| {
        let limit = left.min(PAGE_MAX).to_string();
        let request = client.request(Method::GET, path).query(query);
        request.query(&[("limit", limit)])
    };
    paged(client, most, page).await
}

/// Every item that is answered page by page, up to a number; `page` asks for one, given how many items are wanted still.
pub(super) async fn paged(
    client: &Client,
    most: usize,
    page: impl Fn(usize) -> RequestBuilder,
) -> Result<Vec<Json>, Failure> {
    let mut items = Vec::new();
    let mut cursor: Option<String> = None;
    while items.len() < most {
        let mut request = page(most - items.len());
        if let Some(cursor) = &cursor {
            request = request.query(&[("cursor", cursor)]);
        }
        let mut page = client.json(request).await?;
        if let Json::Array(found) = page["items"].take() {
            items.extend(found);
        }
        cursor = page["next_cursor"].as_str().map(str::to_owned);
        if cursor.is_none() {
            break;
        }
    }
    Ok(items)
}

pub(super) fn listed(output: Output, items: &[Json], headings: &[&str]) {
    let rows: Vec<Vec<String>> = items
        .iter()
        .map(|item| {
            headings
                .iter()
                .map(|heading| cell(&item[*heading]))
                .collect()
        })
        .collect();
    output.result(&json!({ "items": items }), || table(headings, &rows));
}

pub(super) fn fields(output: Output, document: &Json) {
    output.result(document, || {
        let rows: Vec<Vec<String>> = document
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, value)| vec![name.clone(), cell(value)])
            .collect();
        table(&["field", "value"], &rows)
    });
}

pub(super) async fn db(
    client: &Client,
    command: DbCommand,
    output: &Output,
) -> Result<(), Failure> {
    match command {
        DbCommand::Create {
            database: name,
            page_size,
        } => {
            let mut body = json!({ "name": name.database });
            if let Some(page_size) = page_size {
                body["page_size"] = json!(page_size);
            }
            let path = ["namespaces", &name.namespace, "databases"];
            let request = client.request(Method::POST, &path).json(&body);
            fields(*output, &client.json(request).await?);
        }
        DbCommand::List { namespace } => {
            let path = ["namespaces", &namespace, "databases"];
            let found = items(client, &path, &[], usize::MAX).await?;
            listed(
                *output,
                &found,
                &["name", "page_size", "state", "durability", "created_at"],
            );
        }
        DbCommand::Show { database: name } => {
            let request = client.request(Method::GET, &database(&name, &[]));
            fields(*output, &client.json(request).await?);
        }
        DbCommand::Delete {
            database: name,
            purge,
            detach_forks,
            yes,
        } => {
            if !yes {
                let how = if purge { "destroy for good" } else { "delete" };
                confirm(&format!("{how} {name}?"))?;
            }
            if purge {
                let request = client.request(Method::DELETE, &database(&name, &[]));
                let mut request = request.query(&[("purge", true)]);
                if detach_forks {
                    request = request.query(&[("detach_forks", true)]);
                }
                let done = followed(client, &name.namespace, request, output).await?;
                fields(*output, &done);
                return Ok(());
            }
            let request = client.request(Method::DELETE, &database(&name, &[]));
            let answer = client.json(request).await?;
            let forks: Vec<String> = answer["forks"]
                .as_array()
                .into_iter()
                .flatten()
                .map(cell)
                .collect();
            let done = json!({ "deleted": name.to_string(), "forks": forks });
            output.result(&done, || {
                let kept = if forks.is_empty() {
                    String::new()
                } else {
                    format!("what its forks need of it stays: {}\n", forks.join(", "))
                };
                format!("{name} is deleted; `tidelog db undelete {name}` brings it back\n{kept}")
            });
        }
        DbCommand::Undelete { database: name } => {
            let request = client.request(Method::POST, &database(&name, &["undelete"]));
            fields(*output, &client.json(request).await?);
        }
    }
    Ok(())
}

/// Asks on the terminal; without one the answer is no.
pub(super) fn confirm(question: &str) -> Result<(), Failure> {
    let refused = || Failure::new(Exit::Refused, "not confirmed: pass --yes");
    if !std::io::stdin().is_terminal() {
        return Err(refused());
    }
    let mut terminal = std::io::stderr();
    let _ = write!(terminal, "{question} [y/N] ");
    let _ = terminal.flush();
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(|_| refused())?;
    if answer.trim().eq_ignore_ascii_case("y") {
        Ok(())
    } else {
        Err(refused())
    }
}

pub(super) async fn query(
    client: &Client,
    options: QueryOptions,
    output: &Output,
) -> Result<(), Failure> {
    let mut body = json!({ "sql": options.sql });
    if let Some(params) = options.params {
        body["params"] = serde_json::from_str(&params)
            .map_err(|error| Failure::usage(format!("--params is not JSON: {error}")))?;
    }
    if let Some(durability) = options.durability {
        body["durability"] = json!(durability.as_str());
    }
    let path = database(&options.database, &["query"]);
    let answer = client
        .json(client.request(Method::POST, &path).json(&body))
        .await?;
    output.result(&answer, || {
        let columns: Vec<String> = answer["columns"]
            .as_array()
            .into_iter()
            .flatten()
            .map(cell)
            .collect();
        if columns.is_empty() {
            let written = cell(&answer["rows_written"]);
            return format!("{written} rows written at {}\n", cell(&answer["bookmark"]));
        }
        let headings: Vec<&str> = columns.iter().map(String::as_str).collect();
        let rows: Vec<Vec<String>> = answer["rows"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|row| row.as_array().into_iter().flatten().map(cell).collect())
            .collect();
        table(&headings, &rows)
    });
    Ok(())
}

pub(super) async fn import(
    client: &Client,
    options: ImportOptions,
    output: &Output,
) -> Result<(), Failure> {
    if options.replace && !options.yes {
        confirm(&format!(
            "replace {} by {}?",
            options.database,
            options.file.display()
        ))?;
    }
    let ready = super::local::whole_file(&options.file, *output)?;
    let path = ready.path();
    let unreadable = |error: std::io::Error| {
        let exit = if error.kind() == std::io::ErrorKind::NotFound {
            Exit::NotFound
        } else {
            Exit::Failed
        };
        Failure::new(
            exit,
            format!("cannot read {}: {error}", options.file.display()),
        )
    };
    let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    let length = file.metadata().await.map_err(unreadable)?.len();
    let bar = output.bar(length, "sending");
    let moving = bar.clone();
    let stream = ReaderStream::with_capacity(file, 1 << 18).inspect(move |piece| {
        if let Ok(piece) = piece {
            moving.inc(u64::try_from(piece.len()).unwrap_or_default());
        }
    });
    let request = client
        .request(Method::POST, &database(&options.database, &["import"]))
        .query(&[("replace", options.replace)])
        .header("content-type", "application/vnd.sqlite3")
        .body(reqwest::Body::wrap_stream(stream));
    if options.replace {
        let namespace = &options.database.namespace;
        let done = followed(client, namespace, request, output).await?;
        bar.finish_and_clear();
        fields(*output, &done["restore"]);
        return Ok(());
    }
    let answer = client.json(request).await?;
    bar.finish_and_clear();
    fields(*output, &answer);
    Ok(())
}

pub(super) async fn export(
    client: &Client,
    options: ExportOptions,
    output: &Output,
) -> Result<(), Failure> {
    let mut request = client.request(Method::GET, &database(&options.database, &["export"]));
    if let Some(bookmark) = options.at.bookmark {
        request = request.query(&[("bookmark", bookmark.to_string())]);
    }
    if let Some(at) = options.at.at {
        request = request.query(&[("timestamp", time::format(at))]);
    }
    if let Some(snapshot) = &options.at.snapshot {
        request = request.query(&[("snapshot", snapshot)]);
    }
    let (received, headers) =
        download(client, request, &options.out, options.force, *output).await?;
    let bookmark = headers
        .get("db-bookmark")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let out = options.out.display().to_string();
    let done = json!({ "file": out, "bytes": received, "bookmark": bookmark });
    output.result(&done, || {
        format!("{out}: {} at {bookmark}\n", bytes(received))
    });
    Ok(())
}

/// Writes an answer to a file, and gives its length and headers.
pub(super) async fn download(
    client: &Client,
    request: RequestBuilder,
    out: &Path,
    force: bool,
    output: Output,
) -> Result<(u64, reqwest::header::HeaderMap), Failure> {
    refuse_existing(out, force)?;
    let response = client.send(request).await?;
    let headers = response.headers().clone();
    let total = response.content_length().unwrap_or_default();
    let bar = output.bar(total, "receiving");
    let unwritable =
        |error: std::io::Error| Failure::failed(format!("cannot write {}: {error}", out.display()));
    // Beside its place, then renamed: a broken stream leaves no half file under the name.
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty());
    let (file, path) = tempfile::Builder::new()
        .prefix(".tidelog-")
        .tempfile_in(folder.unwrap_or(Path::new(".")))
        .map_err(unwritable)?
        .into_parts();
    let mut file = tokio::fs::File::from_std(file);
    let mut received = 0_u64;
    let mut pieces = response.bytes_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| client.unreachable(&error))?;
        received += u64::try_from(piece.len()).unwrap_or_default();
        bar.set_position(received);
        file.write_all(&piece).await.map_err(unwritable)?;
    }
    file.sync_all().await.map_err(unwritable)?;
    drop(file);
    let placed = if force {
        path.persist(out)
    } else {
        path.persist_noclobber(out)
    };
    placed.map_err(|error| unwritable(error.error))?;
    bar.finish_and_clear();
    Ok((received, headers))
}

/// Refuses to write over a file unless told to.
pub(super) fn refuse_existing(path: &Path, force: bool) -> Result<(), Failure> {
    if path.exists() && !force {
        let text = format!("{} exists: pass --force to replace it", path.display());
        return Err(Failure::new(Exit::Refused, text));
    }
    Ok(())
}

pub(super) async fn bookmark(
    client: &Client,
    options: BookmarkOptions,
    output: &Output,
) -> Result<(), Failure> {
    let name = &options.database;
    let request = if let Some(at) = options.at {
        let request = client.request(Method::GET, &database(name, &["bookmarks"]));
        request.query(&[("timestamp", time::format(at))])
    } else {
        let request = client.request(Method::GET, &database(name, &["bookmarks", "current"]));
        match options.wait_durable_ms {
            Some(wait) => request.query(&[("wait_durable_ms", wait)]),
            None => request,
        }
    };
    fields(*output, &client.json(request).await?);
    Ok(())
}

pub(super) async fn history(
    client: &Client,
    options: HistoryOptions,
    output: &Output,
) -> Result<(), Failure> {
    let mut query = Vec::new();
    for (name, position) in [("from", options.from), ("to", options.to)] {
        query.extend(position.map(|position| (name, position.to_string())));
    }
    let path = database(&options.database, &["history"]);
    let found = items(client, &path, &query, options.limit).await?;
    listed(
        *output,
        &found,
        &[
            "bookmark",
            "committed_at",
            "kind",
            "pages_changed",
            "page_count",
        ],
    );
    Ok(())
}

pub(super) async fn token(
    client: &Client,
    command: TokenCommand,
    output: &Output,
) -> Result<(), Failure> {
    match command {
        TokenCommand::Create {
            scopes,
            kind,
            databases,
            expires_at,
            namespace,
        } => {
            let mut body = json!({ "kind": kind, "scopes": scopes });
            if !databases.is_empty() {
                body["databases"] = json!(databases);
            }
            if let Some(time) = expires_at {
                body["expires_at"] = json!(time);
            }
            let path = ["namespaces", &namespace, "tokens"];
            let answer = client
                .json(client.request(Method::POST, &path).json(&body))
                .await?;
            fields(*output, &answer);
            output.remark("keep the token now: it is not shown again");
        }
        TokenCommand::List { namespace } => {
            let path = ["namespaces", &namespace, "tokens"];
            let found = items(client, &path, &[], usize::MAX).await?;
            listed(
                *output,
                &found,
                &["id", "display", "kind", "scopes", "role", "expires_at"],
            );
        }
        TokenCommand::Recover { .. } => {
            return Err(Failure::usage(
                "token recover works on the bucket: give --store",
            ));
        }
        TokenCommand::Revoke { id, namespace } => {
            let path = ["namespaces", &namespace, "tokens", &id];
            client.json(client.request(Method::DELETE, &path)).await?;
            output.result(&json!({ "revoked": id }), || format!("{id} is revoked\n"));
        }
    }
    Ok(())
}

pub(super) async fn namespace(
    client: &Client,
    command: NamespaceCommand,
    output: &Output,
) -> Result<(), Failure> {
    let NamespaceCommand::Create { name } = command;
    let request = client
        .request(Method::POST, &["namespaces"])
        .json(&json!({ "name": name }));
    let answer = client.json(request).await?;
    output.result(&answer, || {
        let owner = &answer["owner_token"];
        format!(
            "{name} is made; its owner token, shown once: {}\n",
            cell(&owner["token"])
        )
    });
    Ok(())
}
