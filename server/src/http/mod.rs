//! The layer that every route passes: nothing reaches a handler that has not been through [`pipeline`].
//!
//! A [`Route`] is a row of one table; the axum router is built from that table and from nothing else, so a route
//! cannot be without a request id, a declared minimum role, a namespace check, a body limit, strict fields, or the
//! bookmark headers. In order: request id, security headers and the last resort for panics ([`edge`]); token,
//! namespace, role, database list ([`auth`]); body within its limit; Idempotency-Key; If-Match; the handler; the
//! bookmark headers.

pub(crate) mod answer;
pub(crate) mod auth;
pub(crate) mod call;
pub(crate) mod edge;
pub(crate) mod idempotency;
pub(crate) mod pipeline;
pub(crate) mod prefer;
pub(crate) mod route;
pub(crate) mod router;
pub(crate) mod staging;
pub(crate) mod streams;

pub(crate) use answer::Answer;
pub(crate) use call::Call;
pub(crate) use route::{Access, BodyKind, Route};
