//! SQL over HTTP as the clients of libSQL and Turso speak it: Hrana 2 and 3 with JSON (docs/compatibility.md).
//!
//! | module | what it does |
//! | --- | --- |
//! | [`wire`] | the JSON of requests and results |
//! | [`baton`] | names a stream towards its client, bound to tenant, database and principal by a MAC |
//! | [`table`] | the streams that clients hold, with the texts they stored |
//! | [`errors`] | failures as these clients know them |
//! | [`cursor`] | results as lines, as fast as the client reads |
//! | [`account`] | what a request came to, for insights, slow log and audit log |
//!
//! What runs is the engine's: a request that needs no stream takes the path of `/query`, everything else a stream
//! of the engine. Limits, roles, rates, audit and insights are those of every other route.

pub(crate) mod account;
pub(crate) mod baton;
pub(crate) mod cursor;
pub(crate) mod errors;
pub(crate) mod place;
pub(crate) mod table;
pub(crate) mod wire;
