//! What the layer remembers between requests: keys that run, and what it has counted.

use std::sync::Arc;

use crate::http::idempotency::Running;
use crate::metrics::HttpMeters;

/// Everything of the kind.
#[derive(Debug, Default)]
pub(crate) struct Guards {
    /// Idempotency-Keys whose first call still runs.
    pub(crate) running: Arc<Running>,
    /// Requests, counted.
    pub(crate) meters: HttpMeters,
}
