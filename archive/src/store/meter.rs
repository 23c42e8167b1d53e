//! Counts what goes over the wire: requests and bytes by verb and outcome, and how many are under way.
//!
//! [`Metered`] wraps the store at the very bottom, so that every attempt counts, those of read-backs and
//! probes too. A listing counts as one request a thousand entries, which is what S3 bills.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, UploadPart,
};

use super::error::Failure;

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Reads an object or a range of one.
    Get,
    /// Reads what is known about an object.
    Head,
    /// Writes an object whole.
    Put,
    /// Begins, continues or completes an upload in parts.
    Part,
    /// Deletes an object.
    Delete,
    /// Lists a thousand objects.
    List,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Ok,
    /// The object is not there.
    Missing,
    /// The condition did not hold.
    Refused,
    /// Anything else.
    Failed,
}

const VERBS: usize = 6;
const OUTCOMES: usize = 4;

#[derive(Debug, Default)]
struct Cell {
    requests: AtomicU64,
    bytes: AtomicU64,
}

/// The counters of one store.
#[derive(Debug, Default)]
pub struct Meter {
    cells: [[Cell; OUTCOMES]; VERBS],
    in_flight: AtomicU64,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MeterSnapshot {
    requests: [[u64; OUTCOMES]; VERBS],
    bytes: [[u64; OUTCOMES]; VERBS],
    /// Requests under way.
    pub in_flight: u64,
}

impl MeterSnapshot {
    /// Requests of this verb with this outcome.
    pub fn requests(&self, verb: Verb, outcome: Outcome) -> u64 {
        self.requests[verb as usize][outcome as usize]
    }

    /// Requests of this verb, however they ended.
    pub fn all(&self, verb: Verb) -> u64 {
        self.requests[verb as usize].iter().sum()
    }

    /// All requests.
    pub fn total(&self) -> u64 {
        self.requests.iter().flatten().sum()
    }

    /// Bytes that successful requests of this verb carried, up or down.
    pub fn bytes(&self, verb: Verb) -> u64 {
        self.bytes[verb as usize][Outcome::Ok as usize]
    }

    /// What was counted after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let minus = |a: &[[u64; OUTCOMES]; VERBS], b: &[[u64; OUTCOMES]; VERBS]| {
            std::array::from_fn(|v| std::array::from_fn(|o| a[v][o].saturating_sub(b[v][o])))
        };
        Self {
            requests: minus(&self.requests, &earlier.requests),
            bytes: minus(&self.bytes, &earlier.bytes),
            in_flight: self.in_flight,
        }
    }
}

impl Meter {
    /// The counters now. Requests that end meanwhile may be in some of them only.
    pub fn snapshot(&self) -> MeterSnapshot {
        let read = |f: fn(&Cell) -> &AtomicU64| {
            std::array::from_fn(|v| {
                std::array::from_fn(|o| f(&self.cells[v][o]).load(Ordering::Relaxed))
            })
        };
        MeterSnapshot {
            requests: read(|cell| &cell.requests),
            bytes: read(|cell| &cell.bytes),
            in_flight: self.in_flight.load(Ordering::Relaxed),
        }
    }

    fn count(&self, verb: Verb, outcome: Outcome, bytes: u64) {
        let cell = &self.cells[verb as usize][outcome as usize];
        cell.requests.fetch_add(1, Ordering::Relaxed);
        cell.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn begin(self: &Arc<Self>, verb: Verb) -> Flight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Flight {
            meter: Arc::clone(self),
            verb,
            ended: false,
        }
    }
}

/// A request under way; one that is dropped before its answer counts as failed.
#[derive(Debug)]
struct Flight {
    meter: Arc<Meter>,
    verb: Verb,
    ended: bool,
}

impl Flight {
    fn end<T>(mut self, result: &object_store::Result<T>, bytes: impl FnOnce(&T) -> u64) {
        self.ended = true;
        match result {
            Ok(value) => self.meter.count(self.verb, Outcome::Ok, bytes(value)),
            Err(error) => {
                let outcome = match Failure::of(error) {
                    Failure::Missing => Outcome::Missing,
                    Failure::Refused => Outcome::Refused,
                    Failure::Denied | Failure::Unsupported | Failure::Unclear => Outcome::Failed,
                };
                self.meter.count(self.verb, outcome, 0);
            }
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.meter.in_flight.fetch_sub(1, Ordering::Relaxed);
        if !self.ended {
            self.meter.count(self.verb, Outcome::Failed, 0);
        }
    }
}

/// A store whose requests are counted.
#[derive(Debug)]
pub(crate) struct Metered {
    inner: Arc<dyn ObjectStore>,
    meter: Arc<Meter>,
}

impl Metered {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, meter: Arc<Meter>) -> Self {
        Self { inner, meter }
    }

    fn pages(
        &self,
        entries: BoxStream<'static, object_store::Result<ObjectMeta>>,
    ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let meter = Arc::clone(&self.meter);
        meter.count(Verb::List, Outcome::Ok, 0);
        let mut seen = 0_u64;
        entries
            .inspect(move |entry| match entry {
                Ok(_) => {
                    seen += 1;
                    if seen.is_multiple_of(1_000) {
                        meter.count(Verb::List, Outcome::Ok, 0);
                    }
                }
                Err(_) => meter.count(Verb::List, Outcome::Failed, 0),
            })
            .boxed()
    }
}

impl fmt::Display for Metered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Metered {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> object_store::Result<PutResult> {
        let length = payload.content_length() as u64;
        let flight = self.meter.begin(Verb::Put);
        let result = self.inner.put_opts(location, payload, opts).await;
        flight.end(&result, |_| length);
        result
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        let flight = self.meter.begin(Verb::Part);
        let result = self.inner.put_multipart_opts(location, opts).await;
        flight.end(&result, |_| 0);
        Ok(Box::new(MeteredUpload {
            inner: result?,
            meter: Arc::clone(&self.meter),
        }))
    }

    async fn get_opts(
        &self,
        location: &Path,
        options: GetOptions,
    ) -> object_store::Result<GetResult> {
        let verb = if options.head { Verb::Head } else { Verb::Get };
        let flight = self.meter.begin(verb);
        let result = self.inner.get_opts(location, options).await;
        flight.end(&result, |got| match verb {
            Verb::Head => 0,
            _ => got.range.end - got.range.start,
        });
        result
    }

    async fn get_ranges(
        &self,
        location: &Path,
        ranges: &[Range<u64>],
    ) -> object_store::Result<Vec<Bytes>> {
        let flight = self.meter.begin(Verb::Get);
        let result = self.inner.get_ranges(location, ranges).await;
        flight.end(&result, |parts| parts.iter().map(|p| p.len() as u64).sum());
        result
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        let meter = Arc::clone(&self.meter);
        self.inner
            .delete_stream(locations)
            .inspect(move |result| {
                let flight = meter.begin(Verb::Delete);
                flight.end(result, |_| 0);
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.pages(self.inner.list(prefix))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.pages(self.inner.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        let flight = self.meter.begin(Verb::List);
        let result = self.inner.list_with_delimiter(prefix).await;
        flight.end(&result, |_| 0);
        result
    }

    async fn copy_opts(
        &self,
        from: &Path,
        to: &Path,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        let flight = self.meter.begin(Verb::Put);
        let result = self.inner.copy_opts(from, to, options).await;
        flight.end(&result, |()| 0);
        result
    }
}

/// An upload whose parts are counted.
#[derive(Debug)]
struct MeteredUpload {
    inner: Box<dyn MultipartUpload>,
    meter: Arc<Meter>,
}

#[async_trait]
impl MultipartUpload for MeteredUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let length = data.content_length() as u64;
        let flight = self.meter.begin(Verb::Part);
        let part = self.inner.put_part(data);
        Box::pin(async move {
            let result = part.await;
            flight.end(&result, |()| length);
            result
        })
    }

    async fn complete(&mut self) -> object_store::Result<PutResult> {
        let flight = self.meter.begin(Verb::Part);
        let result = self.inner.complete().await;
        flight.end(&result, |_| 0);
        result
    }

    async fn abort(&mut self) -> object_store::Result<()> {
        self.inner.abort().await
    }
}
