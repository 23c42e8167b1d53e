//! One tenant never reaches another, and no token does more than it was made for.

use reqwest::Method;
use serde_json::json;
use tidelog_server::{Served, hrana_surface, surface};

use crate::world::{World, fill, read};

/// A namespace and a database that are named in a path.
type Place = (&'static str, &'static str);

/// Makes a namespace and gives its owner's token.
pub(crate) async fn tenant(world: &World, name: &str) -> String {
    let request = world.client.post(format!("{}/v1/namespaces", world.base));
    let made = read(
        request
            .bearer_auth(&world.server)
            .json(&json!({ "name": name })),
    )
    .await;
    assert_eq!(made.status, 201, "{made:?}");
    made.body["owner_token"]["token"]
        .as_str()
        .expect("a secret")
        .to_owned()
}

/// Goal: I7 for every route. Method: an owner of one namespace calls every route of another, which has a
/// database, and of one that does not exist; the answers must be the same.
#[tokio::test(flavor = "multi_thread")]
async fn every_route_refuses_a_foreign_owner_and_tells_nothing() {
    let world = World::start().await;
    let stranger = tenant(&world, "stranger").await;
    let database = world.database("orders").await;
    world.run(&database, "create table t(a)").await;
    for served in surface()
        .into_iter()
        .filter(|served| served.path.contains("{ns}"))
    {
        for (namespace, database) in [
            ("default", "orders"),
            ("default", "none"),
            ("nobody", "none"),
        ] {
            let path = fill(served.path, namespace, database);
            let request = world.client.request(
                served.method.parse().expect("a method"),
                format!("{}{path}", world.base),
            );
            let got = read(request.bearer_auth(&stranger)).await;
            assert_eq!(
                (got.status, got.code()),
                (403, "namespace-mismatch"),
                "{served:?}"
            );
            assert!(got.header("db-bookmark").is_none());
            let request = world.client.request(
                served.method.parse().expect("a method"),
                format!("{}{path}", world.base),
            );
            let got = read(request.bearer_auth(&world.server)).await;
            assert_eq!(
                (got.status, got.code()),
                (403, "namespace-mismatch"),
                "server token: {served:?}"
            );
        }
    }
    world.stop().await;
}

/// Goal: RELIABILITY 14 and 15: no route does anything for a caller who has no right to it, and each caller hears why.
/// Method: five thousand calls of every route, Hrana's with them, on databases that are there and that are not, of three
/// namespaces, by tokens that are unknown, expired, revoked, foreign, or a viewer's.
#[tokio::test(flavor = "multi_thread")]
async fn every_route_refuses_who_has_no_right_to_it() {
    const CALLS: usize = 5_000;
    let world = World::start().await;
    world.database("orders").await;
    let stranger = tenant(&world, "stranger").await;
    let expired = json!({ "scopes": ["admin"], "expires_at": "2020-01-01T00:00:00Z" });
    let expired = world.token(expired).await;
    let tokens = "/v1/namespaces/default/tokens";
    let made = world.post(tokens, json!({ "scopes": ["admin"] })).await;
    let revoked = made.body["token"].as_str().expect("a secret").to_owned();
    let path = format!("{tokens}/{}", made.body["id"].as_str().expect("an id"));
    assert_eq!(read(world.ask(Method::DELETE, &path)).await.status, 204);
    let ana = world.ask(Method::PUT, "/v1/namespaces/default/members/ana");
    let ana = read(ana.json(&json!({ "role": "viewer" }))).await;
    assert_eq!(ana.status, 200, "{ana:?}");
    let viewer = json!({ "scopes": ["admin"], "principal": "ana" });
    let viewer = world.token(viewer).await;

    let ask = async |served: &Served, token: &str, (status, code): (u16, &str), place: Place| {
        let path = fill(served.path, place.0, place.1);
        let method = served.method.parse().expect("a method");
        let url = format!("{}{path}", world.base);
        let got = read(world.client.request(method, url).bearer_auth(token)).await;
        let said = got.body["code"].as_str().unwrap_or_default();
        let said = said.to_ascii_lowercase().replace('_', "-");
        assert_eq!((got.status, &*said), (status, code), "{served:?}: {got:?}");
        assert!(got.header("db-bookmark").is_none(), "{served:?}");
        got
    };
    let routes: Vec<Served> = surface().into_iter().chain(hrana_surface()).collect();
    let places = [
        ("default", "orders"),
        ("default", "none"),
        ("stranger", "orders"),
        ("nobody", "none"),
    ];
    let mut calls = 0;
    while calls < CALLS {
        for served in &routes {
            let Some(required) = served.required else {
                continue;
            };
            for place in places {
                for (token, code) in [
                    ("tl_live_unknown", "unauthenticated"),
                    (expired.as_str(), "token-expired"),
                    (revoked.as_str(), "token-revoked"),
                ] {
                    ask(served, token, (401, code), place).await;
                    calls += 1;
                }
                if served.path.contains("{ns}") && place.0 != "stranger" {
                    ask(served, &stranger, (403, "namespace-mismatch"), place).await;
                    calls += 1;
                }
            }
            if required != "viewer" {
                let refused = (403, "insufficient-permissions");
                let got = ask(served, &viewer, refused, places[0]).await;
                let told = &got.body["required"];
                assert!(told.is_null() || told == required, "{served:?}: {got:?}");
                calls += 1;
            }
        }
    }
    let listed = world.get("/v1/namespaces/default/databases").await;
    assert_eq!(listed.body["items"].as_array().map(Vec::len), Some(1));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_names_reach_nothing() {
    let world = World::start().await;
    let stranger = tenant(&world, "stranger").await;
    world.database("orders").await;
    for path in [
        "/v1/namespaces/stranger/databases/..%2F..%2Fdefault%2Fdatabases%2Forders",
        "/v1/namespaces/stranger/databases/..%2Fdefault%2Forders",
        "/v1/namespaces/stranger/databases/%2e%2e",
        "/v1/namespaces/stranger%2F..%2Fdefault/databases/orders",
        "/v1/namespaces/stranger/databases/orders%00",
        "/v1/namespaces/stranger/databases/%ff",
        "/v1/namespaces//databases/orders",
    ] {
        let url = format!("{}{path}", world.base);
        let got = read(world.client.get(url).bearer_auth(&stranger)).await;
        assert!((400..500).contains(&got.status), "{path}: {got:?}");
    }
    world.stop().await;
}

/// Goal (ISO-2): who the tenant is, the credential says and nothing beside it. Method: a stranger names another tenant,
/// which has a database of the same name, in headers, query, body and host, on paths with and without a namespace.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_named_beside_the_credential_counts_for_nothing() {
    let mut config = tidelog_server::config::Preset::Development.config();
    config.http.database_hosts = vec!["db.example".to_owned()];
    let world = World::of(config).await;
    let stranger = tenant(&world, "stranger").await;
    let theirs = world.database("orders").await;
    world.run(&theirs, "create table t(whose)").await;
    world.run(&theirs, "insert into t values('default')").await;
    let post = |path: &str, body: serde_json::Value| {
        let request = world.client.post(format!("{}{path}", world.base));
        request.bearer_auth(&stranger).json(&body)
    };
    let own = "/v1/namespaces/stranger/databases";
    assert_eq!(
        read(post(own, json!({ "name": "orders" }))).await.status,
        201
    );
    let query = format!("{own}/orders/query");
    for sql in ["create table t(whose)", "insert into t values('stranger')"] {
        assert_eq!(read(post(&query, json!({ "sql": sql }))).await.status, 200);
    }
    let select = json!({ "sql": "select whose from t" });
    for (name, value) in [
        ("x-tenant-id", "default"),
        ("x-namespace", "default"),
        ("x-tenant", "default"),
        ("x-tidelog-namespace", "default"),
        (
            "x-original-url",
            "/v1/namespaces/default/databases/orders/query",
        ),
        (
            "x-rewrite-url",
            "/v1/namespaces/default/databases/orders/query",
        ),
        ("host", "orders.default.db.example"),
        ("x-forwarded-host", "orders.default.db.example"),
    ] {
        let got = read(post(&query, select.clone()).header(name, value)).await;
        assert!(!got.body.to_string().contains("default"), "{name}: {got:?}");
        if got.status == 200 {
            assert!(got.body.to_string().contains("stranger"), "{name}: {got:?}");
        }
    }
    for path in [
        format!("{query}?namespace=default"),
        format!("{query}?ns=default&tenant=default"),
    ] {
        let got = read(post(&path, select.clone())).await;
        assert_eq!((got.status, got.code()), (400, "unknown-field"), "{path}");
    }
    for name in ["namespace", "tenant_id", "ns"] {
        let mut body = select.clone();
        body[name] = json!("default");
        let got = read(post(&query, body)).await;
        assert_eq!((got.status, got.code()), (400, "unknown-field"), "{name}");
    }
    let pipeline = json!({ "requests": [
        { "type": "execute", "stmt": { "sql": "select whose from t", "want_rows": true } },
        { "type": "close" },
    ] });
    let hosted = post("/v2/pipeline", pipeline).header("host", "orders.db.example");
    let got = read(hosted.header("x-tenant-id", "default")).await;
    assert_eq!(got.status, 200, "{got:?}");
    let text = got.body.to_string();
    assert!(
        text.contains("stranger") && !text.contains("default"),
        "{text}"
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_reaches_exactly_the_routes_of_its_role() {
    let world = World::start().await;
    let database = world.database("orders").await;
    world.run(&database, "create table t(a)").await;
    let ladder = ["viewer", "analyst", "operator", "admin", "owner"];
    let rank = |role: &str| ladder.iter().position(|one| *one == role);
    for (scope, role) in [
        ("read", "analyst"),
        ("write", "operator"),
        ("admin", "admin"),
    ] {
        let token = world.token(json!({ "scopes": [scope] })).await;
        for served in surface() {
            let Some(needed) = served.required else {
                continue;
            };
            let path = fill(served.path, "default", "none");
            let request = world.client.request(
                served.method.parse().expect("a method"),
                format!("{}{path}", world.base),
            );
            let got = read(request.bearer_auth(&token)).await;
            let allowed = needed != "server" && rank(needed) <= rank(role);
            assert_eq!(got.status != 403, allowed, "{scope} on {served:?}: {got:?}");
            if !allowed {
                assert_eq!(got.code(), "insufficient-permissions");
                assert_eq!(got.body["required"], needed);
            }
        }
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_token_reads_and_does_not_write() {
    let world = World::start().await;
    let database = world.database("orders").await;
    world.run(&database, "create table t(a)").await;
    let token = world
        .token(json!({ "kind": "test", "scopes": ["read"] }))
        .await;
    let run = |sql: &'static str| {
        let request = world.client.post(format!("{}{database}/query", world.base));
        read(request.bearer_auth(&token).json(&json!({ "sql": sql })))
    };
    assert_eq!(run("select * from t").await.status, 200);
    for sql in [
        "insert into t values(1)",
        "drop table t",
        "create table u(a)",
    ] {
        let got = run(sql).await;
        assert_eq!(
            (got.status, got.code()),
            (403, "insufficient-permissions"),
            "{sql}"
        );
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_one_database_sees_no_other() {
    let world = World::start().await;
    world.database("mine").await;
    world.database("theirs").await;
    let token = world
        .token(json!({ "scopes": ["admin"], "databases": ["mine"] }))
        .await;
    let get = |path: &'static str| {
        read(
            world
                .client
                .get(format!("{}{path}", world.base))
                .bearer_auth(&token),
        )
    };
    assert_eq!(
        get("/v1/namespaces/default/databases/mine").await.status,
        200
    );
    let got = get("/v1/namespaces/default/databases/theirs").await;
    assert_eq!((got.status, got.code()), (403, "insufficient-permissions"));
    let listed = get("/v1/namespaces/default/databases").await;
    assert_eq!(listed.body["items"].as_array().map(Vec::len), Some(1));
    let request = world
        .client
        .post(format!("{}/v1/namespaces/default/tokens", world.base));
    let got = read(
        request
            .bearer_auth(&token)
            .json(&json!({ "scopes": ["admin"] })),
    )
    .await;
    assert_eq!(
        got.code(),
        "insufficient-permissions",
        "it makes no wider token than itself"
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_is_refused_at_the_next_request() {
    let world = World::start().await;
    let made = world
        .post(
            "/v1/namespaces/default/tokens",
            json!({ "scopes": ["read"] }),
        )
        .await;
    let (secret, id) = (made.body["token"].as_str(), made.body["id"].as_str());
    let (secret, id) = (
        secret.expect("a secret").to_owned(),
        id.expect("an id").to_owned(),
    );
    let ask = || {
        let url = format!("{}/v1/namespaces/default/databases", world.base);
        read(world.client.get(url).bearer_auth(&secret))
    };
    assert_eq!(ask().await.status, 200);
    let path = format!("/v1/namespaces/default/tokens/{id}");
    assert_eq!(read(world.ask(Method::DELETE, &path)).await.status, 204);
    assert_eq!(ask().await.status, 401);
    let listed = world.get("/v1/namespaces/default/tokens").await;
    assert!(
        !listed.body.to_string().contains(&secret),
        "a list shows no secret"
    );
    let missing = read(world.ask(Method::DELETE, "/v1/namespaces/default/tokens/none")).await;
    assert_eq!((missing.status, missing.code()), (404, "token-not-found"));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_are_made_with_the_server_token_alone() {
    let world = World::start().await;
    let owner = tenant(&world, "acme").await;
    let url = format!("{}/v1/namespaces/acme/databases", world.base);
    let made = read(
        world
            .client
            .post(&url)
            .bearer_auth(&owner)
            .json(&json!({ "name": "orders" })),
    )
    .await;
    assert_eq!(made.status, 201, "{made:?}");
    let got = world
        .post("/v1/namespaces", json!({ "name": "other" }))
        .await;
    assert_eq!((got.status, got.code()), (403, "insufficient-permissions"));
    let request = world
        .client
        .post(format!("{}/v1/namespaces", world.base))
        .bearer_auth(&world.server);
    let got = read(request.json(&json!({ "name": "acme" }))).await;
    assert_eq!((got.status, got.code()), (409, "name-taken"));
    world.stop().await;
}

/// Goal: a database says where it lies and stays there. Method: the server's region, `auto`, another one, a change.
#[tokio::test(flavor = "multi_thread")]
async fn a_region_is_chosen_at_creation_and_stays() {
    let mut config = tidelog_server::config::Preset::Development.config();
    config.region = "weur".to_owned();
    let world = World::of(config).await;
    let databases = "/v1/namespaces/default/databases";
    for (name, region) in [("a", "auto"), ("b", "weur")] {
        let got = world
            .post(databases, json!({ "name": name, "region": region }))
            .await;
        assert_eq!(
            (got.status, &got.body["region"]),
            (201, &json!("weur")),
            "{got:?}"
        );
    }
    let got = world
        .post(databases, json!({ "name": "c", "region": "apac" }))
        .await;
    assert_eq!((got.status, got.code()), (400, "invalid-request"));
    assert_eq!(got.body["errors"][0]["pointer"], "/region");
    for region in ["apac", "weur"] {
        let change = world.ask(Method::PATCH, &format!("{databases}/a"));
        let got = read(change.json(&json!({ "region": region }))).await;
        assert_eq!((got.status, got.code()), (409, "region-fixed"));
    }
    assert_eq!(
        world.get(&format!("{databases}/a")).await.body["region"],
        "weur"
    );
    world.stop().await;
}

/// Goal: a token for one database reaches others by no detour: not by what a body names, what a path without a database
/// lists, or by making itself more. Method: an admin's token for one database, a member's override, everything that works
/// on the whole namespace.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_one_database_reaches_no_other_by_a_detour() {
    let world = World::start().await;
    let (mine, theirs) = (world.database("mine").await, world.database("theirs").await);
    for database in [&mine, &theirs] {
        world.run(database, "create table t(a)").await;
    }
    let limited = json!({ "scopes": ["admin"], "databases": ["mine", "next"] });
    let token = world.token(limited).await;
    let ask = |method: Method, path: &str, body: Option<serde_json::Value>| {
        let url = format!("{}/v1/namespaces/default{path}", world.base);
        let request = world.client.request(method.clone(), url);
        let request = request.bearer_auth(&token);
        let request = if method == Method::POST && body.is_some() {
            request.header("idempotency-key", path.replace('/', "-"))
        } else {
            request
        };
        match body {
            Some(body) => read(request.json(&body)),
            None => read(request),
        }
    };
    let post = Method::POST;
    // A fork of another database would bring its rows along.
    let seed = json!({ "name": "next", "seed": { "database": "theirs" } });
    let got = ask(post.clone(), "/databases", Some(seed)).await;
    assert_eq!(
        (got.status, got.code()),
        (403, "insufficient-permissions"),
        "{got:?}"
    );
    let seed = json!({ "name": "next", "seed": { "database": "mine" } });
    let got = ask(post.clone(), "/databases?", Some(seed)).await;
    assert_eq!(got.status, 201, "{got:?}");

    let verify = json!({ "level": "objects" });
    let own = world
        .post(&format!("{mine}/verifications"), verify.clone())
        .await;
    let foreign = world.post(&format!("{theirs}/verifications"), verify).await;
    let id = |got: &crate::world::Got| {
        let id = &got.body["operation"]["id"];
        id.as_str().expect("an id").to_owned()
    };
    let (own, foreign) = (id(&own), id(&foreign));
    let got = ask(Method::GET, &format!("/operations/{own}"), None).await;
    assert_eq!(got.status, 200, "{got:?}");
    for (method, end) in [
        (Method::GET, ""),
        (Method::GET, "/events"),
        (post.clone(), "/cancel"),
    ] {
        let got = ask(method, &format!("/operations/{foreign}{end}"), None).await;
        assert_eq!(
            (got.status, got.code()),
            (404, "operation-not-found"),
            "{end}"
        );
    }
    let listed = ask(Method::GET, "/operations", None).await;
    let items = listed.body["items"].as_array().expect("items");
    assert!(!items.is_empty());
    for item in items {
        assert_ne!(item["links"]["database"], "theirs", "{item}");
    }
    let log = ask(Method::GET, "/audit?limit=500", None).await;
    let lines = log.body["items"].as_array().expect("items");
    assert!(
        lines
            .iter()
            .any(|line| line["details"]["database"] == "mine")
    );
    for line in lines {
        let of = &line["details"]["database"];
        assert!(of == "mine" || of == "next", "{line}");
    }

    let made = world
        .post(
            "/v1/namespaces/default/tokens",
            json!({ "scopes": ["read"] }),
        )
        .await;
    let wide = made.body["id"].as_str().expect("an id");
    let owners = world.get("/v1/namespaces/default/tokens").await;
    let owner = owners.body["items"].as_array().expect("items").iter();
    let owner = owner.filter(|one| one["role"] == "owner");
    let owner = owner.map(|one| one["id"].as_str().expect("an id")).next();
    let owner = owner.expect("the owner's").to_owned();
    for (method, path, body) in [
        (Method::DELETE, format!("/tokens/{wide}"), None),
        (
            post.clone(),
            format!("/tokens/{wide}/rotate"),
            Some(json!({})),
        ),
        (Method::DELETE, format!("/tokens/{owner}"), None),
        (Method::GET, "/members".to_owned(), None),
        (
            Method::PUT,
            "/members/ana".to_owned(),
            Some(json!({ "role": "admin" })),
        ),
        (Method::DELETE, "/members/ana".to_owned(), None),
        (post, "/members/ana/revoke".to_owned(), None),
        (
            Method::PUT,
            "/maintenance".to_owned(),
            Some(json!({ "enabled": true })),
        ),
    ] {
        let got = ask(method.clone(), &path, body).await;
        assert_eq!(
            (got.status, got.code()),
            (403, "insufficient-permissions"),
            "{method} {path}: {got:?}"
        );
    }
    // An admin's token for everything takes no owner's away either.
    let admin = world.token(json!({ "scopes": ["admin"] })).await;
    let url = format!("{}/v1/namespaces/default/tokens/{owner}", world.base);
    let got = read(world.client.delete(url).bearer_auth(&admin)).await;
    assert_eq!((got.status, &got.body["required"]), (403, &json!("owner")));
    world.run(&mine, "select 1").await;
    world.stop().await;
}

/// Goal: a member's other role in a database counts wherever a call concerns that database. Method: an admin who is an
/// analyst in production makes no fork of it, and cancels nothing there.
#[tokio::test(flavor = "multi_thread")]
async fn a_members_role_in_a_database_counts_behind_paths_that_do_not_name_it() {
    let world = World::start().await;
    let live = world.database("live").await;
    world.run(&live, "create table t(a)").await;
    let member = world.ask(Method::PUT, "/v1/namespaces/default/members/ana");
    let role = json!({ "role": "admin", "databases": { "live": "analyst" } });
    assert_eq!(read(member.json(&role)).await.status, 200);
    let ana = world
        .token(json!({ "scopes": ["admin"], "principal": "ana" }))
        .await;
    let post = |path: &str, body: serde_json::Value| {
        let url = format!("{}/v1/namespaces/default{path}", world.base);
        read(world.client.post(url).bearer_auth(&ana).json(&body))
    };
    let seed = json!({ "name": "copy", "seed": { "database": "live" } });
    let got = post("/databases", seed).await;
    assert_eq!((got.status, &got.body["required"]), (403, &json!("admin")));
    let made = world.keyed(&format!("{live}/archives"), json!({})).await;
    let archive = &made.body["archive"]["id"];
    let seed = json!({ "name": "copy", "seed": { "archive": archive } });
    let got = post("/databases", seed).await;
    assert_eq!((got.status, &got.body["required"]), (403, &json!("admin")));
    let id = made.body["operation"]["id"].as_str().expect("an id");
    let url = format!(
        "{}/v1/namespaces/default/operations/{id}/cancel",
        world.base
    );
    let got = read(world.client.post(url).bearer_auth(&ana)).await;
    assert_eq!(
        (got.status, &got.body["required"]),
        (403, &json!("operator"))
    );
    world.stop().await;
}
