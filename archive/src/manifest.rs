//! The manifest: the root of one database's history.
