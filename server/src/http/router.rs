//! The axum router, built from the route table and from nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, Response, header};
use axum::middleware;
use axum::routing::{MethodFilter, MethodRouter};

use super::Route;
use super::edge::{self, RequestId};
use super::pipeline::dispatch;
use crate::app::App;
use crate::problem::{Code, Problem};

/// The whole surface over `app`.
pub fn router(app: Arc<App>) -> Router {
    router_of(app, crate::routes::table())
}

/// What an operator may do, for a listener of its own.
pub(crate) fn operator_router(app: Arc<App>) -> Router {
    router_of(app, crate::routes::operator::table())
}

fn router_of(app: Arc<App>, table: Vec<Route>) -> Router {
    let mut paths: BTreeMap<&'static str, (Vec<Method>, MethodRouter<Arc<App>>)> = BTreeMap::new();
    for route in table {
        let route = Arc::new(route);
        let (methods, served) = paths.entry(route.path).or_default();
        methods.push(route.method.clone());
        let here = Arc::clone(&route);
        *served = std::mem::take(served).on(
            filter(&route.method),
            move |State(app): State<Arc<App>>, request: Request| dispatch(here, app, request),
        );
    }
    let mut router = Router::new();
    for (path, (methods, served)) in paths {
        let allowed = methods
            .iter()
            .map(Method::as_str)
            .collect::<Vec<_>>()
            .join(", ");
        let served = served.fallback(move |request: Request| {
            let allowed = allowed.clone();
            async move { method_not_allowed(&request, &allowed) }
        });
        router = router.route(path, served);
    }
    router
        .fallback(|request: Request| async move {
            let detail = format!("there is nothing at {}", request.uri().path());
            refuse(&request, &Problem::new(Code::NotFound, detail))
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&app), edge::wrap))
        .with_state(app)
}

fn method_not_allowed(request: &Request, allowed: &str) -> Response<Body> {
    let detail = format!("{} is not one of {allowed}", request.method());
    let mut response = refuse(request, &Problem::new(Code::MethodNotAllowed, detail));
    // Method names are tokens: always a header value.
    if let Ok(value) = HeaderValue::try_from(allowed) {
        response.headers_mut().insert(header::ALLOW, value);
    }
    response
}

fn refuse(request: &Request, problem: &Problem) -> Response<Body> {
    let id = request
        .extensions()
        .get::<RequestId>()
        .map(|id| id.0.as_str())
        .unwrap_or_default();
    problem.response(request.uri().path(), id)
}

fn filter(method: &Method) -> MethodFilter {
    MethodFilter::try_from(method.clone()).expect("the table names standard methods only")
}

/// What a route table must hold to be served; the tests check it for every row.
#[cfg(test)]
pub(crate) fn defects(route: &Route) -> Vec<&'static str> {
    use super::{Access, BodyKind};
    let mut defects = Vec::new();
    let tenant = route.in_namespace() || route.path.starts_with("/v1/db/{ns}/");
    // It says what every client may know.
    let open = route.path == "/v1/openapi.json";
    // Where the path leaves it out the layer takes the credential's.
    let tenant = tenant || route.implies_namespace();
    match route.access {
        Access::Public if route.path.starts_with("/v1/") && !open => {
            defects.push("a /v1 route is public");
        }
        Access::Role(_) if !tenant => defects.push("a role is asked for outside a namespace"),
        Access::Server if tenant => defects.push("the server token reaches into a namespace"),
        _ => {}
    }
    if route.on_database() && !tenant {
        defects.push("a database outside a namespace");
    }
    if matches!(route.method, Method::GET | Method::DELETE) && route.body != BodyKind::None {
        defects.push("a body where none belongs");
    }
    if route.path.contains("/members") && !route.whole_namespace {
        defects.push("members are open to a token for some databases");
    }
    if route.conditional && !route.on_database() {
        defects.push("If-Match without a database");
    }
    defects
}
