//! Test support of Tidelog: what several crates' tests and benches share.
//!
//! Nothing here is product code: the four crates name it in their dev-dependencies only.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`buckets`] | buckets that keep versions, with Object Lock, with policies, and users of few rights |
//! | [`counting`] | a client whose rows say whether any is missing |
//! | [`faultstore`] | an object store that fails before, after, or with the effect coming late |
//! | [`proxy`], [`s3`] | a fault proxy for S3 and the S3 servers of a run |
//! | [`oltp`] | the OLTP mix of the benches, that of the Litestream baseline |
//! | [`history`] | random SQL workloads, each step a one-line reproduction |
//! | [`oracle`] | the shadow of every state of a database, from its deltas alone |
//! | [`recorder`] | follows a live plain SQLite database and says what each commit changed |
//! | [`server`] | the real binary as a process |
//! | [`sim`] | a clock that is stepped and chance that is seeded |

pub mod buckets;
pub mod counting;
pub mod faultstore;
pub mod history;
pub mod oltp;
pub mod oracle;
pub mod proxy;
pub mod recorder;
pub mod s3;
pub mod sealing;
pub mod server;
pub mod sim;
