//! The bounds of the HTTP surface in one place, each with what it protects.
//!
//! These are the figures of the `development` preset, the one a server runs with when nothing else is said.

use std::time::Duration;

/// What a request may cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// A JSON body. Larger: more memory a request; every body is held whole.
    pub body_bytes_max: usize,
    /// An imported file. Larger: more scratch disk a request.
    pub import_bytes_max: u64,
    /// One SQL text.
    pub sql_bytes_max: usize,
    /// Parameters of one statement.
    pub params_max: usize,
    /// Statements of one batch.
    pub batch_max: usize,
    /// Tables of one database; `None`: no bound.
    pub tables_max: Option<u32>,
    /// Rows of one result.
    pub rows_max: usize,
    /// Bytes of one result. Larger: more memory a request, about three times this.
    pub result_bytes_max: usize,
    /// How long a statement may run.
    pub query_deadline: Duration,
    /// How long a request may take to be answered; imports and exports aside. What it does goes on.
    pub request_deadline: Duration,
    /// How long a client may take to send the head of a request.
    pub head_deadline: Duration,
    /// How long a client may take to send a JSON body.
    pub body_deadline: Duration,
    /// How long an import may pause between two pieces of its file.
    pub import_pause: Duration,
    /// How long a client may read nothing of a cursor before it is let go. Longer: its transaction keeps others waiting.
    pub cursor_pause: Duration,
    /// How long a stop waits for requests that run.
    pub drain_deadline: Duration,
    /// Items of a page when the request does not say.
    pub page_default: usize,
    /// The most items of a page.
    pub page_max: usize,
    /// Connections at once. Further ones wait to be accepted.
    pub connections_max: usize,
    /// Connections of one address at once; 0: as many as there are. Further ones are closed.
    pub connections_per_peer_max: usize,
    /// Connections that one principal (a member, or a token that stands for nobody) uses at once; 0: no bound. Connections
    /// of trusted proxies are anybody's and do not count.
    pub connections_per_principal_max: usize,
    /// Bytes of large results of one tenant that its clients have not read yet, at which it is refused more; 0: no
    /// bound. Larger: more memory for those who read slowly.
    pub untaken_bytes_per_namespace: u64,
    /// Event streams of one principal at once; 0: none. Larger: more connections and tasks that last.
    pub streams_per_principal_max: usize,
    /// Requests of one principal at once; 0: no bound. Lower: a client with many threads is refused sooner.
    pub in_flight_per_principal: usize,
    /// Requests of one tenant at once; 0: no bound.
    pub in_flight_per_namespace: usize,
    /// Requests a minute of one principal; 0: no bound. A token's own rate counts beside it, or instead where it is higher.
    pub requests_per_minute_token: u32,
    /// Requests a minute of one tenant; 0: no bound.
    pub requests_per_minute_namespace: u32,
    /// Requests a minute of one principal from one address; 0: no bound.
    pub requests_per_minute_peer: u32,
    /// Refused tokens a minute from one address, before unknown ones are not looked at any more; 0: no bound.
    pub auth_failures_per_minute: u32,
    /// Statements slower than this are kept as slow queries.
    pub slow_query: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 10 << 20,
            import_bytes_max: 64 << 30,
            sql_bytes_max: 1 << 20,
            params_max: 1_000,
            batch_max: 100,
            tables_max: None,
            rows_max: 100_000,
            result_bytes_max: 64 << 20,
            query_deadline: Duration::from_secs(30),
            request_deadline: Duration::from_mins(2),
            head_deadline: Duration::from_secs(10),
            body_deadline: Duration::from_secs(30),
            import_pause: Duration::from_secs(30),
            cursor_pause: Duration::from_secs(30),
            drain_deadline: Duration::from_secs(30),
            page_default: 100,
            page_max: 500,
            connections_max: 4_096,
            connections_per_peer_max: 0,
            connections_per_principal_max: 1_024,
            untaken_bytes_per_namespace: 256 << 20,
            streams_per_principal_max: 8,
            in_flight_per_principal: 0,
            in_flight_per_namespace: 0,
            requests_per_minute_token: 0,
            requests_per_minute_namespace: 0,
            requests_per_minute_peer: 0,
            auth_failures_per_minute: 0,
            slow_query: Duration::from_secs(1),
        }
    }
}
