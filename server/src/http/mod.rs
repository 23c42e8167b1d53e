//! The layer that every route passes: nothing reaches a handler that has not been through [`pipeline`].
//!
//! A [`Route`] is a row of one table; the axum router is built from that table and from nothing else, so a route
//! cannot be without a request id, a declared minimum role, a namespace check, a body limit, strict fields, or the
//! bookmark headers. In order: request id, security headers, CORS and the last resort for panics ([`edge`]); token,
//! namespace, role, database list ([`auth`]); rates and requests at once ([`rates`]); maintenance; If-Match; body
//! within its limit; Idempotency-Key; the audit line of what takes something away; the handler; the bookmark
//! headers; the audit line of the outcome ([`audit`]).

pub(crate) mod answer;
pub(crate) mod audit;
pub(crate) mod auth;
pub(crate) mod call;
pub(crate) mod caller;
pub(crate) mod cors;
pub(crate) mod edge;
pub(crate) mod idempotency;
pub(crate) mod linger;
pub(crate) mod peer;
pub(crate) mod pipeline;
pub(crate) mod prefer;
pub(crate) mod rates;
pub(crate) mod route;
pub(crate) mod router;
pub(crate) mod rows;
pub(crate) mod signed;
pub(crate) mod staging;
pub(crate) mod streams;
pub(crate) mod uses;

pub(crate) use answer::Answer;
pub(crate) use call::Call;
pub(crate) use route::{Access, BodyKind, Route};
