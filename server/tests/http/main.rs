//! The HTTP surface over a real listener: a server in this process, requests from outside of it.

mod archives;
mod contract;
mod credentials;
mod deletion;
mod edge;
mod forks;
mod hrana;
mod keys;
mod limits;
mod namespaces;
mod neighbours;
mod operator;
mod records;
mod restores;
mod roles;
mod rules;
mod signed;
mod slow;
mod snapshots;
mod sql;
mod tenants;
mod tls;
mod verifications;
mod watch;
mod world;
