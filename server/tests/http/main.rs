//! The HTTP surface over a real listener: a server in this process, requests from outside of it.

mod rules;
mod sql;
mod tenants;
mod world;
