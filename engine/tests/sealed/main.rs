//! Encryption through the engine: nothing shows in bucket, journal and spools; keys are needed, rotated, lost and
//! destroyed, and each behaves as said.
//!
//! These tests bring their own master keys; `TIDELOG_TEST_SEALED=1` runs the other suites of a whole node with encryption on.
//!
//! | module | what it proves |
//! | --- | --- |
//! | [`hidden`] | nothing planted shows |
//! | [`starts`] | a node needs its keys, and opens everything with them |
//! | [`keys`] | rotation, damage and loss of keys |
//! | [`archives`] | archives are sealed, too |
//! | [`purges`] | what was purged is noise |
//! | [`world`] | what they share |

mod archives;
mod hidden;
mod keys;
mod purges;
#[path = "../rig/mod.rs"]
mod rig;
mod starts;
mod world;
