//! The root of the bucket: made once, then told of each claim.

use tidelog_wal::Term;

use super::{ROUNDS_MAX, TermError, Terms, encoded};
use crate::ErrorKind;
use crate::key::Key;
use crate::root::Root;
use crate::store::{StoreError, Version};

impl Terms {
    /// Sets the bucket up with this root. [`TermError::RootExists`] if it has one.
    pub async fn create_root(&self, root: &Root) -> Result<(), TermError> {
        let bytes = encoded(root.encode(self.write_id()))?;
        match self.store.create(&Key::Root.to_string(), bytes).await {
            Ok(_) => Ok(()),
            Err(StoreError::Conflict { .. }) => Err(TermError::RootExists),
            Err(error) => Err(TermError::store("create the root", error)),
        }
    }

    /// The root. [`TermError::NoRoot`] if the bucket has none.
    pub async fn root(&self) -> Result<Root, TermError> {
        Ok(self.load_root().await?.0)
    }

    async fn load_root(&self) -> Result<(Root, Version), TermError> {
        let key = Key::Root.to_string();
        match self.store.get_versioned(&key).await {
            Ok((bytes, version)) => {
                let (root, _) = Root::decode(&bytes).map_err(|error| error.in_object(key))?;
                Ok((root, version))
            }
            Err(StoreError::NotFound { .. }) => Err(TermError::NoRoot),
            Err(error) => Err(TermError::store("read the root", error)),
        }
    }

    /// Writes down in the root that this node has claimed `term`. A root that does not know of the newest
    /// claims only costs the next claimant a few requests.
    pub async fn note_claim(&self, term: Term) -> Result<Root, TermError> {
        for _ in 0..ROUNDS_MAX {
            let (mut root, version) = self.load_root().await?;
            let before = root.clone();
            root.note_claim(self.node, term);
            if root == before {
                return Ok(root);
            }
            let bytes = encoded(root.encode(self.write_id()))?;
            match self
                .store
                .replace(&Key::Root.to_string(), bytes, &version)
                .await
            {
                Ok(_) => return Ok(root),
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                Err(error) => return Err(TermError::store("note a claim in the root", error)),
            }
        }
        Err(TermError::Contended {
            action: "note a claim in the root",
            rounds: ROUNDS_MAX,
        })
    }
}
