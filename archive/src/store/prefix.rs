//! Keys as callers see them, relative to one bucket prefix, and the full paths behind them.
//!
//! A key is one or more segments joined by `/`; a segment is not empty, does not begin with a dot, and
//! consists of ASCII letters, digits, `.`, `_`, `-`, `=`. So a key means the same on every kind of store,
//! needs no encoding, and cannot leave the prefix. A key is never the folder of another key.

use object_store::path::Path;

use super::StoreError;

/// Longest key relative to the prefix; S3 allows 1,024 bytes in all.
const KEY_LEN_MAX: usize = 768;

/// The part of a bucket that one [`Store`](super::Store) owns.
#[derive(Debug, Clone, Default)]
pub(crate) struct Prefix {
    root: Path,
}

fn segment_is_valid(segment: &str) -> bool {
    !segment.is_empty()
        && !segment.starts_with('.')
        && segment
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'='))
}

fn parse(what: &'static str, text: &str) -> Result<Path, StoreError> {
    let invalid = || StoreError::Invalid {
        what,
        detail: text.chars().take(KEY_LEN_MAX).collect(),
    };
    if text.len() > KEY_LEN_MAX || !text.split('/').all(segment_is_valid) {
        return Err(invalid());
    }
    Path::parse(text).map_err(|_| invalid())
}

impl Prefix {
    /// The prefix `text`; empty is the whole bucket. Slashes at its ends do not matter.
    pub(crate) fn new(text: &str) -> Result<Self, StoreError> {
        let text = text.trim_matches('/');
        let root = if text.is_empty() {
            Path::ROOT
        } else {
            parse("malformed store prefix", text)?
        };
        Ok(Self { root })
    }

    /// The full path of `key`.
    pub(crate) fn path(&self, key: &str) -> Result<Path, StoreError> {
        let path = parse("malformed key", key)?;
        if self.root.is_root() {
            return Ok(path);
        }
        Path::parse(format!("{}/{key}", self.root)).map_err(|_| StoreError::Invalid {
            what: "malformed key",
            detail: key.to_owned(),
        })
    }

    /// The full path of a folder; empty is everything.
    pub(crate) fn folder(&self, prefix: &str) -> Result<Path, StoreError> {
        let trimmed = prefix.trim_end_matches('/');
        if trimmed.is_empty() {
            Ok(self.root.clone())
        } else {
            self.path(trimmed)
        }
    }

    /// The key of a full path, or `None` if it is not below the prefix.
    pub(crate) fn key(&self, path: &Path) -> Option<String> {
        let full: &str = path.as_ref();
        if self.root.is_root() {
            return Some(full.to_owned());
        }
        let root: &str = self.root.as_ref();
        Some(full.strip_prefix(root)?.strip_prefix('/')?.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_paths_are_inverse() {
        for root in ["", "a", "/a/b/"] {
            let prefix = Prefix::new(root).unwrap();
            let path = prefix.path("journal/0000001a/state").unwrap();
            assert_eq!(prefix.key(&path).as_deref(), Some("journal/0000001a/state"));
        }
    }

    #[test]
    fn keys_that_leave_the_prefix_or_need_encoding_are_refused() {
        let prefix = Prefix::new("a").unwrap();
        let long = "k".repeat(KEY_LEN_MAX + 1);
        for key in [
            "",
            "/",
            "a//b",
            "../b",
            "a/..",
            ".tidelog/x",
            "a b",
            "a#1",
            "a%2f",
            "\u{e9}",
            &long,
        ] {
            assert!(prefix.path(key).is_err(), "{key:?} must be refused");
        }
        assert!(Prefix::new("a/../b").is_err());
    }

    #[test]
    fn a_path_of_another_prefix_has_no_key() {
        let prefix = Prefix::new("a").unwrap();
        assert_eq!(prefix.key(&Path::parse("ab/c").unwrap()), None);
        assert_eq!(prefix.key(&Path::parse("b/c").unwrap()), None);
    }
}
