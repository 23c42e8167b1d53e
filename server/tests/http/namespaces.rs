//! The end of a namespace over HTTP, and who may bring it about.

use reqwest::{Method, RequestBuilder};
use serde_json::{Value as Json, json};

use crate::tenants::tenant;
use crate::world::{World, read};

const ACME: &str = "/v1/namespaces/acme";

struct Owner<'a> {
    world: &'a World,
    token: String,
}

impl Owner<'_> {
    fn ask(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}{ACME}{path}", self.world.base);
        self.world
            .client
            .request(method, url)
            .bearer_auth(&self.token)
    }

    async fn database(&self, name: &str) {
        let made = self.ask(Method::POST, "/databases");
        let made = read(made.json(&json!({ "name": name }))).await;
        assert_eq!(made.status, 201, "{made:?}");
        self.run(name, "create table t(a)").await;
    }

    async fn run(&self, name: &str, sql: &str) {
        let query = self.ask(Method::POST, &format!("/databases/{name}/query"));
        let got = read(query.json(&json!({ "sql": sql }))).await;
        assert_eq!(got.status, 200, "{got:?}");
    }
}

/// Goal: a deleted namespace serves nothing but what shows it, ends it or brings it back, to whichever of its tokens; it
/// comes back whole; and only an owner decides. Method: every route of the surface while it is deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_namespace_serves_nothing_until_it_is_brought_back() {
    let world = World::start().await;
    let token = tenant(&world, "acme").await;
    let acme = Owner {
        world: &world,
        token,
    };
    acme.database("orders").await;
    let admin = acme.ask(Method::POST, "/tokens");
    let admin = read(admin.json(&json!({ "scopes": ["admin"] }))).await;
    let admin = admin.body["token"].as_str().expect("a secret").to_owned();
    for path in ["", "?purge=true"] {
        let url = format!("{}{ACME}{path}", world.base);
        let got = read(world.client.delete(&url).bearer_auth(&admin)).await;
        assert_eq!((got.status, &got.body["required"]), (403, &json!("owner")));
    }
    let got = read(acme.ask(Method::DELETE, "")).await;
    assert_eq!((got.status, &got.body["state"]), (200, &json!("deleted")));
    assert!(got.body["purged_from"].is_string(), "{got:?}");
    let again = read(acme.ask(Method::DELETE, "")).await;
    assert_eq!((again.status, again.code()), (410, "namespace-deleted"));
    let mut closed = 0;
    for served in tidelog_server::surface() {
        let open = ["/v1/namespaces/{ns}", "/v1/namespaces/{ns}/undelete"].contains(&served.path)
            || served.path.contains("/operations");
        if !served.path.contains("{ns}") || open {
            continue;
        }
        let path = crate::world::fill(served.path, "acme", "orders");
        let method: Method = served.method.parse().expect("a method");
        let request = world
            .client
            .request(method, format!("{}{path}", world.base));
        let got = read(request.bearer_auth(&acme.token)).await;
        assert_eq!(
            (got.status, got.code()),
            (410, "namespace-deleted"),
            "{served:?}"
        );
        closed += 1;
    }
    assert!(closed > 50, "{closed} routes");
    let pipeline = world
        .client
        .post(format!("{}/acme/orders/v3/pipeline", world.base));
    let body = json!({ "requests": [{ "type": "close" }] });
    let got = read(pipeline.bearer_auth(&acme.token).json(&body)).await;
    assert_eq!(got.status, 410, "{got:?}");
    let url = format!("{}{ACME}", world.base);
    let got = read(world.client.get(&url).bearer_auth(&admin)).await;
    assert_eq!((got.status, &got.body["state"]), (200, &json!("deleted")));

    let got = read(acme.ask(Method::POST, "/undelete")).await;
    assert_eq!((got.status, &got.body["state"]), (200, &json!("ready")));
    assert_eq!(got.body["databases_brought_back"], 1);
    acme.run("orders", "insert into t values(1)").await;
    world.stop().await;
}

/// Goal: a purge says what it did and when the last byte goes, is on record before it acts, and takes the tokens along.
#[tokio::test(flavor = "multi_thread")]
async fn a_purged_namespace_is_told_and_its_name_is_free() {
    let world = World::start().await;
    let token = tenant(&world, "acme").await;
    let acme = Owner {
        world: &world,
        token,
    };
    acme.database("orders").await;
    acme.database("users").await;
    let hold = |on: bool| {
        let patch = acme.ask(Method::PATCH, "/databases/users");
        read(patch.json(&json!({ "delete_protection": on })))
    };
    assert_eq!(hold(true).await.status, 200);
    let got = read(acme.ask(Method::DELETE, "?purge=true")).await;
    assert_eq!(
        (got.status, got.code()),
        (409, "database-protected"),
        "{got:?}"
    );
    assert_eq!(got.body["databases"], json!(["users"]));
    assert_eq!(hold(false).await.status, 200);
    let got = read(acme.ask(Method::DELETE, "?purge=true")).await;
    assert_eq!(got.status, 200, "{got:?}");
    assert_eq!(
        (&got.body["purged"], &got.body["databases_purged"]),
        (&json!("acme"), &json!(2))
    );
    for name in ["objects_gone_at", "audit_log_gone_at", "copies"] {
        assert!(got.body[name].is_string(), "{name}: {got:?}");
    }
    let none_kept = json!({ "kept": false, "gone_at": null });
    assert_eq!(got.body["old_versions"], none_kept);
    let id = got.body["operation"]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let gone = read(acme.ask(Method::GET, "")).await;
    assert_eq!((gone.status, gone.code()), (401, "unauthenticated"));
    // Who runs the server still finds how it ended, and when.
    let ask = |path: &str, token: &str| {
        let url = format!("{}{path}", world.base);
        read(world.client.get(url).bearer_auth(token))
    };
    let told = ask(&format!("/v1/operations/{id}"), &world.server).await;
    assert_eq!(
        (told.status, &told.body["state"]),
        (200, &json!("succeeded"))
    );
    assert_eq!(
        ask(&format!("/v1/operations/{id}"), &world.owner)
            .await
            .status,
        403
    );
    let log = ask("/v1/audit?action=admin.namespace_purge", &world.server).await;
    let lines = log.body["items"].as_array().expect("items");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["resource_id"], "acme");
    // An operation of a namespace that stands is its own.
    let verified = world.database("mine").await;
    let verified = world
        .post(
            &format!("{verified}/verifications"),
            json!({ "level": "objects" }),
        )
        .await;
    let own = verified.body["operation"]["id"].as_str().expect("an id");
    let got = ask(&format!("/v1/operations/{own}"), &world.server).await;
    assert_eq!((got.status, got.code()), (404, "operation-not-found"));
    let anew = tenant(&world, "acme").await;
    let url = format!("{}{ACME}/databases", world.base);
    let got = read(world.client.get(url).bearer_auth(anew)).await;
    assert_eq!(got.body["items"], Json::Array(Vec::new()));
    world.stop().await;
}
