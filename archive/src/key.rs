//! The names of stored objects.
