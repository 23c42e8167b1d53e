//! Keeping secrets out of what is written down: names that may hold one, and SQL without its literals.

/// What stands in the place of a secret.
pub(crate) const MASK: &str = "[REDACTED]";

/// Parts of a name that make its value a secret.
const SECRET_NAMES: [&str; 14] = [
    "password",
    "passwd",
    "secret",
    "token",
    "key",
    "ssn",
    "socialsecurity",
    "creditcard",
    "cardnumber",
    "cvv",
    "cvc",
    "pin",
    "accountnumber",
    "credential",
];

/// Whether a value of that name is to be masked.
pub(crate) fn is_secret_name(name: &str) -> bool {
    let plain: String = name
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|c| c.to_ascii_lowercase())
        .collect();
    // `pin` is part of too many words to be looked for inside them.
    SECRET_NAMES.iter().any(|secret| match *secret {
        "pin" => plain == "pin" || plain.ends_with("pincode"),
        secret => plain.contains(secret),
    })
}

/// The longest SQL that is kept of a slow query.
pub(crate) const SQL_BYTES_MAX: usize = 1_500;

/// An SQL text with every literal and comment taken out, cut to [`SQL_BYTES_MAX`].
///
/// What it does not understand it leaves out to the end: a text that SQLite refused may be anything.
pub(crate) fn sql_shape(sql: &str) -> String {
    let mut out = String::new();
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        if out.len() >= SQL_BYTES_MAX {
            break;
        }
        let taken = match first {
            'x' | 'X' if rest[1..].starts_with('\'') && !ends_in_word(&out) => {
                literal(rest, &mut out)
            }
            // A quoted name, or, where no such name is, a text: SQLite cannot be asked here.
            '\'' | '"' | '`' => literal(rest, &mut out),
            '[' => rest
                .find(']')
                .map_or(rest.len(), |end| end + 1)
                .tap(|_| out.push('?')),
            '-' if rest.starts_with("--") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            c if c.is_ascii_digit() && !ends_in_word(&out) => {
                out.push('?');
                rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '.' && c != '_')
                    .unwrap_or(rest.len())
            }
            c => {
                out.push(c);
                c.len_utf8()
            }
        };
        rest = rest.get(taken..).unwrap_or_default();
    }
    let mut end = out.len().min(SQL_BYTES_MAX);
    while !out.is_char_boundary(end) {
        end -= 1;
    }
    out.truncate(end);
    out.split_whitespace().collect::<Vec<_>>().join(" ")
}

trait Tap: Sized {
    fn tap(self, with: impl FnOnce(&Self)) -> Self {
        with(&self);
        self
    }
}

impl Tap for usize {}

fn ends_in_word(out: &str) -> bool {
    out.ends_with(|c: char| c.is_alphanumeric() || "_:@$?".contains(c))
}

/// Takes a quoted text, doubled quotes inside; the rest if it does not end.
fn literal(rest: &str, out: &mut String) -> usize {
    out.push('?');
    let start = rest.find(['\'', '"', '`']).unwrap_or(0);
    let quote = rest.as_bytes().get(start).copied().unwrap_or(b'\'');
    let bytes = rest.as_bytes();
    let mut at = start + 1;
    while let Some(byte) = bytes.get(at) {
        if *byte == quote {
            if bytes.get(at + 1) != Some(&quote) {
                return at + 1;
            }
            at += 1;
        }
        at += 1;
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_literal_is_left_in_a_shape() {
        for (sql, shape) in [
            (
                "select * from t where a = 'it''s' and b=12.5e3",
                "select * from t where a = ? and b=?",
            ),
            (
                "insert into t1 values(x'00ff', 0x1F, ?1, :n2)",
                "insert into t1 values(?, ?, ?1, :n2)",
            ),
            (
                "select \"planted\", [planted], `planted` -- planted\nfrom t",
                "select ?, ?, ? from t",
            ),
            ("select /* planted */ 1", "select ?"),
            ("select 'planted", "select ?"),
            ("select 'x' 'planted'", "select ? ?"),
        ] {
            assert_eq!(sql_shape(sql), shape);
        }
        assert!(sql_shape(&"\u{e9} ".repeat(5_000)).len() <= SQL_BYTES_MAX);
    }

    #[test]
    fn names_of_secrets_are_known_in_every_spelling() {
        for name in [
            "password",
            "API_KEY",
            "client-secret",
            "access_token",
            "credit card",
            "CVV",
            "pin",
            "ssn",
        ] {
            assert!(is_secret_name(name), "{name}");
        }
        for name in [
            "region",
            "endpoint",
            "path_style",
            "pinned",
            "shipping",
            "bucket",
        ] {
            assert!(!is_secret_name(name), "{name}");
        }
    }
}
