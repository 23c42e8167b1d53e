//! What the layer remembers between requests: keys that run, rates, who failed, what it has counted.

use std::sync::Arc;

use crate::http::idempotency::Running;
use crate::http::rates::{InFlight, Rates};
use crate::http::rows::Answers;
use crate::http::uses::Uses;
use crate::metrics::HttpMeters;

/// Everything of the kind.
#[derive(Debug, Default)]
pub(crate) struct Guards {
    /// Idempotency-Keys whose first call still runs.
    pub(crate) running: Arc<Running>,
    /// Requests of the last minute, by who made them.
    pub(crate) rates: Rates,
    /// Requests and connections of this moment.
    pub(crate) in_flight: Arc<InFlight>,
    /// Answers that are not written yet.
    pub(crate) answers: Arc<Answers>,
    /// Tokens that were on record lately.
    pub(crate) uses: Uses,
    /// Requests, counted.
    pub(crate) meters: HttpMeters,
}
