//! What the operator of a node asks of all of it: which databases there are, that what is pending is shipped or
//! checkpointed now, and what lies in the bucket that no history lists.

use std::time::Duration;

use crate::boxed;
use crate::engine::Engine;
use crate::error::{Code, Error};
use crate::keeper::checkpoint;
use crate::node::start::store_error;
use crate::system::databases::DatabaseRow;
use crate::system::{Page, PageOf};
use crate::travel::retention::{ObjectGone, unlisted};
use crate::travel::unnamed::Unnamed;

/// Records of the journal before and after a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flushed {
    /// Commits that waited, of all databases.
    pub commits: u64,
    /// Bytes of the journal that are still not stored: of commits that came meanwhile.
    pub waiting_bytes: u64,
}

/// What lies in the bucket that nothing leads to.
#[derive(Debug, Clone)]
pub struct Reconciled {
    /// A page of databases, and the objects of each that its history does not list.
    pub databases: PageOf<(DatabaseRow, Vec<ObjectGone>)>,
    /// With the last page: databases that no row names.
    pub unnamed: Vec<Unnamed>,
}

impl Engine {
    /// A page of the databases of all namespaces by id, deleted ones among them.
    #[boxed]
    pub async fn all_databases(&self, page: Page) -> Result<PageOf<DatabaseRow>, Error> {
        let bad = || Error::new(Code::InvalidRequest, "the cursor is not one of this list");
        let after = page.cursor.as_deref().map(str::parse).transpose();
        let after = after.map_err(|_| bad())?;
        let limit = page.limit();
        let rows = self.inner.system.databases_after(after, limit + 1).await?;
        Ok(PageOf::cut(rows, limit, |row| row.id.to_string()))
    }

    /// Has everything that is journaled now stored, waiting for it as long as a `remote` write does.
    #[boxed]
    pub async fn flush(&self) -> Result<Flushed, Error> {
        let core = &self.inner.core;
        let (journal, bound) = (&core.journal, core.settings.durability_timeout);
        let upto = journal.appended_lsn();
        let commits = upto.saturating_sub(journal.shipped_lsn());
        match tokio::time::timeout(bound, journal.wait_shipped(upto)).await {
            Ok(shipped) => shipped?,
            Err(_) => return Err(not_shipped(bound)),
        }
        Ok(Flushed {
            commits,
            waiting_bytes: journal.unshipped_bytes(),
        })
    }

    /// Checkpoints every open database: how many were, and the first failure, if there was one.
    #[boxed]
    pub async fn checkpoint(&self) -> (usize, Option<Error>) {
        let (core, registry) = (&self.inner.core, &self.inner.registry);
        let (mut done, mut failed) = (0, None);
        let open = registry.open().await;
        // The databases are let go of before the first one is waited for: one may want to close.
        let open: Vec<_> = open
            .into_iter()
            .map(|(id, one)| (one.meta().namespace, id))
            .collect();
        for (namespace, id) in open {
            match checkpoint(core, registry, namespace, id).await {
                Ok(()) => done += 1,
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        (done, failed)
    }

    /// Objects of a page of databases that no history lists and nobody can come to list any more; removed from the
    /// bucket if `apply`. With the last page come the databases that no row names: they are destroyed only if `unnamed`
    /// says so, too.
    #[boxed]
    pub async fn reconcile(
        &self,
        page: Page,
        apply: bool,
        unnamed: bool,
    ) -> Result<Reconciled, Error> {
        let core = &self.inner.core;
        let rows = self.all_databases(page).await?;
        let mut items = Vec::with_capacity(rows.items.len());
        for row in rows.items {
            let _turn = core.calendar.turn.lock().await;
            let found = unlisted(core, row.namespace, row.id, self.now()).await?;
            if apply {
                let keys: Vec<String> = found.iter().map(|gone| gone.key.clone()).collect();
                let deleted = core.remote.store.delete_all(&keys).await;
                deleted.map_err(|e| store_error("delete what nothing lists", e))?;
            }
            items.push((row, found));
        }
        let is_last = rows.next_cursor.is_none();
        let nameless = if is_last {
            self.unnamed().await?
        } else {
            Vec::new()
        };
        if apply && unnamed {
            for one in &nameless {
                self.destroy_unnamed(one).await?;
            }
        }
        Ok(Reconciled {
            databases: PageOf {
                items,
                next_cursor: rows.next_cursor,
            },
            unnamed: nameless,
        })
    }
}

fn not_shipped(bound: Duration) -> Error {
    let ms = bound.as_millis();
    Error::new(
        Code::DurabilityTimeout,
        format!("what was pending is not stored after {ms} ms; it goes on"),
    )
}
