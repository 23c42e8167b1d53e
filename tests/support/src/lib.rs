//! Test support of Tidelog: a fault store, a fault proxy for S3 and the S3 servers of a run.
//!
//! Nothing here is product code: the four crates name it in their dev-dependencies only.

pub mod faultstore;
pub mod proxy;
pub mod s3;
