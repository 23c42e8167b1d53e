//! An upload in parts: written into a staged file at their offsets, then synced and named.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use object_store::{MultipartUpload, PutPayload, PutResult, UploadPart};

use super::place::{Place, Staged, failed};
use super::written;

/// One upload under way. Dropped or aborted, it leaves nothing.
#[derive(Debug)]
pub(super) struct PartsUpload {
    place: Arc<Place>,
    staged: Arc<Mutex<Option<Staged>>>,
    target: PathBuf,
    offset: u64,
}

fn over() -> object_store::Error {
    object_store::Error::Generic {
        store: "FileStore",
        source: "the upload has been completed or aborted".into(),
    }
}

impl PartsUpload {
    pub(super) fn new(place: Arc<Place>, staged: Staged, target: PathBuf) -> Self {
        Self {
            place,
            staged: Arc::new(Mutex::new(Some(staged))),
            target,
            offset: 0,
        }
    }
}

fn take(staged: &Mutex<Option<Staged>>) -> object_store::Result<Staged> {
    staged
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take()
        .ok_or_else(over)
}

#[async_trait]
impl MultipartUpload for PartsUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (staged, mut offset) = (Arc::clone(&self.staged), self.offset);
        self.offset += data.content_length() as u64;
        Box::pin(async move {
            tokio::task::spawn_blocking(move || {
                let staged = staged.lock().unwrap_or_else(PoisonError::into_inner);
                let staged = staged.as_ref().ok_or_else(over)?;
                for bytes in &data {
                    staged
                        .file
                        .write_all_at(bytes, offset)
                        .map_err(|error| failed("write", &staged.path, error))?;
                    offset += bytes.len() as u64;
                }
                Ok(())
            })
            .await?
        })
    }

    async fn complete(&mut self) -> object_store::Result<PutResult> {
        let (place, target) = (Arc::clone(&self.place), self.target.clone());
        let mut staged = take(&self.staged)?;
        tokio::task::spawn_blocking(move || {
            place.check()?;
            place.seal(&mut staged)?;
            let version = staged.version.clone();
            place.overwrite(&staged, &target)?;
            Ok(written(version))
        })
        .await?
    }

    async fn abort(&mut self) -> object_store::Result<()> {
        drop(take(&self.staged)?);
        Ok(())
    }
}
