//! A file that comes as a body: written to scratch disk as it arrives, and counted.

use axum::body::Body;
use futures::StreamExt;
use sha2::{Digest, Sha256};
use tempfile::TempPath;
use tokio::io::AsyncWriteExt;

use crate::app::App;
use crate::problem::{Code, Problem};

/// A body on disk; the file goes away with it.
#[derive(Debug)]
pub(crate) struct Staged {
    pub(crate) path: TempPath,
    pub(crate) bytes: u64,
    /// SHA-256 of it.
    pub(crate) digest: [u8; 32],
}

/// Writes a body to a file of its own in the scratch folder.
pub(crate) async fn stage(app: &App, body: Body) -> Result<Staged, Problem> {
    let limit = app.limits.import_bytes_max;
    let (file, path) = tempfile::Builder::new()
        .prefix("body-")
        .tempfile_in(&app.scratch)
        .map_err(|error| disk(&error))?
        .into_parts();
    let mut file = tokio::fs::File::from_std(file);
    let (mut bytes, mut digest) = (0_u64, Sha256::new());
    let mut pieces = body.into_data_stream();
    loop {
        let next = tokio::time::timeout(app.limits.import_pause, pieces.next()).await;
        let next =
            next.map_err(|_| Problem::new(Code::RequestTimeout, "the file stopped coming"))?;
        let Some(piece) = next else { break };
        let piece = piece.map_err(|_| Problem::new(Code::InvalidRequest, "the file broke off"))?;
        bytes = bytes.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
        if bytes > limit {
            let detail = format!("a file has at most {limit} bytes");
            return Err(Problem::new(Code::BodyTooLarge, detail).with("limit", limit));
        }
        digest.update(&piece);
        file.write_all(&piece).await.map_err(|error| disk(&error))?;
    }
    file.flush().await.map_err(|error| disk(&error))?;
    Ok(Staged {
        path,
        bytes,
        digest: digest.finalize().into(),
    })
}

/// A failure of the scratch disk.
pub(crate) fn disk(error: &std::io::Error) -> Problem {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    tracing::error!(%error, "the scratch folder failed");
    match error.kind() {
        StorageFull | QuotaExceeded => Problem::new(Code::DiskFull, "the scratch disk is full"),
        _ => Problem::new(Code::Internal, "the scratch folder cannot be used"),
    }
}
