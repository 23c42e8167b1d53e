//! Statements of the engine itself that are kept prepared beside the tenant's, and how the two never mix.
//!
//! A connection has one cache of prepared statements, found by text. A cached statement is not judged again, so a
//! tenant that sends the very text of one of the engine's would run it with the engine's rights. Every text here
//! therefore begins with [`MARK`], and [`tenant_text`] takes that from whatever a tenant sends.

/// What the engine's texts begin with, and no tenant's.
const MARK: &str = "/*tidelog*/";

pub(crate) const BEGIN: &str = "/*tidelog*/BEGIN";
pub(crate) const BEGIN_IMMEDIATE: &str = "/*tidelog*/BEGIN IMMEDIATE";
pub(crate) const COMMIT: &str = "/*tidelog*/COMMIT";
/// Guards one statement of a client's transaction.
pub(crate) const GUARD: &str = "/*tidelog*/SAVEPOINT _tidelog_guard";
pub(crate) const GUARD_KEPT: &str = "/*tidelog*/RELEASE _tidelog_guard";
pub(crate) const GUARD_UNDONE: &str = "/*tidelog*/ROLLBACK TO _tidelog_guard";
/// Bounds what TEMP objects take of the disk.
pub(crate) const TEMP_PAGES: &str = "/*tidelog*/PRAGMA temp.max_page_count=16384";
/// Reads the schema cookie.
pub(crate) const TOUCH: &str = "/*tidelog*/SELECT 1 FROM main.sqlite_schema LIMIT 1";
pub(crate) const FIND_REQUEST: &str = "/*tidelog*/SELECT fingerprint, answer FROM _tidelog_requests \
     WHERE key = ?1 AND database = ?2 AND at >= ?3";
pub(crate) const PRUNE_REQUESTS: &str =
    "/*tidelog*/DELETE FROM _tidelog_requests WHERE at < ?1 OR database <> ?2";
pub(crate) const STORE_REQUEST: &str =
    "/*tidelog*/INSERT OR REPLACE INTO _tidelog_requests VALUES(?1, ?2, ?3, ?4, ?5)";
pub(crate) const SCHEMA_VERSION: &str = "/*tidelog*/PRAGMA main.schema_version";
pub(crate) const COUNT_TABLES: &str = "/*tidelog*/SELECT count(*) FROM main.sqlite_schema WHERE type = 'table' \
     AND name NOT LIKE '\\_tidelog\\_%' ESCAPE '\\' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'";

/// Sets the most pages that the database may have.
pub(crate) fn max_page_count(pages: u64) -> String {
    format!("{MARK}PRAGMA main.max_page_count={pages}")
}

/// A tenant's text as it is prepared: the same statement, under a name that is none of the engine's. The cache
/// trims its names, so blanks before the mark count as nothing.
pub(crate) fn tenant_text(sql: &str) -> &str {
    let mut text = sql.trim();
    while let Some(rest) = text.strip_prefix(MARK) {
        text = rest.trim();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_of_a_tenant_is_one_of_the_engines() {
        for own in [
            BEGIN,
            BEGIN_IMMEDIATE,
            COMMIT,
            GUARD,
            GUARD_KEPT,
            GUARD_UNDONE,
            TEMP_PAGES,
            TOUCH,
            FIND_REQUEST,
            PRUNE_REQUESTS,
            STORE_REQUEST,
            SCHEMA_VERSION,
            COUNT_TABLES,
            &max_page_count(7),
        ] {
            assert!(own.starts_with(MARK));
            for text in [own.to_owned(), format!("\u{2003} {MARK} {own} ")] {
                assert!(!tenant_text(&text).starts_with(MARK), "{text}");
            }
        }
        assert_eq!(tenant_text(" select 1; "), "select 1;");
    }
}
