//! The server and command line of Tidelog.
#![forbid(unsafe_code)]
fn main() {}
