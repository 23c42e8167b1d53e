//! The server and command line of Tidelog: HTTP and a terminal over `tidelog-engine`, and nothing more.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`app`], [`settings`], [`config`] | what handlers share; the bounds of a request; where they come from |
//! | [`first`] | the first start: a namespace and token files |
//! | [`serve`], [`tls`] | accepting, bounding, stopping; certificates |
//! | [`telemetry`] | traces over OTLP |
//! | `http` | the layer that no route can miss, and the router it builds |
//! | `routes` | the route table and its handlers |
//! | [`openapi`] | the OpenAPI document, built from that table |
//! | [`problem`] | RFC 9457 documents and the table of codes |
//! | [`fields`], [`values`], [`time`] | strict reading of requests; SQL values and times as JSON |
//! | [`cli`] | the commands of the binary `tidelog` |
//!
//! It names neither SQLite's library nor an object store: both are the engine's business.
#![forbid(unsafe_code)]

pub mod app;
pub mod cli;
pub mod config;
pub mod fields;
pub mod first;
mod guards;
mod hrana;
mod http;
mod metrics;
pub mod openapi;
pub mod problem;
mod redact;
mod routes;
pub mod serve;
pub mod settings;
pub mod telemetry;
pub mod time;
pub mod tls;
pub mod values;

pub use http::router::router;
pub use routes::{Served, hrana_surface, surface};
