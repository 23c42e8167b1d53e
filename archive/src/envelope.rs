//! The header and trailer of every stored object.
