//! Whole databases in and out, as plain SQLite files.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use tidelog_engine::bucket::At;
use tidelog_engine::system::tokens::token_id_text;

use super::operations::outcome;
use super::{databases, time};
use crate::http::{Answer, Call};
use crate::problem::{Code, Problem};

/// `GET export`: the database at a bookmark or a time, or as it stands. No reader is held while it streams.
pub(super) async fn export(mut call: Call) -> Result<Answer, Problem> {
    let bookmark = time::bookmark(&mut call, "bookmark")?;
    let timestamp = call.query.time("timestamp")?;
    let snapshot = call.query.text("snapshot")?;
    let given = [bookmark.is_some(), timestamp.is_some(), snapshot.is_some()];
    if given.iter().filter(|one| **one).count() > 1 {
        let detail = "give one of bookmark, timestamp and snapshot";
        return Err(Problem::invalid(Code::InvalidRequest, "/timestamp", detail));
    }
    call.finish()?;
    let at = bookmark
        .map(At::Bookmark)
        .or(timestamp.map(At::Time))
        .or(snapshot.map(At::Snapshot))
        .unwrap_or(At::Latest);
    let database = call.database().await?;
    if database.row().block_reads {
        let detail = format!("reads of database {:?} are blocked", database.row().name);
        return Err(Problem::new(Code::DatabaseBlocked, detail));
    }
    let exported = Arc::new(database.export_to_send(at).await?);
    let (position, length) = (exported.position(), exported.bytes());
    let stream = futures::stream::try_unfold(0, move |offset| {
        let exported = Arc::clone(&exported);
        async move {
            let read = tokio::task::spawn_blocking(move || exported.piece(offset));
            let piece = read.await.map_err(std::io::Error::other)??;
            let next = offset + piece.len() as u64;
            Ok::<_, std::io::Error>((!piece.is_empty()).then_some((piece, next)))
        }
    });
    let durable = database.bookmark().await?.durable_bookmark;
    Ok(
        Answer::other("application/vnd.sqlite3", Body::from_stream(stream))
            .header(header::CONTENT_LENGTH, HeaderValue::from(length))
            .header(
                header::CONTENT_DISPOSITION,
                HeaderValue::from_static("attachment; filename=\"database.sqlite\""),
            )
            .at(Some(position), durable),
    )
}

/// `POST import`: a new database from a file, and a name in use is refused; with `replace=true` the file takes the
/// place of an existing database, as one commit that can be taken back.
pub(super) async fn import(mut call: Call) -> Result<Answer, Problem> {
    let replace = call.query.boolean("replace")?.unwrap_or(false);
    call.finish()?;
    let file = call
        .file
        .take()
        .ok_or_else(|| Problem::new(Code::Internal, "an import came without its file"))?;
    if replace {
        let database = call.database().await?;
        let token = Some(token_id_text(&call.principal()?.token.id));
        let handle = database.replace(&file.path, call.if_match, token).await?;
        return outcome(&call, handle, StatusCode::OK).await;
    }
    let (engine, namespace) = (&call.app.engine, call.namespace()?);
    let draft = engine
        .database_import_draft(namespace, &call.name("db")?, &file.path)
        .await?;
    tracing::info!(bytes = file.bytes, "a database was imported");
    databases::publish(&call, draft).await
}
