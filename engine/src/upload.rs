//! Uploading an object while it is written: a blocking writer hands out pieces, the store takes them, and memory
//! holds a few of them at a time.

use bytes::Bytes;
use futures::stream;
use tokio::sync::mpsc;

use crate::core::Core;
use crate::error::{Code, Error};
use crate::executor::piped;
use crate::node::start::store_error;

/// Pieces between the writer and the store.
const PIECES_WAITING: usize = 4;

/// Where a writer hands its pieces.
#[derive(Debug)]
pub(crate) struct Pieces {
    sender: mpsc::Sender<Result<Bytes, Error>>,
}

impl Pieces {
    /// Hands out the next bytes, waiting while the store has enough. Fails once the upload has.
    pub(crate) fn push(&self, bytes: impl Into<Bytes>) -> Result<(), Error> {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Ok(());
        }
        self.sender.blocking_send(Ok(bytes)).map_err(|_| {
            let what = "the upload ended before the object was written";
            Error::new(Code::StorageUnavailable, what)
        })
    }
}

/// Stores what `write` hands out under a key that nobody else uses, and answers what it answered. `write` runs on
/// a blocking thread. Nothing of the object counts until something names it, so that an error leaves garbage at
/// worst.
pub(crate) async fn upload<T: Send + 'static>(
    core: &Core,
    key: &str,
    write: impl FnOnce(&Pieces) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (sender, taken) = mpsc::channel(PIECES_WAITING);
    let pieces = Pieces { sender };
    let writing = tokio::spawn(piped(move || {
        let written = write(&pieces);
        if let Err(error) = &written {
            // The store must not take what was handed out so far for the whole.
            let broken = Error::new(error.code(), error.to_string());
            let _ = pieces.sender.blocking_send(Err(broken));
        }
        written
    }));
    let source = stream::unfold(taken, async |mut taken| {
        taken.recv().await.map(|piece| (piece, taken))
    });
    let stored = core.remote.store.put_unique(key, source).await;
    let written = writing
        .await
        .map_err(|e| Error::internal("write an object").caused_by(e))?;
    match (stored, written) {
        (Ok(_), written) => written,
        // The writer's own failure is why the store refused; else the store's is why the writer stopped.
        (Err(_), Err(error)) if error.code() != Code::StorageUnavailable => Err(error),
        (Err(error), _) => Err(store_error(&format!("store {key}"), error)),
    }
}
