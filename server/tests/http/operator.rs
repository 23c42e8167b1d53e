//! The operator's listener: all namespaces at once, flush, checkpoint, retention, objects that nothing lists.

use std::sync::Arc;

use reqwest::Method;
use serde_json::{Value as Json, json};
use tidelog_server::serve::{bind, serve_operator};
use tokio::sync::oneshot;

use crate::tenants::tenant;
use crate::world::{Got, World, read};

/// Goal: the operator reaches every tenant's databases by name and none of their rows, and nobody else does. Method:
/// every route with the server token, with an owner's and with none, on this listener and on the open one.
#[tokio::test(flavor = "multi_thread")]
async fn the_operators_routes_stand_on_a_listener_of_their_own() {
    let world = World::start().await;
    tenant(&world, "other").await;
    let orders = world.database("orders").await;
    world.run(&orders, "create table t(a)").await;
    world.run(&orders, "insert into t values(1)").await;
    let listener = bind(([127, 0, 0, 1], 0).into(), false)
        .await
        .expect("a free port");
    let base = format!("http://{}", listener.local_addr().expect("an address"));
    let (stop, stopped) = oneshot::channel::<()>();
    let app = Arc::clone(&world.app);
    let served = tokio::spawn(serve_operator(listener, app, async {
        let _ = stopped.await;
    }));
    let ask = |method: Method, base: &str, path: &str, token: Option<&str>| {
        let mut request = world
            .client
            .request(method.clone(), format!("{base}{path}"));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if method == Method::POST && !path.contains("flush") && !path.contains("checkpoint") {
            request = request.json(&json!({}));
        }
        read(request)
    };
    let routes = [
        (Method::GET, "/v1/admin/databases"),
        (Method::POST, "/v1/admin/flush"),
        (Method::POST, "/v1/admin/checkpoint"),
        (Method::POST, "/v1/admin/retention"),
        (Method::POST, "/v1/admin/reconcile"),
    ];
    let mut answers: Vec<Json> = Vec::new();
    for (method, path) in routes {
        let none = ask(method.clone(), &base, path, None).await;
        assert_eq!(none.status, 401, "{path}: {none:?}");
        let owner = ask(method.clone(), &base, path, Some(&world.owner)).await;
        assert_eq!(
            (owner.status, owner.code()),
            (403, "insufficient-permissions"),
            "{path}"
        );
        let open = ask(method.clone(), &world.base, path, Some(&world.server)).await;
        assert_eq!((open.status, open.code()), (404, "not-found"), "{path}");
        let got: Got = ask(method, &base, path, Some(&world.server)).await;
        assert_eq!(got.status, 200, "{path}: {got:?}");
        answers.push(got.body);
    }
    let [databases, flushed, checkpointed, retention, reconciled] = &answers[..] else {
        panic!("five answers");
    };
    let names: Vec<_> = databases["items"]
        .as_array()
        .expect("items")
        .iter()
        .collect();
    assert_eq!(names.len(), 1, "{databases}");
    assert_eq!(
        (&names[0]["namespace"], &names[0]["name"]),
        (&json!("default"), &json!("orders"))
    );
    assert!(flushed["commits"].is_u64(), "{flushed}");
    let current = world.get(&format!("{orders}/bookmarks/current")).await;
    assert!(
        current.body["durable_bookmark"].is_string(),
        "flushed: {current:?}"
    );
    // The system database and this one.
    assert!(
        checkpointed["databases"].as_u64().is_some_and(|n| n >= 2),
        "{checkpointed}"
    );
    assert_eq!(
        retention["items"][0]["applied"],
        json!(false),
        "dry by default"
    );
    assert_eq!(
        reconciled["items"][0]["applied"],
        json!(false),
        "dry by default"
    );
    assert_eq!(reconciled["items"][0]["unlisted"], json!([]));
    // A tenant's own surface is not served here.
    let orders = ask(Method::GET, &base, &orders, Some(&world.owner)).await;
    assert_eq!(orders.status, 404);
    drop(stop);
    served.await.expect("it ends in order");
    world.stop().await;
}
