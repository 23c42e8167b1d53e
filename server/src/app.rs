//! What the handlers share.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use tidelog_archive::{Clock, Entropy, SystemClock, SystemEntropy};
use tidelog_engine::Engine;

use crate::guards::Guards;
use crate::http::streams::Streams;
use crate::settings::Limits;

/// The engine and what surrounds it.
pub struct App {
    /// The engine that holds every database.
    pub engine: Engine,
    /// What a request may cost.
    pub limits: Limits,
    /// Where imports and exports are staged; emptied at start.
    pub scratch: PathBuf,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub entropy: Arc<dyn Entropy>,
    /// Event streams that are open.
    pub(crate) event_streams: Streams,
    pub(crate) guards: Guards,
}

impl App {
    /// An application with the clocks and the chance of the operating system.
    pub fn new(engine: Engine, limits: Limits, scratch: PathBuf) -> Self {
        Self {
            engine,
            limits,
            scratch,
            clock: Arc::new(SystemClock::new()),
            entropy: Arc::new(SystemEntropy),
            event_streams: Streams::default(),
            guards: Guards::default(),
        }
    }

    /// An id for a request.
    pub(crate) fn request_id(&self) -> String {
        format!("req_{:032x}", u128::from_be_bytes(self.entropy.bytes16()))
    }
}

impl fmt::Debug for App {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("App")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
