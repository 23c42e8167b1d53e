//! A fault proxy for S3 over HTTP/1.1: a relay that can make the outcomes no packaged proxy makes, above all
//! *the PUT was applied and its answer was lost*.
//!
//! It listens on a free loopback port and relays to one upstream. Rules set by the test match requests by method
//! and key and apply a [`Fault`] a number of times; the first rule that matches and has applications left wins.
//! Every request is recorded ([`FaultProxy::requests`]), matched or not, so tests can count what goes over the wire.
//!
//! Guarantees: a request reaches the upstream whole or not at all; heads go through byte for byte, with the
//! `Host` the client signed, and an answer keeps its `Content-Length`. Bodies are held in memory, which is fine
//! for the objects of tests. Latency added here is simulated and reported as such.
//!
//! It lives in the process of the test with a thread of its own, so tests of real server processes use it too.

mod http;
mod relay;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// Which requests a rule is for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Match {
    /// The HTTP method in upper case; any when absent.
    pub method: Option<String>,
    /// Text that the path of the request contains; any path when empty.
    pub key_contains: String,
}

impl Match {
    /// Every request.
    pub fn any() -> Self {
        Self::default()
    }

    /// Requests of `method` whose path contains `key_contains`.
    pub fn new(method: &str, key_contains: &str) -> Self {
        Self {
            method: Some(method.to_ascii_uppercase()),
            key_contains: key_contains.to_owned(),
        }
    }

    fn holds(&self, method: &str, key: &str) -> bool {
        self.method.as_deref().is_none_or(|wanted| wanted == method)
            && key.contains(&self.key_contains)
    }
}

/// What happens to a request that a rule matches.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Forwarded after a time.
    Delay(Duration),
    /// The connection is reset before the upstream sees anything.
    ResetBefore,
    /// The upstream has answered, then the connection is reset: applied, answer lost.
    LoseAnswer,
    /// The head of the answer comes whole, with its Content-Length; the body ends by a reset after so many bytes.
    CutBody(usize),
    /// Answered 503 `SlowDown`, not forwarded.
    SlowDown,
    /// Held until the gate is released, then forwarded, whether or not the client still waits: a late effect.
    Hold(Gate),
    /// Read, not forwarded, never answered; the connection stays open until the client gives up.
    Swallow,
}

/// Holds requests until it is released.
#[derive(Debug, Clone)]
pub struct Gate {
    open: Arc<watch::Sender<bool>>,
    held: Arc<watch::Sender<usize>>,
    done: Arc<watch::Sender<usize>>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            open: Arc::new(watch::Sender::new(false)),
            held: Arc::new(watch::Sender::new(0)),
            done: Arc::new(watch::Sender::new(0)),
        }
    }
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets everything held, and everything to come, go on.
    pub fn release(&self) {
        self.open.send_replace(true);
    }

    /// How many requests have arrived at the gate so far.
    pub fn held(&self) -> usize {
        *self.held.borrow()
    }

    /// How many released requests the upstream has answered so far.
    pub fn applied(&self) -> usize {
        *self.done.borrow()
    }
}

/// One request as the proxy saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The HTTP method.
    pub method: String,
    /// The path without its query.
    pub key: String,
    /// The query, empty when there is none.
    pub query: String,
    /// The request's head.
    pub head: Vec<u8>,
    /// Bytes of the request's body.
    pub request_bytes: usize,
    /// Bytes of the upstream's answer's body.
    pub response_bytes: usize,
    /// The status the upstream answered with; absent while there is none.
    pub status: Option<u16>,
}

impl Seen {
    /// The value of a header of the request, in lower case.
    pub fn header(&self, name: &str) -> Option<String> {
        http::header(&self.head, name)
    }
}

struct Rule {
    matching: Match,
    fault: Fault,
    left: usize,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    seen: Vec<Seen>,
}

/// What the connections share.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
}

impl Shared {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        // A test that panicked while holding the lock has failed already; the state is still whole.
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Records a request and takes the fault that is due to it.
    fn arrive(&self, seen: Seen) -> (usize, Option<Fault>) {
        self.with(|state| {
            let rule = state
                .rules
                .iter_mut()
                .find(|rule| rule.left > 0 && rule.matching.holds(&seen.method, &seen.key));
            let fault = rule.map(|rule| {
                rule.left -= 1;
                rule.fault.clone()
            });
            state.seen.push(seen);
            (state.seen.len() - 1, fault)
        })
    }

    fn answered(&self, index: usize, status: u16, response_bytes: usize) {
        self.with(|state| {
            // `forget` may have emptied the list while the upstream worked.
            if let Some(seen) = state.seen.get_mut(index) {
                seen.status = Some(status);
                seen.response_bytes = response_bytes;
            }
        });
    }
}

/// A running proxy; it stops when dropped.
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

impl fmt::Debug for FaultProxy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("FaultProxy")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl FaultProxy {
    /// A proxy in front of `upstream`, on a free loopback port.
    pub fn start(upstream: SocketAddr) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let accepting = Arc::clone(&shared);
        runtime.spawn(async move {
            // Registering a bound listener fails only without a reactor, and this task has one.
            let Ok(listener) = TcpListener::from_std(listener) else {
                return;
            };
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay::serve(client, upstream, Arc::clone(&accepting)));
            }
        });
        Ok(Self {
            address,
            shared,
            runtime: Some(runtime),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT`, for the `endpoint` of a store URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on the first `times` requests that match get the fault; `usize::MAX` means always.
    pub fn rule(&self, matching: Match, fault: Fault, times: usize) {
        self.shared.with(|state| {
            state.rules.push(Rule {
                matching,
                fault,
                left: times,
            });
        });
    }

    /// Forgets every rule. Requests already held or delayed stay so.
    pub fn clear_rules(&self) {
        self.shared.with(|state| state.rules.clear());
    }

    /// Every request since the start or the last [`FaultProxy::forget`], in the order of arrival.
    pub fn requests(&self) -> Vec<Seen> {
        self.shared.with(|state| state.seen.clone())
    }

    /// How many recorded requests match.
    pub fn count(&self, matching: &Match) -> usize {
        self.shared.with(|state| {
            state
                .seen
                .iter()
                .filter(|seen| matching.holds(&seen.method, &seen.key))
                .count()
        })
    }

    /// Starts the record of requests anew.
    pub fn forget(&self) {
        self.shared.with(|state| state.seen.clear());
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Dropping a runtime inside another one panics; this does not wait and does not.
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests;
