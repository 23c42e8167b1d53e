//! The root object of a bucket prefix.
