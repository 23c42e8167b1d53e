//! The results of a cursor: one JSON value a line, written as fast as the client reads them. What waits to be
//! written is bounded, whatever the result is.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde_json::{Value as Json, json};
use tidelog_archive::env::Clock;
use tidelog_engine::streams::{Sink, StepEnd};
use tidelog_engine::{Code, Column, Error, Value};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::account::Failures;
use super::{errors, wire};

/// Bytes that are written together.
const PIECE: usize = 32 << 10;
/// Pieces that wait for the client.
pub(crate) const PIECES: usize = 4;
/// How long a row waits for others before it is written, in microseconds.
const LINGER: u64 = 100_000;

/// A part of the answer.
pub(crate) type Piece = Result<Bytes, Infallible>;

/// Where the lines go.
#[derive(Debug)]
pub(crate) struct Lines {
    to: mpsc::Sender<Piece>,
    buffer: Vec<u8>,
    /// How long the client may read nothing.
    pause_max: Duration,
    clock: Arc<dyn Clock>,
    /// When something was sent last, in monotonic microseconds.
    sent_at: u64,
    /// What the steps read and wrote so far.
    pub(crate) read: u64,
    pub(crate) written: u64,
    /// The steps that failed so far.
    pub(crate) failures: Failures,
}

fn gone() -> Error {
    Error::new(Code::OperationCancelled, "the client reads no more")
}

impl Lines {
    pub(crate) fn new(to: mpsc::Sender<Piece>, pause_max: Duration, clock: Arc<dyn Clock>) -> Self {
        Self {
            to,
            buffer: Vec::new(),
            pause_max,
            sent_at: clock.monotonic_micros(),
            clock,
            read: 0,
            written: 0,
            failures: Failures::default(),
        }
    }

    fn add(&mut self, entry: &Json) {
        wire::line(&mut self.buffer, entry);
    }

    /// Sends what is there, if there is room for it.
    fn offer(&mut self) -> Result<(), Error> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        match self.to.try_reserve() {
            Ok(place) => {
                place.send(Ok(std::mem::take(&mut self.buffer).into()));
                self.sent_at = self.clock.monotonic_micros();
                Ok(())
            }
            Err(TrySendError::Full(())) => Ok(()),
            Err(TrySendError::Closed(())) => Err(gone()),
        }
    }

    /// Sends a line and all before it.
    pub(crate) async fn last(mut self, entry: &Json) -> Result<(), Error> {
        self.add(entry);
        send(self.to, self.buffer, self.pause_max).await
    }
}

async fn send(to: mpsc::Sender<Piece>, buffer: Vec<u8>, pause_max: Duration) -> Result<(), Error> {
    match tokio::time::timeout(pause_max, to.send(Ok(buffer.into()))).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(gone()),
    }
}

impl Sink for Lines {
    fn begin(&mut self, step: usize, columns: Vec<Column>) -> Result<(), Error> {
        self.add(&json!({ "type": "step_begin", "step": step, "cols": wire::columns(&columns) }));
        Ok(())
    }

    fn row(&mut self, values: Vec<Value>) -> Result<(), Error> {
        let row: Vec<Json> = values.iter().map(wire::value).collect();
        self.add(&json!({ "type": "row", "row": row }));
        Ok(())
    }

    fn end(&mut self, _: usize, end: StepEnd) -> Result<(), Error> {
        self.read += end.tally.rows_read;
        self.written += end.tally.rows_written;
        self.add(&wire::step_end(&end.tally));
        self.offer()
    }

    fn failed(&mut self, step: usize, error: Error) -> Result<(), Error> {
        self.failures.add(&error);
        let error = errors::of_statement(&error);
        self.add(&json!({ "type": "step_error", "step": step, "error": error }));
        self.offer()
    }

    fn stall(&mut self) -> Option<BoxFuture<'static, Result<(), Error>>> {
        let full = self.buffer.len() >= PIECE;
        let waited = || self.clock.monotonic_micros().saturating_sub(self.sent_at);
        if !full && waited() < LINGER {
            return None;
        }
        // What is not much may wait longer where the client reads slowly.
        if self.offer().is_ok() && (!full || self.buffer.is_empty()) {
            return None;
        }
        let buffer = std::mem::take(&mut self.buffer);
        self.sent_at = self.clock.monotonic_micros();
        Some(send(self.to.clone(), buffer, self.pause_max).boxed())
    }

    fn waits(&self) -> bool {
        true
    }
}
