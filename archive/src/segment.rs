//! Segments: a contiguous run of commit records of one database.
