//! Bytes on their way into an archive: hashed plain, compressed, hashed again, sealed where the database has a key,
//! and handed to the upload in pieces, so that no more than a few of them are in memory.

use std::io::{self, Write};

use bytes::{Bytes, BytesMut};
use futures::stream;
use sha2::{Digest as _, Sha256};
use tidelog_archive::export::SealedArchiveWriter;
use tokio::sync::mpsc;

use crate::core::Core;
use crate::error::{Code, Error};
use crate::executor::piped;
use crate::node::start::store_error;
use crate::operations::Task;
use crate::travel::inspect::hex;

/// Bytes handed to the upload at once.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces between the compressor and the upload.
const PIECES_WAITING: usize = 4;

/// What was written.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) bytes: u64,
    pub(super) sha256: String,
    /// Of the compressed frame.
    pub(super) stored_bytes: u64,
    pub(super) stored_sha256: String,
    /// Length and BLAKE3 of the sealed object, if it is sealed.
    pub(super) sealed: Option<(u64, [u8; 32])>,
}

impl Written {
    /// Bytes of the object.
    fn object_bytes(&self) -> u64 {
        self.sealed.map_or(self.stored_bytes, |(bytes, _)| bytes)
    }
}

/// Where compressed bytes wait to be sent.
enum Pending {
    Plain(BytesMut),
    Sealed(Box<SealedArchiveWriter>),
}

/// The compressed side.
struct Out {
    pieces: mpsc::Sender<Result<Bytes, Error>>,
    pending: Pending,
    hash: Sha256,
    bytes: u64,
}

impl Out {
    fn send(&mut self, bytes: Bytes) -> io::Result<()> {
        self.pieces
            .blocking_send(Ok(bytes))
            .map_err(|_| io::Error::other("the upload ended early"))
    }

    /// Sends what is left; length and BLAKE3 of the object, if it is sealed.
    fn end(&mut self) -> Result<Option<(u64, [u8; 32])>, Error> {
        let pending = std::mem::replace(&mut self.pending, Pending::Plain(BytesMut::new()));
        let (rest, sealed) = match pending {
            Pending::Plain(pending) => (pending.freeze(), None),
            Pending::Sealed(writer) => {
                let finished = writer.finish();
                let finished =
                    finished.map_err(|e| Error::internal("seal an archive").caused_by(e))?;
                (finished.bytes, Some((finished.len, finished.blake3)))
            }
        };
        self.send(rest)
            .map_err(|e| Error::io("compress an archive", e))?;
        Ok(sealed)
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        let piece = match &mut self.pending {
            Pending::Plain(pending) => {
                pending.extend_from_slice(bytes);
                (pending.len() >= PIECE_BYTES).then(|| pending.split().freeze())
            }
            Pending::Sealed(writer) => {
                writer.push(bytes);
                (writer.pending() >= PIECE_BYTES).then(|| writer.take().into())
            }
        };
        if let Some(piece) = piece {
            self.send(piece)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The plain side.
struct Plain {
    encoder: zstd::Encoder<'static, Out>,
    hash: Sha256,
    bytes: u64,
    reported: u64,
    task: Task,
}

impl Write for Plain {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.encoder.write_all(bytes)?;
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        if self.bytes - self.reported >= PIECE_BYTES as u64 {
            self.reported = self.bytes;
            self.task.progress(self.bytes);
            self.task.check().map_err(io::Error::other)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Stores at `key` what `fill` writes, compressed, and sealed by `sealing` if there is one. `len` is the length of it,
/// where that is known. After an error the object is garbage: the caller deletes it.
pub(super) async fn store<F>(
    core: &Core,
    key: &str,
    (len, sealing): (Option<u64>, Option<SealedArchiveWriter>),
    task: &Task,
    fill: F,
) -> Result<Written, Error>
where
    F: FnOnce(&mut dyn Write) -> Result<(), Error> + Send + 'static,
{
    let (pieces, taken) = mpsc::channel(PIECES_WAITING);
    let (level, working) = (core.settings.settle_level, task.clone());
    let writing = tokio::spawn(piped(move || {
        let pending = match sealing {
            Some(writer) => Pending::Sealed(Box::new(writer)),
            None => Pending::Plain(BytesMut::new()),
        };
        let written = write(&pieces, level, (len, pending), working, fill);
        if let Err(error) = &written {
            // The upload is aborted by it; one that is gone already needs no reason.
            let told = Error::new(error.code(), error.to_string());
            let _ = pieces.blocking_send(Err(told));
        }
        written
    }));
    let source = stream::unfold(taken, async |mut taken: mpsc::Receiver<_>| {
        taken.recv().await.map(|piece| (piece, taken))
    });
    let put = core.remote.store.put_unique(key, source).await;
    let written = writing
        .await
        .unwrap_or_else(|e| Err(Error::internal("write an archive").caused_by(e)));
    task.check()?;
    match (put, written) {
        (Ok(head), Ok(stored)) if head.length == stored.object_bytes() => Ok(stored),
        (Ok(head), Ok(stored)) => {
            let what = format!(
                "the store holds {} bytes of an archive of {}",
                head.length,
                stored.object_bytes()
            );
            Err(Error::new(Code::ObjectCorrupt, what))
        }
        // A source that failed is why the upload did, and else the other way round.
        (Err(tidelog_archive::store::StoreError::Source { .. }) | Ok(_), Err(error)) => Err(error),
        (Err(error), _) => Err(store_error("store an archive", error)),
    }
}

fn write<F>(
    pieces: &mpsc::Sender<Result<Bytes, Error>>,
    level: i32,
    (len, pending): (Option<u64>, Pending),
    task: Task,
    fill: F,
) -> Result<Written, Error>
where
    F: FnOnce(&mut dyn Write) -> Result<(), Error>,
{
    let io = |e| Error::io("compress an archive", e);
    let out = Out {
        pieces: pieces.clone(),
        pending,
        hash: Sha256::new(),
        bytes: 0,
    };
    let mut encoder = zstd::Encoder::new(out, level).map_err(io)?;
    encoder.include_checksum(true).map_err(io)?;
    encoder.set_pledged_src_size(len).map_err(io)?;
    let mut plain = Plain {
        encoder,
        hash: Sha256::new(),
        bytes: 0,
        reported: 0,
        task,
    };
    fill(&mut plain)?;
    let mut out = plain.encoder.finish().map_err(io)?;
    let sealed = out.end()?;
    Ok(Written {
        bytes: plain.bytes,
        sha256: hex(&plain.hash.finalize()),
        stored_bytes: out.bytes,
        stored_sha256: hex(&out.hash.finalize()),
        sealed,
    })
}
