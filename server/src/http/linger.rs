//! The rest of a body that nobody reads any more: taken off the connection for a moment behind the answer.
//!
//! A refusal is often written while the client still sends. A connection that is closed with bytes in it that were
//! never read is reset, and a reset takes away what the client has not read yet: the answer that says why. So what
//! is left of a body is read on and thrown away, at most [`REST_BYTES_MAX`] of it and no longer than [`REST_TIME`];
//! whoever sends more than that is cut off. A client that waits for `100 Continue` has sent nothing, and is not
//! made to.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures::StreamExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

/// The most bytes that are read behind an answer: more than the buffers between two machines hold.
const REST_BYTES_MAX: u64 = 1 << 20;

/// The longest that is read behind an answer.
const REST_TIME: Duration = Duration::from_secs(2);

/// A body whose rest is read on when it is let go.
#[derive(Debug)]
pub(crate) struct Lingering {
    body: Body,
    /// Whether nothing more will come, or nothing more is wanted.
    over: bool,
    /// Whether the client sends without being asked to.
    sends: bool,
}

impl Lingering {
    /// `waits`: the client sends the body only when it is told to go on.
    pub(crate) fn new(body: Body, waits: bool) -> Self {
        let over = body.is_end_stream();
        let sends = !waits;
        Self { body, over, sends }
    }
}

impl HttpBody for Lingering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        // The first look at it is what tells a waiting client to go on.
        self.sends = true;
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(None | Some(Err(_))) = &polled {
            self.over = true;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        if self.over || !self.sends || self.body.is_end_stream() {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let rest = read_on(std::mem::take(&mut self.body));
            runtime.spawn(async { tokio::time::timeout(REST_TIME, rest).await.ok() });
        }
    }
}

async fn read_on(body: Body) {
    let (mut pieces, mut read) = (body.into_data_stream(), 0_u64);
    while let Some(Ok(piece)) = pieces.next().await {
        read = read.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
        if read > REST_BYTES_MAX {
            return;
        }
    }
}
