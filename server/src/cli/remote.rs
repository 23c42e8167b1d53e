//! The commands that ask a server.

use std::io::{IsTerminal, Write};

use reqwest::Method;
use serde_json::{Value as Json, json};

use super::args::{BookmarkOptions, DbCommand, Name, NamespaceCommand, QueryOptions, TokenCommand};
use super::client::Client;
use super::exit::{Exit, Failure};
use super::output::{Output, cell, table};

/// The most items a page may have.
const PAGE_MAX: usize = 500;

fn database<'a>(name: &'a Name, rest: &[&'a str]) -> Vec<&'a str> {
    let mut path = vec!["namespaces", &name.namespace, "databases", &name.database];
    path.extend(rest);
    path
}

/// Every item of a list, page by page, up to a number.
async fn items(
    client: &Client,
    path: &[&str],
    query: &[(&str, String)],
    most: usize,
) -> Result<Vec<Json>, Failure> {
    let mut items = Vec::new();
    let mut cursor: Option<String> = None;
    while items.len() < most {
        let limit = (most - items.len()).min(PAGE_MAX).to_string();
        let mut request = client
            .request(Method::GET, path)
            .query(query)
            .query(&[("limit", limit)]);
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

fn listed(output: Output, items: &[Json], headings: &[&str]) {
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

fn fields(output: Output, document: &Json) {
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
            yes,
        } => {
            if !yes {
                confirm(&format!("delete {name}?"))?;
            }
            client
                .json(client.request(Method::DELETE, &database(&name, &[])))
                .await?;
            let done = json!({ "deleted": name.to_string() });
            output.result(&done, || {
                format!("{name} is deleted; `tidelog db undelete {name}` brings it back\n")
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
fn confirm(question: &str) -> Result<(), Failure> {
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

pub(super) async fn bookmark(
    client: &Client,
    options: BookmarkOptions,
    output: &Output,
) -> Result<(), Failure> {
    let name = &options.database;
    let mut request = client.request(Method::GET, &database(name, &["bookmarks", "current"]));
    if let Some(wait) = options.wait_durable_ms {
        request = request.query(&[("wait_durable_ms", wait)]);
    }
    fields(*output, &client.json(request).await?);
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
