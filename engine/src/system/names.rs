//! Names of namespaces and databases: `[a-z0-9][a-z0-9_-]{0,62}`, checked before anything is built from one.

use crate::error::{Code, Error};

/// Names that would collide with a path of the HTTP surface.
const RESERVED: [&str; 13] = [
    "v1",
    "v2",
    "v3",
    "v3-protobuf",
    "dev",
    "admin",
    "health",
    "healthz",
    "readyz",
    "metrics",
    "openapi.json",
    "docs",
    "console",
];

/// The longest name.
const NAME_LEN_MAX: usize = 63;

/// Refuses what is not a name, saying which rule it breaks.
pub fn check_name(what: &str, name: &str) -> Result<(), Error> {
    let refuse = |why: String| Err(Error::new(Code::NameInvalid, format!("{what} name {why}")));
    if name.is_empty() || name.len() > NAME_LEN_MAX {
        return refuse(format!("must have 1 to {NAME_LEN_MAX} characters"));
    }
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !name.starts_with(plain) {
        return refuse("must begin with a lower-case letter or a digit".to_owned());
    }
    if !name.chars().all(|c| plain(c) || c == '_' || c == '-') {
        return refuse("may hold lower-case letters, digits, `_` and `-` alone".to_owned());
    }
    if RESERVED.contains(&name) || name == "assets" {
        return refuse(format!("{name:?} is reserved"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_place_are_refused() {
        for bad in [
            "", "A", "a/b", "..", ".", "-a", "_a", "a b", "a\0", "\u{e9}", "v1", "assets",
        ] {
            assert!(check_name("database", bad).is_err(), "{bad:?}");
        }
        assert!(check_name("database", &"a".repeat(64)).is_err());
        for good in ["a", "0", "orders", "a-b_c", &"a".repeat(63)] {
            assert!(check_name("database", good).is_ok(), "{good:?}");
        }
    }
}
