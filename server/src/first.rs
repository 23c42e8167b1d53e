//! The first start: a namespace to work in, and the two token files that open it.
//!
//! A bucket without namespaces is new: it gets the namespace `default` with an owner token, and a server token.
//! A folder that takes a bucket over has no token files; it gets fresh tokens, and the old ones stay valid until
//! they are revoked. The secrets stand in files that only their owner can read, and nowhere else.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tidelog_engine::system::databases::Namespace;
use tidelog_engine::system::tokens::NewToken;
use tidelog_engine::{Engine, Error};

/// The namespace of the first start.
pub const DEFAULT_NAMESPACE: &str = "default";
/// The file with the owner token of [`DEFAULT_NAMESPACE`].
pub const OWNER_TOKEN: &str = "owner.token";
/// The file with the token that makes namespaces.
pub const SERVER_TOKEN: &str = "server.token";

/// Why the first start did not end.
#[derive(Debug, thiserror::Error)]
pub enum FirstStartError {
    /// The engine refused to make the namespace or a token.
    #[error("make the first tokens")]
    Engine(#[source] Error),
    /// A token was made and could not be kept; it is useless then.
    #[error("write the token file {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes what a new bucket or a taken-over one needs; answers sentences for the terminal.
pub async fn first_start(
    engine: &Engine,
    data: &Path,
    taken_over: bool,
) -> Result<Vec<String>, FirstStartError> {
    let namespaces = engine.namespaces().await.map_err(FirstStartError::Engine)?;
    let mut said = Vec::new();
    let existing = namespaces
        .iter()
        .find(|namespace| namespace.name == DEFAULT_NAMESPACE);
    let namespace = match existing {
        Some(namespace) => Some(namespace.clone()),
        None if namespaces.is_empty() => {
            let made = engine.namespace_create(DEFAULT_NAMESPACE).await;
            Some(made.map_err(FirstStartError::Engine)?)
        }
        None => None,
    };
    let wanted = |file: &str| !data.join(file).exists() && (taken_over || namespaces.is_empty());
    if let Some(namespace) = namespace.filter(|_| wanted(OWNER_TOKEN)) {
        let path = mint(engine, data, OWNER_TOKEN, Some(&namespace)).await?;
        said.push(format!(
            "the owner token of namespace `{DEFAULT_NAMESPACE}` is in {}",
            path.display()
        ));
    }
    if wanted(SERVER_TOKEN) {
        let path = mint(engine, data, SERVER_TOKEN, None).await?;
        said.push(format!(
            "the server token, which makes namespaces, is in {}",
            path.display()
        ));
    }
    Ok(said)
}

async fn mint(
    engine: &Engine,
    data: &Path,
    file: &str,
    namespace: Option<&Namespace>,
) -> Result<PathBuf, FirstStartError> {
    let new = NewToken::owner(namespace.map(|namespace| namespace.id));
    let (_, secret) = engine
        .token_create(new)
        .await
        .map_err(FirstStartError::Engine)?;
    let path = data.join(file);
    match keep(&path, &secret) {
        Ok(()) => Ok(path),
        Err(source) => Err(FirstStartError::File { path, source }),
    }
}

/// Writes a secret to a new file of mode 0600, synced.
fn keep(path: &Path, secret: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(secret.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_file_is_its_owners_alone_and_never_replaced() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join(OWNER_TOKEN);
        keep(&path, "tl_live_x").expect("written");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            keep(&path, "y").expect_err("exists").kind(),
            io::ErrorKind::AlreadyExists
        );
        assert_eq!(fs::read_to_string(&path).expect("readable"), "tl_live_x\n");
    }
}
