//! Tokens: random secrets, kept as SHA-256 alone, shown once.
//!
//! A secret is `tl_live_`, `tl_test_` or `tl_cli_` and 43 characters that carry 256 random bits. The first 11
//! characters are kept for display. The server token makes namespaces and opens no database.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use rusqlite::{OptionalExtension as _, Row, params};
use sha2::{Digest as _, Sha256};
use tidelog_wal::{NamespaceId, Timestamp};

use super::{Page, PageOf, System, id16, micros, timestamp};
use crate::error::{Code, Error};
use crate::request::Role;

/// Characters of a secret that are kept for recognition.
const DISPLAY_LEN: usize = 11;
/// Tokens kept in memory.
const CACHED_MAX: usize = 100_000;

/// What a token is for: its prefix says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TokenKind {
    /// Production.
    #[default]
    Live,
    /// Tests.
    Test,
    /// The command line.
    Cli,
}

impl TokenKind {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Test => "test",
            Self::Cli => "cli",
        }
    }

    /// The kind of a name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Live, Self::Test, Self::Cli]
            .into_iter()
            .find(|kind| kind.as_str() == name)
    }
}

/// A token to be made.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// The tenant; `None` makes a server token.
    pub namespace: Option<NamespaceId>,
    /// Its kind.
    pub kind: TokenKind,
    /// What it may do at most.
    pub role: Role,
    /// The scopes it was asked for, as text.
    pub scopes: Vec<String>,
    /// The databases it may use; `None`: all.
    pub databases: Option<Vec<String>>,
    /// Whether it may change schemas.
    pub allow_ddl: bool,
    /// When it stops being valid.
    pub expires_at: Option<Timestamp>,
}

/// A token without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenInfo {
    /// Its id.
    pub id: [u8; 16],
    /// The tenant; `None`: the server's.
    pub namespace: Option<NamespaceId>,
    /// The first characters of the secret.
    pub display: String,
    /// Its kind.
    pub kind: TokenKind,
    /// What it may do at most.
    pub role: Role,
    /// The scopes it was asked for.
    pub scopes: Vec<String>,
    /// The databases it may use; `None`: all.
    pub databases: Option<Vec<String>>,
    /// Whether it may change schemas.
    pub allow_ddl: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stops being valid.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// Who a verified token is.
#[derive(Debug, Clone)]
pub struct Principal {
    /// The token.
    pub token: TokenInfo,
    /// Name of the tenant it is bound to; `None` for the server token.
    pub namespace_name: Option<String>,
}

/// Tokens by hash, once read.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    inner: Mutex<Cached>,
}

#[derive(Debug, Default)]
struct Cached {
    by_hash: HashMap<[u8; 32], Principal>,
    /// Counts revocations: what was read before one is not cached after it.
    epoch: u64,
}

impl Cache {
    fn lock(&self) -> std::sync::MutexGuard<'_, Cached> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn revoke(&self, id: &[u8; 16]) {
        let mut cached = self.lock();
        cached.epoch += 1;
        cached
            .by_hash
            .retain(|_, principal| principal.token.id != *id);
    }
}

const COLUMNS: &str = "id, namespace, display, kind, role, scopes, databases, allow_ddl, \
                       created, expires, revoked";

fn row(row: &Row<'_>) -> rusqlite::Result<TokenInfo> {
    let namespace: Option<Vec<u8>> = row.get(1)?;
    let bad = || rusqlite::Error::InvalidQuery;
    let databases: Option<String> = row.get(6)?;
    Ok(TokenInfo {
        id: id16(&row.get::<_, Vec<u8>>(0)?)?,
        namespace: namespace
            .map(|id| id16(&id).map(NamespaceId::from_bytes))
            .transpose()?,
        display: row.get(2)?,
        kind: TokenKind::parse(&row.get::<_, String>(3)?).ok_or_else(bad)?,
        role: Role::parse(&row.get::<_, String>(4)?).ok_or_else(bad)?,
        scopes: row
            .get::<_, String>(5)?
            .split_whitespace()
            .map(str::to_owned)
            .collect(),
        databases: databases
            .map(|json| serde_json::from_str(&json).map_err(|_| bad()))
            .transpose()?,
        allow_ddl: row.get(7)?,
        created_at: timestamp(row.get(8)?),
        expires_at: row.get::<_, Option<i64>>(9)?.map(timestamp),
        revoked_at: row.get::<_, Option<i64>>(10)?.map(timestamp),
    })
}

/// SHA-256 of a secret: all that is ever stored of it.
fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// 32 random bytes in the URL-safe alphabet of 64 characters.
fn secret(kind: TokenKind, random: [u8; 32]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = format!("tl_{}_", kind.as_str());
    for group in random.chunks(3) {
        let word = group
            .iter()
            .fold(0_u32, |word, byte| (word << 8) | u32::from(*byte));
        let word = word << (8 * (3 - group.len()));
        for i in 0..=group.len() {
            let six = (word >> (18 - 6 * i)) & 63;
            text.push(char::from(ALPHABET[six as usize]));
        }
    }
    text
}

/// A token id as text.
pub fn token_id_text(id: &[u8; 16]) -> String {
    format!("tok_{}", tidelog_wal::DatabaseId::from_bytes(*id))
}

/// The token id of a text.
pub fn parse_token_id(text: &str) -> Option<[u8; 16]> {
    let id: tidelog_wal::DatabaseId = text.strip_prefix("tok_")?.parse().ok()?;
    Some(*id.as_bytes())
}

impl System {
    /// Makes a token; answers it and its secret, which nothing keeps.
    pub(crate) async fn token_create(&self, new: NewToken) -> Result<(TokenInfo, String), Error> {
        let entropy = &self.core.parts.entropy;
        let mut random = [0; 32];
        entropy.fill(&mut random);
        let secret = secret(new.kind, random);
        let info = TokenInfo {
            id: entropy.bytes16(),
            namespace: new.namespace,
            display: secret.chars().take(DISPLAY_LEN).collect(),
            kind: new.kind,
            role: new.role,
            scopes: new.scopes,
            databases: new.databases,
            allow_ddl: new.allow_ddl,
            created_at: self.core.parts.clock.wall(),
            expires_at: new.expires_at,
            revoked_at: None,
        };
        let (row, hash) = (info.clone(), hash(&secret));
        let databases = row
            .databases
            .as_ref()
            .map(serde_json::to_string)
            .transpose()
            .map_err(|e| Error::internal("store a token").caused_by(e))?;
        self.write(move |c| {
            c.execute(
                "INSERT INTO tokens(id, namespace, hash, display, kind, role, scopes, databases, \
                 allow_ddl, created, expires) VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11)",
                params![
                    row.id,
                    row.namespace.map(|id| *id.as_bytes()),
                    hash,
                    row.display,
                    row.kind.as_str(),
                    row.role.as_str(),
                    row.scopes.join(" "),
                    databases,
                    row.allow_ddl,
                    micros(row.created_at),
                    row.expires_at.map(micros)
                ],
            )
        })
        .await?;
        Ok((info, secret))
    }

    /// Who a secret belongs to, if it is valid now.
    pub(crate) async fn authenticate(&self, secret: &str) -> Result<Principal, Error> {
        let hash = hash(secret);
        let cached = self.tokens.lock().by_hash.get(&hash).cloned();
        let principal = match cached {
            Some(principal) => principal,
            None => self.load(hash).await?,
        };
        if principal.token.revoked_at.is_some() {
            return Err(Error::new(Code::TokenRevoked, "the token was revoked"));
        }
        let now = self.core.parts.clock.wall();
        if principal.token.expires_at.is_some_and(|at| at <= now) {
            return Err(Error::new(Code::TokenExpired, "the token has expired"));
        }
        Ok(principal)
    }

    async fn load(&self, hash: [u8; 32]) -> Result<Principal, Error> {
        let epoch = self.tokens.lock().epoch;
        let found = self
            .read(move |c| {
                c.query_row(
                    &format!("SELECT {COLUMNS} FROM tokens WHERE hash = ?1"),
                    [hash],
                    row,
                )
                .optional()
            })
            .await?;
        let token =
            found.ok_or_else(|| Error::new(Code::Unauthenticated, "the token is not known"))?;
        let namespace_name = match token.namespace {
            None => None,
            Some(id) => Some(self.namespace_by_id(id).await?.name),
        };
        let principal = Principal {
            token,
            namespace_name,
        };
        let mut cache = self.tokens.lock();
        if cache.by_hash.len() >= CACHED_MAX {
            cache.by_hash.clear();
        }
        if cache.epoch == epoch {
            cache.by_hash.insert(hash, principal.clone());
        }
        Ok(principal)
    }

    /// The tokens of a namespace, by id.
    pub(crate) async fn token_list(
        &self,
        namespace: NamespaceId,
        page: Page,
    ) -> Result<PageOf<TokenInfo>, Error> {
        let limit = page.limit();
        let after = page
            .cursor
            .as_deref()
            .and_then(parse_token_id)
            .unwrap_or_default();
        let items = self
            .read(move |c| {
                let mut select = c.prepare(&format!(
                    "SELECT {COLUMNS} FROM tokens WHERE namespace = ?1 AND id > ?2 \
                     ORDER BY id LIMIT ?3"
                ))?;
                let asked = i64::try_from(limit + 1).unwrap_or(i64::MAX);
                select
                    .query_map(params![namespace.as_bytes(), after, asked], row)?
                    .collect::<rusqlite::Result<Vec<_>>>()
            })
            .await?;
        Ok(PageOf::cut(items, limit, |token| token_id_text(&token.id)))
    }

    /// Ends a token at once: the very next request with it is refused.
    pub(crate) async fn token_revoke(&self, namespace: NamespaceId, id: &str) -> Result<(), Error> {
        let unknown = || Error::new(Code::TokenNotFound, format!("there is no token {id:?}"));
        let bytes = parse_token_id(id).ok_or_else(unknown)?;
        let now = self.core.parts.clock.wall();
        // Out of the cache first: whatever becomes of the write, the row decides from here on.
        self.tokens.revoke(&bytes);
        let changed = self
            .write(move |c| {
                c.execute(
                    "UPDATE tokens SET revoked = coalesce(revoked, ?3) \
                     WHERE id = ?1 AND namespace = ?2",
                    params![bytes, namespace.as_bytes(), micros(now)],
                )
            })
            .await?;
        self.tokens.revoke(&bytes);
        if changed == 0 { Err(unknown()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_carry_all_their_random_bits() {
        let a = secret(TokenKind::Live, [0; 32]);
        assert_eq!(a.len(), "tl_live_".len() + 43);
        assert!(a.starts_with("tl_live_"));
        let mut seen = std::collections::HashSet::new();
        for byte in 0..32 {
            for bit in 0..8 {
                let mut random = [0; 32];
                random[byte] = 1 << bit;
                assert!(seen.insert(secret(TokenKind::Cli, random)));
            }
        }
    }

    #[test]
    fn token_ids_round_trip() {
        assert_eq!(parse_token_id(&token_id_text(&[7; 16])), Some([7; 16]));
        assert_eq!(parse_token_id("tok_zz"), None);
    }
}
