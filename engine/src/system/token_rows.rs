//! Rows of tokens, who a secret belongs to, and what a member may do.
//!
//! A validated token is kept in memory for five minutes; revoking, rotating or changing a member takes it out
//! before the row changes, so that the very next request is judged by the row.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use tidelog_wal::{NamespaceId, Timestamp};

use super::requests::Record;
use super::tokens::{
    NewToken, Principal, TokenInfo, TokenKind, hash, parse_token_id, token_id_text,
};
use super::{Page, PageOf, System, id16, micros, timestamp};
use crate::error::{Code, Error};
use crate::request::Role;

/// Tokens kept in memory.
const CACHED_MAX: usize = 100_000;
/// How long a validated token is believed without its row.
const BELIEVE_MICROS: u64 = 5 * 60 * 1_000_000;
/// How exactly the last use of a token is kept.
const USE_GRAIN_MICROS: u64 = 60 * 1_000_000;

/// Tokens by hash, once read, and when tokens were used.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    inner: Mutex<Cached>,
    uses: Mutex<HashMap<[u8; 16], Use>>,
}

#[derive(Debug, Default)]
struct Cached {
    by_hash: HashMap<[u8; 32], (Principal, u64)>,
    /// Counts revocations: what was read before one is not cached after it.
    epoch: u64,
}

#[derive(Debug, Clone, Copy)]
struct Use {
    at: Timestamp,
    written: bool,
}

impl Cache {
    fn lock(&self) -> std::sync::MutexGuard<'_, Cached> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the tokens that `which` says of.
    pub(super) fn forget(&self, which: impl Fn(&TokenInfo) -> bool) {
        let mut cached = self.lock();
        cached.epoch += 1;
        cached
            .by_hash
            .retain(|_, (principal, _)| !which(&principal.token));
    }

    fn note_use(&self, id: [u8; 16], now: Timestamp) {
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        let due = uses
            .get(&id)
            .is_none_or(|last| now.micros() >= last.at.micros().saturating_add(USE_GRAIN_MICROS));
        if due && (uses.len() < CACHED_MAX || uses.contains_key(&id)) {
            let use_ = Use {
                at: now,
                written: false,
            };
            uses.insert(id, use_);
        }
    }

    /// The uses that no row tells of yet.
    pub(super) fn take_uses(&self) -> Vec<([u8; 16], Timestamp)> {
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        let new = uses.iter_mut().filter(|(_, one)| !one.written);
        new.map(|(id, one)| {
            one.written = true;
            (*id, one.at)
        })
        .collect()
    }
}

const COLUMNS: &str = "t.id, t.namespace, t.display, t.kind, t.role, t.scopes, t.databases, t.allow_ddl, \
                       t.created, t.expires, t.revoked, t.rate, t.principal, u.at";
const TABLES: &str = "tokens t LEFT JOIN token_uses u ON u.token = t.id";

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
        rate: row.get(11)?,
        principal: row.get(12)?,
        last_used_at: row.get::<_, Option<i64>>(13)?.map(timestamp),
    })
}

/// Adds the row of a token.
pub(super) fn insert(c: &Connection, info: &TokenInfo, hash: [u8; 32]) -> rusqlite::Result<()> {
    let databases = info
        .databases
        .as_ref()
        .map(|names| serde_json::Value::from(names.clone()).to_string());
    c.execute(
        "INSERT INTO tokens(id, namespace, hash, display, kind, role, scopes, databases, allow_ddl, \
         created, expires, rate, principal) VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13)",
        params![
            info.id,
            info.namespace.map(|id| *id.as_bytes()),
            hash,
            info.display,
            info.kind.as_str(),
            info.role.as_str(),
            info.scopes.join(" "),
            databases,
            info.allow_ddl,
            micros(info.created_at),
            info.expires_at.map(micros),
            info.rate,
            info.principal
        ],
    )?;
    Ok(())
}

fn unknown(id: &str) -> Error {
    Error::new(Code::TokenNotFound, format!("there is no token {id:?}"))
}

impl System {
    /// Makes a token; answers it and its secret, which nothing keeps. `record` is the answer to repeat.
    pub(crate) async fn token_create(
        &self,
        new: NewToken,
        record: impl FnOnce(&TokenInfo) -> Option<Record>,
    ) -> Result<(TokenInfo, String), Error> {
        let parts = &self.core.parts;
        let (info, secret) = new.draw(parts.entropy.as_ref(), parts.clock.wall());
        let (row, hash, record) = (info.clone(), hash(&secret), record(&info));
        self.write_recorded(record, move |c| insert(c, &row, hash))
            .await?;
        Ok((info, secret))
    }

    /// Who a secret belongs to, if it is valid now.
    pub(crate) async fn authenticate(&self, secret: &str) -> Result<Principal, Error> {
        let hash = hash(secret);
        let clock = &self.core.parts.clock;
        let fresh = clock.monotonic_micros();
        let cached = self.tokens.lock().by_hash.get(&hash).cloned();
        let principal = match cached {
            Some((principal, until)) if fresh < until => principal,
            _ => self.load(hash).await?,
        };
        if principal.token.revoked_at.is_some() {
            return Err(Error::new(Code::TokenRevoked, "the token was revoked"));
        }
        let now = clock.wall();
        if principal.token.expires_at.is_some_and(|at| at <= now) {
            return Err(Error::new(Code::TokenExpired, "the token has expired"));
        }
        self.tokens.note_use(principal.token.id, now);
        Ok(principal)
    }

    /// Whether a secret was found valid before and has not been judged anew since; costs no read.
    pub(crate) fn token_is_known(&self, secret: &str) -> bool {
        self.tokens.lock().by_hash.contains_key(&hash(secret))
    }

    async fn load(&self, hash: [u8; 32]) -> Result<Principal, Error> {
        let epoch = self.tokens.lock().epoch;
        let found = self
            .read(move |c| {
                c.query_row(
                    &format!("SELECT {COLUMNS} FROM {TABLES} WHERE t.hash = ?1"),
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
        let until = self.core.parts.clock.monotonic_micros() + BELIEVE_MICROS;
        let mut cache = self.tokens.lock();
        if cache.by_hash.len() >= CACHED_MAX {
            cache.by_hash.clear();
        }
        if cache.epoch == epoch {
            cache.by_hash.insert(hash, (principal.clone(), until));
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
        let select = format!(
            "SELECT {COLUMNS} FROM {TABLES} WHERE t.namespace = ?1 AND t.id > ?2 ORDER BY t.id LIMIT ?3"
        );
        let given = vec![namespace.as_bytes().to_vec().into(), after.to_vec().into()];
        self.page(select, given, limit, row, |token| token_id_text(&token.id))
            .await
    }

    /// A token of a namespace.
    pub(crate) async fn token(&self, namespace: NamespaceId, id: &str) -> Result<TokenInfo, Error> {
        let bytes = parse_token_id(id).ok_or_else(|| unknown(id))?;
        let found = self
            .read(move |c| {
                c.query_row(
                    &format!("SELECT {COLUMNS} FROM {TABLES} WHERE t.id = ?1 AND t.namespace = ?2"),
                    params![bytes, namespace.as_bytes()],
                    row,
                )
                .optional()
            })
            .await?;
        found.ok_or_else(|| unknown(id))
    }

    /// Ends a token at once: the very next request with it is refused.
    pub(crate) async fn token_revoke(&self, namespace: NamespaceId, id: &str) -> Result<(), Error> {
        let bytes = parse_token_id(id).ok_or_else(|| unknown(id))?;
        let now = self.core.parts.clock.wall();
        // Out of the cache first: whatever becomes of the write, the row decides from here on.
        self.tokens.forget(|token| token.id == bytes);
        let changed = self
            .write(move |c| {
                c.execute(
                    "UPDATE tokens SET revoked = coalesce(revoked, ?3) \
                     WHERE id = ?1 AND namespace = ?2",
                    params![bytes, namespace.as_bytes(), micros(now)],
                )
            })
            .await?;
        self.tokens.forget(|token| token.id == bytes);
        if changed == 0 {
            Err(unknown(id))
        } else {
            Ok(())
        }
    }

    /// Makes a successor with the rights of a token, whose own validity ends `overlap` microseconds from now,
    /// if not earlier.
    pub(crate) async fn token_rotate(
        &self,
        namespace: NamespaceId,
        id: &str,
        overlap: u64,
        record: impl FnOnce(&TokenInfo) -> Option<Record>,
    ) -> Result<(TokenInfo, String), Error> {
        let old = self.token(namespace, id).await?;
        let parts = &self.core.parts;
        let now = parts.clock.wall();
        if old.revoked_at.is_some() {
            let what = "the token was revoked; make a new one";
            return Err(Error::new(Code::TokenRevoked, what));
        }
        if old.expires_at.is_some_and(|at| at <= now) {
            let what = "the token has expired; make a new one";
            return Err(Error::new(Code::TokenExpired, what));
        }
        let new = NewToken {
            namespace: old.namespace,
            kind: old.kind,
            role: old.role,
            scopes: old.scopes,
            databases: old.databases,
            allow_ddl: old.allow_ddl,
            expires_at: old.expires_at,
            rate: old.rate,
            principal: old.principal,
        };
        let (info, secret) = new.draw(parts.entropy.as_ref(), now);
        let (row, hash, record) = (info.clone(), hash(&secret), record(&info));
        let until = micros(Timestamp::from_micros(now.micros().saturating_add(overlap)));
        self.tokens.forget(|token| token.id == old.id);
        self.write_recorded(record, move |c| {
            c.execute(
                "UPDATE tokens SET expires = min(coalesce(expires, ?2), ?2) WHERE id = ?1",
                params![old.id, until],
            )?;
            insert(c, &row, hash)
        })
        .await?;
        self.tokens.forget(|token| token.id == old.id);
        Ok((info, secret))
    }

    /// Ends every token of a member, and every signed statement about them made before now.
    pub(crate) async fn revoke_principal(
        &self,
        namespace: NamespaceId,
        principal: &str,
        record: Option<Record>,
    ) -> Result<usize, Error> {
        let now = self.core.parts.clock.wall();
        let whose = principal.to_owned();
        let theirs = |token: &TokenInfo| {
            token.namespace == Some(namespace) && token.principal.as_deref() == Some(principal)
        };
        self.tokens.forget(theirs);
        self.members.forget(namespace, principal);
        let revoked = self
            .write_recorded(record, move |c| {
                c.execute(
                    "INSERT INTO revoked_principals(namespace, principal, at) VALUES(?1, ?2, ?3) \
                     ON CONFLICT(namespace, principal) DO UPDATE SET at = excluded.at",
                    params![namespace.as_bytes(), whose, micros(now)],
                )?;
                c.execute(
                    "UPDATE tokens SET revoked = ?3 \
                     WHERE namespace = ?1 AND principal = ?2 AND revoked IS NULL",
                    params![namespace.as_bytes(), whose, micros(now)],
                )
            })
            .await?;
        self.tokens.forget(theirs);
        self.members.forget(namespace, principal);
        Ok(revoked)
    }

    /// Who a signed statement speaks of: `principal` of the namespace of that name, as a member of it.
    ///
    /// `issued` is when it was made; one from before the member's tokens were revoked counts no more.
    pub(crate) async fn vouched(
        &self,
        namespace: &str,
        principal: &str,
        issued: Option<Timestamp>,
        expires_at: Timestamp,
    ) -> Result<Principal, Error> {
        let refused = || {
            let what = "the signed token names no member of a namespace of this server";
            Error::new(Code::Unauthenticated, what)
        };
        let found = self.namespace_by_name(namespace).await.map_err(|error| {
            if error.code() == Code::NamespaceNotFound {
                refused()
            } else {
                error
            }
        })?;
        let member = self.member(found.id, principal).await?;
        let member = member.ok_or_else(refused)?;
        if member
            .revoked_before
            .is_some_and(|at| issued.is_none_or(|issued| issued <= at))
        {
            let what = "every token of this member made so far was revoked";
            return Err(Error::new(Code::TokenRevoked, what));
        }
        let digest = hash(&format!("{namespace}\u{0}{principal}"));
        let (id, _) = digest.split_first_chunk::<16>().ok_or_else(refused)?;
        let token = TokenInfo {
            id: *id,
            namespace: Some(found.id),
            display: String::new(),
            kind: TokenKind::Signed,
            role: Role::Owner,
            scopes: Vec::new(),
            databases: None,
            allow_ddl: true,
            created_at: issued.unwrap_or(Timestamp::ZERO),
            expires_at: Some(expires_at),
            revoked_at: None,
            rate: None,
            principal: Some(principal.to_owned()),
            last_used_at: None,
        };
        Ok(Principal {
            token,
            namespace_name: Some(found.name),
        })
    }

    /// Counts what may end or lessen a right: while it stays, whoever was let in may stay.
    pub(crate) fn rights_epoch(&self) -> u64 {
        self.tokens.lock().epoch + self.members.epoch()
    }

    /// Judges a caller anew who was let in a while ago: what they may do in a database now.
    pub(crate) async fn judge_again(
        &self,
        principal: &Principal,
        database: Option<&str>,
    ) -> Result<Role, Error> {
        let token = &principal.token;
        let now = self.core.parts.clock.wall();
        let expired = |at: Option<Timestamp>| at.is_some_and(|at| at <= now);
        let revoked = || Error::new(Code::TokenRevoked, "the token was revoked");
        let mut ends = token.expires_at;
        match (token.kind, token.namespace, &token.principal) {
            (TokenKind::Signed, Some(namespace), Some(name)) => {
                let member = self.member(namespace, name).await?;
                let before = member.and_then(|member| member.revoked_before);
                if before.is_some_and(|at| token.created_at <= at) {
                    return Err(revoked());
                }
            }
            (_, Some(namespace), _) => {
                let row = self.token(namespace, &token_id_text(&token.id)).await?;
                if row.revoked_at.is_some() {
                    return Err(revoked());
                }
                ends = row.expires_at;
            }
            _ => {}
        }
        if expired(ends) {
            return Err(Error::new(Code::TokenExpired, "the token has expired"));
        }
        self.role_of(principal, database).await
    }

    /// What a caller may do, in a database if one is named: the token's role, and no more than the member's
    /// whose token it is.
    pub(crate) async fn role_of(
        &self,
        principal: &Principal,
        database: Option<&str>,
    ) -> Result<Role, Error> {
        let token = &principal.token;
        let (Some(namespace), Some(name)) = (token.namespace, &token.principal) else {
            return Ok(token.role);
        };
        let Some(member) = self.member(namespace, name).await? else {
            let what = "the token stands for somebody who is no member any more";
            return Err(Error::new(Code::InsufficientPermissions, what).with("required", "member"));
        };
        let role = database.and_then(|name| member.databases.get(name).copied());
        Ok(role.unwrap_or(member.role).min(token.role))
    }
}
