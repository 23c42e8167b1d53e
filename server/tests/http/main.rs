//! The HTTP surface over a real listener: a server in this process, requests from outside of it.

mod deletion;
mod forks;
mod keys;
mod restores;
mod rules;
mod snapshots;
mod sql;
mod tenants;
mod watch;
mod world;
