//! An object store that fails on purpose: before the effect, after it, or with the effect coming late.
//!
//! [`FaultStore`] wraps another store (an in-memory one as a rule) and asks its [`Plan`] before each call what is
//! to go wrong. A plan is a function of the call's number, kind and key, so a run is repeated by its plan
//! alone: [`script`] for exhaustive tests, [`Seeded`] for simulation.
//!
//! *Late* is the outcome that matters most: the caller is told that the request failed, and the request
//! takes effect some calls later, with its condition judged then. [`FaultStore::release_late`] lets all of
//! them land.
//!
//! With a clock ([`FaultStore::set_clock`]) objects bear its times, so that simulation owns the store's time too.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result, UploadPart,
};
use tidelog_archive::env::Clock;
use tokio::sync::watch;

/// What a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// Writes an object whole.
    Put,
    /// Reads an object or a part of it.
    Get,
    /// Reads what is known about an object.
    Head,
    /// Begins an upload in parts.
    Upload,
    /// Sends a part of one.
    Part,
    /// Completes one.
    Complete,
    /// Gives one up.
    Abort,
    /// Deletes an object.
    Delete,
    /// Lists.
    List,
}

/// One call, as the plan sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Its number, from 0.
    pub number: u64,
    /// What it does.
    pub op: Op,
    /// The key or prefix.
    pub key: String,
}

/// What goes wrong with one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// It takes this long.
    Delay(Duration),
    /// It stands still until [`FaultStore::let_go`].
    Hold,
    /// A PUT or a GET takes effect, and its answer stands still until then. Others: as [`Fault::None`].
    HoldAnswer,
    /// An error, and no effect.
    Before,
    /// An error, and the effect.
    After,
    /// An error, and the effect just before the call that many calls later. Reads: as [`Fault::Before`].
    Late(u64),
    /// A PUT is answered "already exists", and has no effect: what a conflict between two uploads looks
    /// like. Others: as [`Fault::None`].
    Exists,
    /// The condition of a PUT is ignored: what a careless server does. Others: as [`Fault::None`].
    Unconditional,
    /// The body of a GET ends at half its length. Others: as [`Fault::None`].
    CutBody,
    /// A bit of a GET's body is flipped. Others: as [`Fault::None`].
    BitRot,
    /// A listing leaves out what was written last. Others: as [`Fault::None`].
    Stale,
    /// The caller lacks the right: an error that is not tried again, and no effect.
    Denied,
}

/// Decides what goes wrong.
pub trait Plan: Send + Sync {
    /// The fault of this call.
    fn fault(&self, call: &Call) -> Fault;
}

struct Script<F>(F);

impl<F: Fn(&Call) -> Fault + Send + Sync> Plan for Script<F> {
    fn fault(&self, call: &Call) -> Fault {
        (self.0)(call)
    }
}

/// A plan that is a function.
pub fn script(plan: impl Fn(&Call) -> Fault + Send + Sync + 'static) -> Box<dyn Plan> {
    Box::new(Script(plan))
}

/// A plan drawn from a seed: each call fails with the given chance, in a way that suits it.
#[derive(Debug, Clone, Copy)]
pub struct Seeded {
    /// Equal seeds, equal plans.
    pub seed: u64,
    /// How many calls in a thousand go wrong.
    pub per_mille: u64,
    /// Whether bodies may rot: no protocol survives that unharmed, it only must be found.
    pub bit_rot: bool,
}

/// The mixer of `SplitMix64`.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl Plan for Seeded {
    fn fault(&self, call: &Call) -> Fault {
        let draw = mix(self.seed ^ mix(call.number));
        if draw % 1_000 >= self.per_mille {
            return Fault::None;
        }
        let choice = mix(draw);
        let detail = mix(choice);
        match (choice % 6, call.op) {
            (0, _) => Fault::Before,
            (1, Op::Put | Op::Delete | Op::Upload) => Fault::After,
            (2, Op::Put | Op::Delete) => Fault::Late(1 + detail % 40),
            (3, Op::Get) if self.bit_rot => Fault::BitRot,
            (3, Op::Get) => Fault::CutBody,
            (4, Op::List) => Fault::Stale,
            _ => Fault::Delay(Duration::from_millis(detail % 20_000)),
        }
    }
}

/// A request that has been answered with an error and is still on its way.
#[derive(Debug)]
enum Pending {
    Put(Path, PutPayload, PutOptions),
    Delete(Path),
}

#[derive(Default)]
struct State {
    calls: Vec<Call>,
    late: Vec<(u64, Pending)>,
    /// What was written last, newest at the back.
    recent: VecDeque<Path>,
    /// The store's clock, and when each object was written by it, in microseconds.
    clock: Option<Arc<dyn Clock>>,
    written: HashMap<Path, u64>,
    /// The version of each object, if the store keeps versions.
    versions: Option<HashMap<Path, String>>,
}

/// How many of the newest objects a stale listing leaves out.
const STALE: usize = 3;

/// A store that fails by plan.
pub struct FaultStore {
    inner: Arc<dyn ObjectStore>,
    plan: Mutex<Box<dyn Plan>>,
    state: Mutex<State>,
    going_on: watch::Sender<u64>,
}

/// The error of every fault.
#[derive(Debug)]
struct Injected(Fault, u64);

impl fmt::Display for Injected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "injected fault {:?} at call {}", self.0, self.1)
    }
}

impl std::error::Error for Injected {}

fn error(fault: Fault, number: u64) -> Error {
    Error::Generic {
        store: "FaultStore",
        source: Box::new(Injected(fault, number)),
    }
}

/// The fault as an error, if nothing else is to happen.
fn refusal(fault: Fault, number: u64, path: &Path) -> Option<Error> {
    let source = Box::new(Injected(fault, number));
    let path = path.to_string();
    match fault {
        Fault::Denied => Some(Error::PermissionDenied { path, source }),
        _ => None,
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FaultStore {
    /// `inner`, failing by `plan`.
    pub fn new(inner: Arc<dyn ObjectStore>, plan: Box<dyn Plan>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            plan: Mutex::new(plan),
            state: Mutex::default(),
            going_on: watch::Sender::new(0),
        })
    }

    /// An empty store in memory, failing by `plan`.
    pub fn in_memory(plan: Box<dyn Plan>) -> Arc<Self> {
        Self::new(Arc::new(object_store::memory::InMemory::new()), plan)
    }

    /// The calls so far.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.state).calls.clone()
    }

    /// Changes the plan for the calls to come.
    pub fn set_plan(&self, plan: Box<dyn Plan>) {
        *lock(&self.plan) = plan;
    }

    /// Lets every call that stands still go on. With a new plan set before it none that comes later stands still.
    pub fn let_go(&self) {
        self.let_go_before(self.calls_made());
    }

    /// How many calls there were so far.
    pub fn calls_made(&self) -> u64 {
        lock(&self.state).calls.len() as u64
    }

    /// Lets those of the first so many calls go on that stand still. Whoever counts the calls, looks at what made
    /// them, and then lets that many go on sets nothing free that began behind the look.
    pub fn let_go_before(&self, calls: u64) {
        self.going_on.send_if_modified(|go_on| {
            let more = calls > *go_on;
            *go_on = calls.max(*go_on);
            more
        });
    }

    /// From now on objects bear this clock's time of their writing.
    pub fn set_clock(&self, clock: Arc<dyn Clock>) {
        lock(&self.state).clock = Some(clock);
    }

    /// From now on the store says of each write which version of the object it made, as a bucket does that keeps them.
    pub fn keep_versions(&self) {
        lock(&self.state).versions = Some(HashMap::new());
    }

    /// Lets every late request land now, in the order they were sent.
    pub async fn release_late(&self) {
        self.land(u64::MAX).await;
    }

    async fn land(&self, now: u64) {
        let due: Vec<Pending> = {
            let mut state = lock(&self.state);
            let (due, later) = state.late.drain(..).partition(|(at, _)| *at <= now);
            state.late = later;
            let due: Vec<(u64, Pending)> = due;
            due.into_iter().map(|(_, pending)| pending).collect()
        };
        for pending in due {
            // Nobody hears the answer of a late request.
            match pending {
                Pending::Put(path, payload, options) => {
                    if self.inner.put_opts(&path, payload, options).await.is_ok() {
                        self.remember(&path);
                    }
                }
                Pending::Delete(path) => {
                    let _ = object_store::ObjectStoreExt::delete(&self.inner, &path).await;
                }
            }
        }
    }

    /// Counts the call, lets late requests land, and says what goes wrong, after any delay.
    async fn enter(&self, op: Op, key: &Path) -> (Fault, u64) {
        let call = {
            let mut state = lock(&self.state);
            let call = Call {
                number: state.calls.len() as u64,
                op,
                key: key.to_string(),
            };
            state.calls.push(call.clone());
            call
        };
        self.land(call.number).await;
        // The call is counted before the plan is asked: whoever changes it and lets go then reaches this call one way
        // or the other.
        let fault = lock(&self.plan).fault(&call);
        match fault {
            Fault::Delay(time) => tokio::time::sleep(time).await,
            Fault::Hold => self.stand(call.number).await,
            _ => {}
        }
        (fault, call.number)
    }

    /// Stands still until that call may go on.
    async fn stand(&self, number: u64) {
        let mut going_on = self.going_on.subscribe();
        // The sender lives as long as the store.
        let _ = going_on.wait_for(|calls| *calls > number).await;
    }

    fn hold(&self, at: u64, pending: Pending) {
        lock(&self.state).late.push((at, pending));
    }

    fn remember(&self, path: &Path) {
        let mut state = lock(&self.state);
        state.recent.push_back(path.clone());
        if state.recent.len() > STALE {
            state.recent.pop_front();
        }
        if let Some(now) = state.clock.as_ref().map(|clock| clock.wall()) {
            state.written.insert(path.clone(), now.micros());
        }
    }

    /// The same, with the time of its writing by the clock of this store.
    fn dated(&self, mut meta: ObjectMeta) -> ObjectMeta {
        let state = lock(&self.state);
        if let Some(micros) = state.written.get(&meta.location) {
            meta.last_modified = (UNIX_EPOCH + Duration::from_micros(*micros)).into();
        }
        if let Some(versions) = &state.versions {
            meta.version = versions.get(&meta.location).cloned();
        }
        meta
    }

    async fn delete_one(&self, path: Path) -> Result<Path> {
        let (fault, number) = self.enter(Op::Delete, &path).await;
        if let Some(refused) = refusal(fault, number, &path) {
            return Err(refused);
        }
        match fault {
            Fault::Before => return Err(error(fault, number)),
            Fault::Late(calls) => {
                self.hold(number + calls, Pending::Delete(path));
                return Err(error(fault, number));
            }
            _ => {}
        }
        object_store::ObjectStoreExt::delete(&self.inner, &path).await?;
        match fault {
            Fault::After => Err(error(fault, number)),
            _ => Ok(path),
        }
    }
}

impl fmt::Debug for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultStore({})", self.inner)
    }
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultStore({})", self.inner)
    }
}

/// The store as a shared handle, which deletions and listings need.
#[derive(Debug, Clone)]
pub struct Shared(pub Arc<FaultStore>);

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An upload whose parts and completion fail by plan.
#[derive(Debug)]
struct FaultUpload {
    inner: Box<dyn MultipartUpload>,
    store: Arc<FaultStore>,
    path: Path,
}

#[async_trait]
impl MultipartUpload for FaultUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (store, path) = (Arc::clone(&self.store), self.path.clone());
        let part = self.inner.put_part(data);
        Box::pin(async move {
            let (fault, number) = store.enter(Op::Part, &path).await;
            if let Some(refused) = refusal(fault, number, &path) {
                return Err(refused);
            }
            match fault {
                Fault::Before | Fault::Late(_) => Err(error(fault, number)),
                Fault::After => part.await.and(Err(error(fault, number))),
                _ => part.await,
            }
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let (fault, number) = self.store.enter(Op::Complete, &self.path).await;
        if let Some(refused) = refusal(fault, number, &self.path) {
            return Err(refused);
        }
        match fault {
            Fault::Before | Fault::Late(_) => Err(error(fault, number)),
            Fault::After => self.inner.complete().await.and(Err(error(fault, number))),
            _ => self.inner.complete().await,
        }
    }

    async fn abort(&mut self) -> Result<()> {
        let (fault, number) = self.store.enter(Op::Abort, &self.path).await;
        if let Some(refused) = refusal(fault, number, &self.path) {
            return Err(refused);
        }
        self.inner.abort().await
    }
}

fn spoiled(fault: Fault, bytes: Bytes) -> Bytes {
    match fault {
        Fault::CutBody => bytes.slice(..bytes.len() / 2),
        Fault::BitRot => {
            let mut bytes = BytesMut::from(bytes.as_ref());
            let middle = bytes.len() / 2;
            if let Some(byte) = bytes.get_mut(middle) {
                *byte ^= 0x10;
            }
            bytes.freeze()
        }
        _ => bytes,
    }
}

#[async_trait]
impl ObjectStore for Shared {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        mut opts: PutOptions,
    ) -> Result<PutResult> {
        let (fault, number) = self.0.enter(Op::Put, location).await;
        if let Some(refused) = refusal(fault, number, location) {
            return Err(refused);
        }
        match fault {
            Fault::Before => return Err(error(fault, number)),
            Fault::Exists => {
                return Err(Error::AlreadyExists {
                    path: location.to_string(),
                    source: Box::new(Injected(fault, number)),
                });
            }
            Fault::Unconditional => opts.mode = PutMode::Overwrite,
            Fault::Late(calls) => {
                let pending = Pending::Put(location.clone(), payload, opts);
                self.0.hold(number + calls, pending);
                return Err(error(fault, number));
            }
            _ => {}
        }
        let mut put = self.0.inner.put_opts(location, payload, opts).await;
        if let Ok(put) = &mut put {
            self.0.remember(location);
            if let Some(versions) = &mut lock(&self.0.state).versions {
                versions.insert(location.clone(), number.to_string());
                put.version = Some(number.to_string());
            }
        }
        match fault {
            // The answer is lost whatever it was.
            Fault::After => Err(error(fault, number)),
            Fault::HoldAnswer => {
                self.0.stand(number).await;
                put
            }
            _ => put,
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let (fault, number) = self.0.enter(Op::Upload, location).await;
        if let Some(refused) = refusal(fault, number, location) {
            return Err(refused);
        }
        match fault {
            Fault::Before | Fault::After | Fault::Late(_) => Err(error(fault, number)),
            _ => Ok(Box::new(FaultUpload {
                inner: self.0.inner.put_multipart_opts(location, opts).await?,
                store: Arc::clone(&self.0),
                path: location.clone(),
            })),
        }
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let op = if options.head { Op::Head } else { Op::Get };
        let (fault, number) = self.0.enter(op, location).await;
        if let Some(refused) = refusal(fault, number, location) {
            return Err(refused);
        }
        if matches!(fault, Fault::Before | Fault::After | Fault::Late(_)) {
            return Err(error(fault, number));
        }
        let mut got = self.0.inner.get_opts(location, options).await?;
        got.meta = self.0.dated(got.meta);
        if fault == Fault::HoldAnswer {
            self.0.stand(number).await;
        }
        if op == Op::Head || !matches!(fault, Fault::CutBody | Fault::BitRot) {
            return Ok(got);
        }
        let (meta, range) = (got.meta.clone(), got.range.clone());
        let bytes = spoiled(fault, got.bytes().await?);
        Ok(GetResult {
            payload: GetResultPayload::Stream(stream::once(async { Ok(bytes) }).boxed()),
            meta,
            range,
            attributes: object_store::Attributes::default(),
            extensions: object_store::Extensions::default(),
        })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let store = Arc::clone(&self.0);
        locations
            .then(move |location| {
                let store = Arc::clone(&store);
                async move { store.delete_one(location?).await }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (Arc::clone(&self.0), prefix.cloned());
        stream::once(async move {
            let location = prefix.clone().unwrap_or(Path::ROOT);
            let (fault, number) = store.enter(Op::List, &location).await;
            if let Some(refused) = refusal(fault, number, &location) {
                return stream::once(async move { Err(refused) }).boxed();
            }
            match fault {
                Fault::Before | Fault::After | Fault::Late(_) => {
                    stream::once(async move { Err(error(fault, number)) }).boxed()
                }
                _ => {
                    let hidden: Vec<Path> = if fault == Fault::Stale {
                        lock(&store.state).recent.iter().cloned().collect()
                    } else {
                        Vec::new()
                    };
                    store
                        .inner
                        .list(prefix.as_ref())
                        .filter(move |entry| {
                            let seen = entry
                                .as_ref()
                                .map_or(true, |meta| !hidden.contains(&meta.location));
                            std::future::ready(seen)
                        })
                        .map(move |entry| entry.map(|meta| store.dated(meta)))
                        .boxed()
                }
            }
        })
        .flatten()
        .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let (fault, number) = self.0.enter(Op::List, prefix.unwrap_or(&Path::ROOT)).await;
        match fault {
            Fault::Before | Fault::After | Fault::Late(_) => Err(error(fault, number)),
            _ => self.0.inner.list_with_delimiter(prefix).await,
        }
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.inner.copy_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;

    use super::*;
    use crate::sim::SimClock;

    #[tokio::test]
    async fn objects_bear_the_time_of_the_given_clock() {
        let store = FaultStore::new(Arc::new(InMemory::new()), script(|_| Fault::None));
        let clock = Arc::new(SimClock::new());
        store.set_clock(Arc::clone(&clock) as Arc<dyn Clock>);
        let shared = Shared(Arc::clone(&store));
        let path = Path::from("a/b");
        shared.put(&path, "x".into()).await.unwrap();
        let then = clock.wall();
        clock.advance(5_000_000);
        let head = shared.head(&path).await.unwrap();
        assert_eq!(
            head.last_modified.timestamp_micros().unsigned_abs(),
            then.micros()
        );
        let listed: Vec<_> = shared.list(None).collect().await;
        assert_eq!(listed.len(), 1);
        assert_eq!(
            listed[0].as_ref().unwrap().last_modified,
            head.last_modified
        );
    }

    #[tokio::test]
    async fn a_late_put_fails_first_and_lands_with_its_condition_judged_then() {
        let plan = script(|call| {
            if call.number < 2 {
                Fault::Late(3)
            } else {
                Fault::None
            }
        });
        let store = FaultStore::new(Arc::new(InMemory::new()), plan);
        let shared = Shared(Arc::clone(&store));
        let path = Path::from("a");
        let create = || PutOptions::from(PutMode::Create);
        assert!(
            shared
                .put_opts(&path, "first".into(), create())
                .await
                .is_err()
        );
        assert!(
            shared
                .put_opts(&path, "second".into(), create())
                .await
                .is_err()
        );
        assert!(shared.head(&path).await.is_err());
        let landed = shared.get(&path).await.unwrap().bytes().await.unwrap();
        assert_eq!(landed, "first");
        store.release_late().await;
        let landed = shared.get(&path).await.unwrap().bytes().await.unwrap();
        assert_eq!(landed, "first");
        assert_eq!(store.calls().len(), 5);
    }

    #[tokio::test]
    async fn a_held_call_goes_on_once_it_is_let_go() {
        let store = FaultStore::in_memory(script(|_| Fault::Hold));
        let shared = Shared(Arc::clone(&store));
        let path = Path::from("a");
        let mut put = std::pin::pin!(shared.put(&path, "x".into()));
        assert!(put.as_mut().now_or_never().is_none());
        store.set_plan(script(|_| Fault::None));
        assert!(
            put.as_mut().now_or_never().is_none(),
            "the plan alone is not enough"
        );
        store.let_go();
        put.await.unwrap();
        shared.head(&path).await.unwrap();
    }

    #[tokio::test]
    async fn calls_go_on_up_to_the_one_that_was_counted() {
        let store = FaultStore::in_memory(script(|_| Fault::Hold));
        let shared = Shared(Arc::clone(&store));
        let (first, second) = (Path::from("a"), Path::from("b"));
        let mut first = std::pin::pin!(shared.put(&first, "x".into()));
        assert!(first.as_mut().now_or_never().is_none());
        let counted = store.calls_made();
        let mut second = std::pin::pin!(shared.put(&second, "x".into()));
        assert!(second.as_mut().now_or_never().is_none());
        store.let_go_before(counted);
        first.await.unwrap();
        assert!(second.as_mut().now_or_never().is_none());
        store.let_go();
        second.await.unwrap();
    }

    #[test]
    fn a_seed_decides_every_fault() {
        let plan = |seed| Seeded {
            seed,
            per_mille: 300,
            bit_rot: true,
        };
        let faults = |plan: Seeded| -> Vec<Fault> {
            (0..1_000)
                .map(|number| {
                    plan.fault(&Call {
                        number,
                        op: Op::Get,
                        key: String::new(),
                    })
                })
                .collect()
        };
        assert_eq!(faults(plan(1)), faults(plan(1)));
        assert_ne!(faults(plan(1)), faults(plan(2)));
        let faulty = faults(plan(3))
            .iter()
            .filter(|fault| **fault != Fault::None)
            .count();
        assert!((200..400).contains(&faulty), "{faulty}");
    }
}
