//! Serving: accept connections, bound them, and stop so that nothing acknowledged is left behind.
//!
//! A stop is three steps in this order: no new connection; requests that run finish, within a bound; the engine
//! ships what is pending.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tower::util::MapRequest;

use crate::app::App;
use crate::http::peer::Peer;
use crate::http::rates::Key;
use crate::http::router::{operator_router, router};

/// Pause after a failed accept: descriptors may be used up, and come back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often key files are looked at for changes.
const LOOK_AT_KEYS: Duration = Duration::from_secs(30);

/// Serves `app` on `listener` until `stop` is done and the requests that run have ended.
///
/// The engine is not shut down here: its owner does that next.
pub async fn serve(listener: TcpListener, app: Arc<App>, stop: impl Future<Output = ()>) {
    let router = router(Arc::clone(&app));
    accept(listener, app, router, stop).await;
}

/// The same for the routes of the operator.
pub async fn serve_operator(listener: TcpListener, app: Arc<App>, stop: impl Future<Output = ()>) {
    let router = operator_router(Arc::clone(&app));
    accept(listener, app, router, stop).await;
}

async fn accept(
    listener: TcpListener,
    app: Arc<App>,
    router: Router,
    stop: impl Future<Output = ()>,
) {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(app.limits.head_deadline)
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(app.limits.head_deadline));
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(app.limits.connections_max));
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            accepted = accepted => accepted,
            () = &mut stop => break,
        };
        let (stream, peer) = match accepted {
            Ok((stream, address)) => (stream, address.ip()),
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Nagle against delayed ACK costs 40 ms an answer; a refusal to switch it off costs only time.
        let _ = stream.set_nodelay(true);
        // A proxy's connections are everybody's.
        let is_proxy = app.trusted_proxies.contains(&peer.to_canonical());
        let per_peer = app.limits.connections_per_peer_max;
        let per_peer = [(Key::Connections(peer), if is_proxy { 0 } else { per_peer })];
        let Ok(counted) = app.guards.in_flight.enter(&per_peer) else {
            continue;
        };
        let peer = Peer::new(peer);
        let router = MapRequest::new(router.clone(), move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            request
        });
        let service = TowerToHyperService::new(router);
        let (http, watcher) = (http.clone(), graceful.watcher());
        let acceptor = app
            .certificate
            .as_ref()
            .map(|certificate| certificate.acceptor());
        let patience = app.limits.head_deadline;
        tokio::spawn(async move {
            // A client that breaks off, or shakes no hands in time, is its own business.
            match acceptor {
                None => {
                    let connection = http.serve_connection(TokioIo::new(stream), service);
                    let _ = watcher.watch(connection.into_owned()).await;
                }
                Some(acceptor) => {
                    let shaken = tokio::time::timeout(patience, acceptor.accept(stream)).await;
                    if let Ok(Ok(stream)) = shaken {
                        let connection = http.serve_connection(TokioIo::new(stream), service);
                        let _ = watcher.watch(connection.into_owned()).await;
                    }
                }
            }
            drop((slot, counted));
        });
    }
    drop(listener);
    if tokio::time::timeout(app.limits.drain_deadline, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("requests still ran at the end of the drain time and were cut off");
    }
}

/// Binds the address of a server. Without `insecure` or TLS only loopback is served.
pub async fn bind(address: SocketAddr, insecure: bool) -> io::Result<TcpListener> {
    if !address.ip().is_loopback() && !insecure {
        let text = format!(
            "{address} is not a loopback address and this server speaks plain HTTP, so tokens would cross the \
             network readable: give --tls-cert and --tls-key, put a TLS proxy in front of a loopback address, or \
             pass --insecure-listen"
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    TcpListener::bind(address).await
}

/// Reads certificate and keys again at every SIGHUP, and keys of signed tokens when their files change. Never ends.
///
/// The signal is waited for from the call on, not from the first poll: until then it would end the process.
pub fn reload_on_signal(app: Arc<App>) -> impl Future<Output = ()> + Send + 'static {
    use tokio::signal::unix::{SignalKind, signal};
    let hangup = signal(SignalKind::hangup());
    async move {
        let Ok(mut hangup) = hangup else {
            return tracing::error!(
                "SIGHUP cannot be waited for: certificates are read at the start alone"
            );
        };
        loop {
            tokio::select! {
                _ = hangup.recv() => app.reload(),
                () = tokio::time::sleep(LOOK_AT_KEYS) => app.reload_if_changed(),
            }
        }
    }
}

/// Ends at the first SIGTERM or SIGINT.
pub async fn stop_signal() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
