//! Tokens: random secrets, kept as SHA-256 alone, shown once.
//!
//! A secret is `tl_live_`, `tl_test_` or `tl_cli_` and 43 characters that carry 256 random bits. The first 11
//! characters are kept for display. The server token makes namespaces and opens no database.
//!
//! Their rows, and who may use them, are [`super::token_rows`]' business.

use sha2::{Digest as _, Sha256};
use tidelog_archive::Entropy;
use tidelog_wal::{NamespaceId, Timestamp};

use crate::request::Role;

/// Characters of a secret that are kept for recognition.
const DISPLAY_LEN: usize = 11;

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
    /// No token of this server: a signed statement of somebody it trusts (JWT).
    Signed,
}

impl TokenKind {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Test => "test",
            Self::Cli => "cli",
            Self::Signed => "signed",
        }
    }

    /// The kind of a name; signed statements are none that can be asked for.
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
    /// Requests a minute, if it has a rate of its own.
    pub rate: Option<u32>,
    /// The member it stands for; its rights end with the member's.
    pub principal: Option<String>,
}

impl NewToken {
    /// The token of an owner, or the server's without a namespace.
    pub fn owner(namespace: Option<NamespaceId>) -> Self {
        Self {
            namespace,
            kind: TokenKind::Live,
            role: Role::Owner,
            scopes: vec!["admin".to_owned()],
            databases: None,
            allow_ddl: true,
            expires_at: None,
            rate: None,
            principal: None,
        }
    }

    /// The token and its secret, with nothing stored yet.
    pub(crate) fn draw(self, entropy: &dyn Entropy, now: Timestamp) -> (TokenInfo, String) {
        let mut random = [0; 32];
        entropy.fill(&mut random);
        let secret = secret(self.kind, random);
        let info = TokenInfo {
            id: entropy.bytes16(),
            namespace: self.namespace,
            display: secret.chars().take(DISPLAY_LEN).collect(),
            kind: self.kind,
            role: self.role,
            scopes: self.scopes,
            databases: self.databases,
            allow_ddl: self.allow_ddl,
            created_at: now,
            expires_at: self.expires_at,
            revoked_at: None,
            rate: self.rate,
            principal: self.principal,
            last_used_at: None,
        };
        (info, secret)
    }
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
    /// Requests a minute, if it has a rate of its own.
    pub rate: Option<u32>,
    /// The member it stands for.
    pub principal: Option<String>,
    /// When it was last used, to the minute; kept apart and written behind.
    pub last_used_at: Option<Timestamp>,
}

/// Who a verified token is.
#[derive(Debug, Clone)]
pub struct Principal {
    /// The token.
    pub token: TokenInfo,
    /// Name of the tenant it is bound to; `None` for the server token.
    pub namespace_name: Option<String>,
}

/// SHA-256 of a secret: all that is ever stored of it.
pub(crate) fn hash(secret: &str) -> [u8; 32] {
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
