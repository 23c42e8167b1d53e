//! Rules that tests switch off, to see that each of them prevents something.
//!
//! Without the feature `crash-points` a rule always holds and costs nothing. With it, a test switches one off for
//! the whole process while it holds a guard: what the rule prevents must then happen, or the rule, or its test, is
//! worth nothing.

/// Every rule that can be switched off: those of a change by raw pages (DESIGN 5.7).
#[cfg(feature = "crash-points")]
pub const RULES: &[&str] = &[
    "rewind.defensive_off",
    "rewind.no_vacuum",
    "rewind.grown_pages",
    "rewind.truncation_alone",
    "rewind.present_cookie",
    "rewind.cookie_moves_on",
    "rewind.cookie_is_new",
    "rewind.base_proven",
    "rewind.state_proven",
    "rewind.sound_source",
    "rewind.true_records",
    "rewind.whole_log",
    "rewind.sound_handle",
    "rewind.history_decides",
];

/// Whether a rule holds: always, but in tests that switch it off.
#[cfg(feature = "crash-points")]
macro_rules! rule {
    ($name:literal) => {
        $crate::rules::holds($name)
    };
}
#[cfg(not(feature = "crash-points"))]
macro_rules! rule {
    ($name:literal) => {
        true
    };
}
pub(crate) use rule;

#[cfg(feature = "crash-points")]
pub use switched::{Off, switch_off};

#[cfg(feature = "crash-points")]
pub(crate) use switched::holds;

#[cfg(feature = "crash-points")]
mod switched {
    use std::sync::{Mutex, MutexGuard, PoisonError};

    static OFF: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());

    fn off() -> MutexGuard<'static, Vec<&'static str>> {
        OFF.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn holds(name: &'static str) -> bool {
        debug_assert!(super::RULES.contains(&name), "{name} is not listed");
        !off().contains(&name)
    }

    /// While this lives, rules do not hold.
    #[derive(Debug)]
    #[must_use = "the rules hold again when this is dropped"]
    pub struct Off(&'static [&'static str]);

    /// Switches rules off in this process. One test at a time: they are everybody's.
    ///
    /// # Panics
    /// If one of them is not a rule.
    pub fn switch_off(names: &'static [&'static str]) -> Off {
        for name in names {
            assert!(super::RULES.contains(name), "{name} is not a rule");
        }
        off().extend(names);
        Off(names)
    }

    impl Drop for Off {
        fn drop(&mut self) {
            off().retain(|name| !self.0.contains(name));
        }
    }
}
