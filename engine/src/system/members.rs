//! Members of a namespace: a name that tokens and signed statements stand for, with a role, and other roles in
//! some databases.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use rusqlite::{OptionalExtension as _, Row, params};
use tidelog_wal::{NamespaceId, Timestamp};

use super::{Page, PageOf, System, micros, timestamp};
use crate::error::{Code, Error};
use crate::request::Role;

/// The longest name of a member.
const PRINCIPAL_BYTES_MAX: usize = 200;
/// Members kept in memory.
const CACHED_MAX: usize = 100_000;

/// A member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The name: whatever tokens and signed statements call them.
    pub principal: String,
    /// The role in the namespace.
    pub role: Role,
    /// Other roles in some databases, higher or lower.
    pub databases: BTreeMap<String, Role>,
    /// When they became one.
    pub created_at: Timestamp,
    /// When the role was last changed.
    pub changed_at: Timestamp,
    /// Signed statements made until then count no more.
    pub revoked_before: Option<Timestamp>,
}

/// Members by namespace and name, once read.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    inner: Mutex<Cached>,
}

#[derive(Debug, Default)]
struct Cached {
    members: HashMap<(NamespaceId, String), Option<Member>>,
    /// Counts changes: what was read before one is not cached after it.
    epoch: u64,
}

impl Cache {
    fn lock(&self) -> std::sync::MutexGuard<'_, Cached> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn forget(&self, namespace: NamespaceId, principal: &str) {
        let mut cached = self.lock();
        cached.epoch += 1;
        cached.members.remove(&(namespace, principal.to_owned()));
    }

    pub(super) fn epoch(&self) -> u64 {
        self.lock().epoch
    }

    pub(super) fn forget_all_of(&self, namespace: NamespaceId) {
        let mut cached = self.lock();
        cached.epoch += 1;
        cached.members.retain(|(of, _), _| *of != namespace);
    }
}

const SELECT: &str = "SELECT m.principal, m.role, m.databases, m.created, m.changed, r.at FROM members m \
                      LEFT JOIN revoked_principals r \
                      ON r.namespace = m.namespace AND r.principal = m.principal";

fn row(row: &Row<'_>) -> rusqlite::Result<Member> {
    let bad = || rusqlite::Error::InvalidQuery;
    let databases: BTreeMap<String, String> =
        serde_json::from_str(&row.get::<_, String>(2)?).map_err(|_| bad())?;
    let databases = databases
        .into_iter()
        .map(|(name, role)| Some((name, Role::parse(&role)?)))
        .collect::<Option<_>>();
    Ok(Member {
        principal: row.get(0)?,
        role: Role::parse(&row.get::<_, String>(1)?).ok_or_else(bad)?,
        databases: databases.ok_or_else(bad)?,
        created_at: timestamp(row.get(3)?),
        changed_at: timestamp(row.get(4)?),
        revoked_before: row.get::<_, Option<i64>>(5)?.map(timestamp),
    })
}

/// Refuses what no member can be called.
pub fn check_principal(principal: &str) -> Result<(), Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-@+:|".contains(c);
    if (1..=PRINCIPAL_BYTES_MAX).contains(&principal.len()) && principal.chars().all(plain) {
        return Ok(());
    }
    let what = format!(
        "the name of a member has 1 to {PRINCIPAL_BYTES_MAX} letters, digits or characters of `._-@+:|`"
    );
    Err(Error::new(Code::NameInvalid, what))
}

impl System {
    /// A member, if there is one of that name.
    pub(crate) async fn member(
        &self,
        namespace: NamespaceId,
        principal: &str,
    ) -> Result<Option<Member>, Error> {
        let key = (namespace, principal.to_owned());
        let epoch = {
            let cached = self.members.lock();
            if let Some(member) = cached.members.get(&key) {
                return Ok(member.clone());
            }
            cached.epoch
        };
        let name = principal.to_owned();
        let found = self
            .read(move |c| {
                let sql = format!("{SELECT} WHERE m.namespace = ?1 AND m.principal = ?2");
                c.query_row(&sql, params![namespace.as_bytes(), name], row)
                    .optional()
            })
            .await?;
        let mut cached = self.members.lock();
        if cached.members.len() >= CACHED_MAX {
            cached.members.clear();
        }
        if cached.epoch == epoch {
            cached.members.insert(key, found.clone());
        }
        Ok(found)
    }

    /// The members of a namespace, by name.
    pub(crate) async fn member_list(
        &self,
        namespace: NamespaceId,
        page: Page,
    ) -> Result<PageOf<Member>, Error> {
        let limit = page.limit();
        let after = page.cursor.unwrap_or_default();
        let select = format!(
            "{SELECT} WHERE m.namespace = ?1 AND m.principal > ?2 ORDER BY m.principal LIMIT ?3"
        );
        let given = vec![namespace.as_bytes().to_vec().into(), after.into()];
        self.page(select, given, limit, row, |member| member.principal.clone())
            .await
    }

    /// Makes a member or changes their roles, effective with the next request.
    pub(crate) async fn member_put(
        &self,
        namespace: NamespaceId,
        principal: &str,
        role: Role,
        databases: BTreeMap<String, Role>,
    ) -> Result<Member, Error> {
        check_principal(principal)?;
        let now = self.core.parts.clock.wall();
        let name = principal.to_owned();
        let texts: BTreeMap<&str, &str> = databases
            .iter()
            .map(|(name, role)| (name.as_str(), role.as_str()))
            .collect();
        let texts = serde_json::to_string(&texts)
            .map_err(|error| Error::internal("store a member").caused_by(error))?;
        self.members.forget(namespace, principal);
        self.write(move |c| {
            c.execute(
                "INSERT INTO members(namespace, principal, role, databases, created, changed) \
                 VALUES(?1, ?2, ?3, ?4, ?5, ?5) ON CONFLICT(namespace, principal) \
                 DO UPDATE SET role = ?3, databases = ?4, changed = ?5",
                params![
                    namespace.as_bytes(),
                    name,
                    role.as_str(),
                    texts,
                    micros(now)
                ],
            )
        })
        .await?;
        self.members.forget(namespace, principal);
        let member = self.member(namespace, principal).await?;
        member.ok_or_else(|| Error::internal("a member that was just written is not there"))
    }

    /// Ends a membership; answers whether there was one.
    pub(crate) async fn member_delete(
        &self,
        namespace: NamespaceId,
        principal: &str,
    ) -> Result<bool, Error> {
        let name = principal.to_owned();
        self.members.forget(namespace, principal);
        let changed = self
            .write(move |c| {
                c.execute(
                    "DELETE FROM members WHERE namespace = ?1 AND principal = ?2",
                    params![namespace.as_bytes(), name],
                )
            })
            .await?;
        self.members.forget(namespace, principal);
        Ok(changed != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_members_are_plain_text() {
        for good in ["ana@example.org", "auth0|5f7c", "svc:billing", "a"] {
            assert!(check_principal(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "a/b", "a\n", "\u{e9}", &"x".repeat(201)] {
            assert!(check_principal(bad).is_err(), "{bad:?}");
        }
    }
}
