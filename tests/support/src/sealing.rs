//! Suites with encryption on and off: `TIDELOG_TEST_SEALED=1` makes every test that asks for master keys run sealed.

use std::path::{Path, PathBuf};

use tidelog_archive::seal::{MasterKey, MasterKeys};

/// The variable that gives a server process the test master key, and what it says.
pub const KEYS: (&str, &str) = (
    "TIDELOG_MASTER_KEYS",
    "k1=AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=",
);

/// Whether the suites run sealed.
pub fn sealed() -> bool {
    std::env::var_os("TIDELOG_TEST_SEALED").is_some_and(|value| value == "1")
}

/// The bytes of the test master key.
pub fn master_bytes() -> Vec<u8> {
    (1..=32).collect()
}

/// The test master key, `k1`, whatever the environment says.
///
/// # Panics
///
/// Never: the key is well formed.
pub fn sealed_masters() -> MasterKeys {
    let key = MasterKey::parse("k1", &master_bytes()).expect("32 bytes");
    MasterKeys::new(vec![key]).expect("one key")
}

/// The master keys the environment asks for: `k1`, or none.
pub fn masters() -> MasterKeys {
    if sealed() {
        sealed_masters()
    } else {
        MasterKeys::default()
    }
}

/// What a server process is told by its environment: the master keys, if the suites run sealed.
pub fn environment() -> Option<(&'static str, &'static str)> {
    sealed().then_some(KEYS)
}

/// Writes the test master key into `folder`; answers what `--master-key-file` takes, and the file.
///
/// # Panics
///
/// If it cannot be written.
pub fn master_key_file(folder: &Path) -> (String, PathBuf) {
    let path = folder.join("master.key");
    std::fs::write(&path, master_bytes()).expect("write the master key");
    (format!("k1={}", path.display()), path)
}
