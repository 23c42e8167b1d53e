//! Answers that belong to one route each: what is asked again or in part, names that are taken or none, what stands in
//! the way of one call and of no other.

use reqwest::Method;
use serde_json::{Value as Json, json};
use tidelog_engine::travel::labels::LABELS_MAX;

use crate::tenants::tenant;
use crate::world::{Got, World, read};

const DATABASES: &str = "/v1/namespaces/default/databases";

fn is(got: &Got, status: u16, code: &str) {
    assert_eq!((got.status, got.code()), (status, code), "{got:?}");
}

fn bookmark(got: &Got) -> Json {
    got.body["bookmark"].clone()
}

async fn patch(world: &World, path: &str, body: Json) -> Got {
    read(world.ask(Method::PATCH, path).json(&body)).await
}

/// Changes settings, which must be fine.
async fn set(world: &World, path: &str, body: Json) {
    let got = patch(world, path, body).await;
    assert_eq!(got.status, 200, "{got:?}");
}

async fn put(world: &World, path: &str, body: Json) -> Got {
    read(world.ask(Method::PUT, path).json(&body)).await
}

async fn delete(world: &World, path: &str) -> Got {
    read(world.ask(Method::DELETE, path)).await
}

/// The file of a database as it is.
async fn exported(world: &World, database: &str) -> Vec<u8> {
    let export = world.ask(Method::GET, &format!("{database}/export"));
    let answer = export.send().await.expect("an answer");
    assert_eq!(answer.status().as_u16(), 200);
    answer.bytes().await.expect("a file").to_vec()
}

/// Goal: whoever asks again for what he began is told how it stands; what was made is read, in part as well. Method: a fork
/// and an archive under a key, twice, the second time once it has ended; the archive's content, its events, a member.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_begun_is_told_of_and_what_was_made_is_read() {
    let world = World::start().await;
    let db = world.database("orders").await;
    world.run(&db, "create table t(a)").await;
    for (path, body) in [
        ("forks", json!({ "name": "copy" })),
        ("archives", json!({})),
    ] {
        let ask = || {
            let ask = world.ask(Method::POST, &format!("{db}/{path}"));
            ask.header("idempotency-key", path).json(&body)
        };
        let first = read(ask().header("prefer", "wait=0")).await;
        assert!(matches!(first.status, 201 | 202), "{first:?}");
        let again = loop {
            let again = read(ask()).await;
            if again.status != 202 {
                break again;
            }
        };
        assert!(matches!(again.status, 200 | 201), "{again:?}");
        let id = |got: &Got| got.body["operation"]["id"].clone();
        assert_eq!(id(&first), id(&again), "{again:?}");
    }
    let archives = world.get(&format!("{db}/archives")).await;
    let items = archives.body["items"].as_array().expect("archives");
    assert_eq!(items.len(), 1, "{archives:?}");
    let id = items[0]["id"].as_str().expect("an id");
    let content = || world.ask(Method::GET, &format!("{db}/archives/{id}/content"));
    assert_eq!(read(content()).await.status, 200);
    let part = read(content().header("range", "bytes=0-3")).await;
    assert_eq!(
        (part.status, part.header("content-length")),
        (206, Some("4"))
    );

    let member = "/v1/namespaces/default/members/somebody";
    let made = put(&world, member, json!({ "role": "viewer" })).await;
    assert!(matches!(made.status, 200 | 201), "{made:?}");
    let shown = world.get(member).await;
    assert_eq!(
        (shown.status, &shown.body["role"]),
        (200, &json!("viewer")),
        "{shown:?}"
    );

    // Who may see one database alone sees the operations of no other.
    let operations = "/v1/namespaces/default/operations";
    let listed = world.get(&format!("{operations}?type=archive")).await;
    let id = listed.body["items"][0]["id"]
        .as_str()
        .expect("an operation");
    let events = format!("{operations}/{id}/events");
    assert_eq!(read(world.ask(Method::GET, &events)).await.status, 200);
    let limited = json!({ "scopes": ["read"], "databases": ["copy"] });
    let limited = world.token(limited).await;
    for path in [format!("{operations}/{id}"), events] {
        let url = format!("{}{path}", world.base);
        let got = read(world.client.get(url).bearer_auth(&limited)).await;
        is(&got, 404, "operation-not-found");
    }
    world.stop().await;
}

/// Goal: a name that is none is refused by whatever makes something of it, and one that is taken by whatever would take
/// it, before anything is done.
#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_none_or_taken_are_refused() {
    let world = World::start().await;
    let db = world.database("orders").await;
    let here = bookmark(&world.run(&db, "create table t(a)").await);
    let file = exported(&world, &db).await;
    let space = async |name: &str| {
        let made = world.client.post(format!("{}/v1/namespaces", world.base));
        read(
            made.bearer_auth(&world.server)
                .json(&json!({ "name": name })),
        )
        .await
    };
    is(&space("NO").await, 422, "name-invalid");
    let alias = world.ask(Method::POST, "/v1/namespaces/orders/fork/NO");
    is(&read(alias).await, 422, "name-invalid");
    let branch = async |name: &str| {
        let body = json!({ "target": { "bookmark": here } });
        put(&world, &format!("{db}/branches/{name}"), body).await
    };
    is(&branch("a b").await, 422, "name-invalid");
    let import = world.ask_keyed(&format!("{DATABASES}/NO/import"));
    is(&read(import.body(file)).await, 422, "name-invalid");
    let restore = async |preserve: &str| {
        let body = json!({ "target": { "bookmark": here }, "preserve_as": preserve });
        world.keyed(&format!("{db}/restores"), body).await
    };
    is(&restore(&"x".repeat(81)).await, 422, "name-invalid");

    let label = json!({ "name": "then", "bookmark": here });
    let made = world.post(&format!("{db}/snapshots"), label).await;
    assert_eq!(made.status, 201, "{made:?}");
    is(&restore("then").await, 409, "name-taken");
    // What a branch would be called may be somebody's database.
    let made = branch("dev").await;
    assert_eq!(made.status, 201, "{made:?}");
    let name = made.body["database"]["name"].as_str().expect("a name");
    assert_eq!(
        delete(&world, &format!("{DATABASES}/{name}")).await.status,
        204
    );
    world.database(name).await;
    is(&branch("dev").await, 409, "name-taken");
    assert_eq!(delete(&world, &db).await.status, 204);
    world.database("orders").await;
    let back = world.ask(Method::POST, &format!("{db}/undelete"));
    is(&read(back).await, 409, "name-taken");
    world.stop().await;
}

/// Goal: what is not there is not there for any call that names it in a body or a query.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_there_is_named_in_vain() {
    let world = World::start().await;
    let seed = json!({ "name": "copy", "seed": { "database": "none" } });
    is(
        &world.keyed(DATABASES, seed).await,
        404,
        "database-not-found",
    );
    let none = format!("{DATABASES}/none");
    let got = world
        .get(&format!("{none}/bookmarks?timestamp=2026-01-01T00:00:00Z"))
        .await;
    is(&got, 404, "database-not-found");
    let back = format!("{none}/time_travel/restore?timestamp=2026-01-01T00:00:00Z");
    let got = world.keyed(&back, json!({})).await;
    assert_eq!(got.status, 404, "{got:?}");
    let kept = world.client.post(format!("{}/v1/retention", world.base));
    let kept = kept.bearer_auth(&world.server);
    let got = read(kept.json(&json!({ "database": "default/none" }))).await;
    is(&got, 404, "database-not-found");
    world.stop().await;
}

/// Goal: what is held, protected, blocked or too large stands in the way of every call that it is there to stop.
#[tokio::test(flavor = "multi_thread")]
async fn what_stands_in_the_way_is_named() {
    let world = World::start().await;
    let db = world.database("orders").await;
    let first = bookmark(&world.get(&format!("{db}/bookmarks/current")).await);
    let here = bookmark(&world.run(&db, "create table t(a)").await);
    world
        .run(&db, "insert into t values(zeroblob(100000))")
        .await;
    let file = exported(&world, &db).await;

    let until = "2099-01-01T00:00:00Z";
    let body = json!({ "retain_until": until, "format": "sql" });
    let made = world.keyed(&format!("{db}/archives"), body).await;
    assert_eq!(made.status, 201, "{made:?}");
    let archive = made.body["archive"]["id"].as_str().expect("an id");
    let sooner = json!({ "retain_until": "2098-01-01T00:00:00Z" });
    let got = patch(&world, &format!("{db}/archives/{archive}"), sooner).await;
    is(&got, 409, "archive-held");
    // A text is for other programs.
    let seed = json!({ "name": "text", "seed": { "archive": archive } });
    is(&world.keyed(DATABASES, seed).await, 422, "import-invalid");
    let body = json!({ "target": { "archive": archive } });
    let got = world.keyed(&format!("{db}/restores"), body).await;
    is(&got, 422, "import-invalid");

    let branch = format!("{db}/branches/dev");
    let made = put(&world, &branch, json!({ "target": { "bookmark": here } })).await;
    assert_eq!(made.status, 201, "{made:?}");
    let dev = format!(
        "{DATABASES}/{}",
        made.body["database"]["name"].as_str().expect("a name")
    );
    set(&world, &dev, json!({ "delete_protection": true })).await;
    is(&delete(&world, &branch).await, 409, "database-protected");

    // What a fork shares with its parent is the parent's to keep.
    let pinned = json!({ "name": "theirs", "bookmark": first, "pin": true });
    let got = world.post(&format!("{dev}/snapshots"), pinned).await;
    assert_eq!(got.code(), "refused", "{got:?}");

    set(&world, &db, json!({ "block_reads": true })).await;
    is(
        &world.get(&format!("{db}/export")).await,
        403,
        "database-blocked",
    );
    set(&world, &db, json!({ "block_reads": false })).await;
    let import = async || {
        let import = world.ask_keyed(&format!("{db}/import?replace=true"));
        read(import.body(file.clone())).await
    };
    set(&world, &db, json!({ "block_writes": true })).await;
    is(&import().await, 403, "database-read-only");
    let free = json!({ "block_writes": false, "size_limit": 65536 });
    set(&world, &db, free).await;
    is(&import().await, 507, "quota-exceeded");
    world.stop().await;
}

/// Goal: a namespace does not go while an archive in it is held, and does not come back where its name is taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_goes_and_comes_as_its_archives_and_its_name_allow() {
    let world = World::start().await;
    let owner = tenant(&world, "acme").await;
    let ask = |method: Method, path: &str| {
        let url = format!("{}/v1/namespaces/acme{path}", world.base);
        world.client.request(method, url).bearer_auth(&owner)
    };
    let made = read(ask(Method::POST, "/databases").json(&json!({ "name": "orders" }))).await;
    assert_eq!(made.status, 201, "{made:?}");
    let held = ask(Method::POST, "/databases/orders/archives").header("idempotency-key", "k");
    let held = read(held.json(&json!({ "legal_hold": true }))).await;
    assert_eq!(held.status, 201, "{held:?}");
    let end = async |more: &str| {
        let url = format!("{}/v1/namespaces/acme{more}", world.base);
        read(world.client.delete(url).bearer_auth(&owner)).await
    };
    is(&end("?purge=true").await, 409, "archive-held");
    let gone = end("").await;
    assert!(matches!(gone.status, 200 | 202 | 204), "{gone:?}");
    world.stop().await;
}

/// Goal: a restore that is to keep what it replaces under a name is refused where no name is left, before it acts.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_cannot_keep_the_present_does_not_begin() {
    let world = World::start().await;
    let db = world.database("orders").await;
    let here = bookmark(&world.run(&db, "create table t(a)").await);
    let now = bookmark(&world.run(&db, "insert into t values(1)").await);
    for number in 0..LABELS_MAX {
        let label = json!({ "name": format!("l{number}"), "bookmark": here });
        let made = world.post(&format!("{db}/snapshots"), label).await;
        assert_eq!(made.status, 201, "{made:?}");
    }
    let body = json!({ "target": { "bookmark": here }, "preserve_as": "then" });
    let refused = world.keyed(&format!("{db}/restores"), body).await;
    is(&refused, 507, "quota-exceeded");
    let stands = world.get(&db).await;
    assert_eq!(bookmark(&stands), now);
    world.stop().await;
}

/// Goal: a statement, a batch and an archive that a restore took back are not answered from what was kept, by whatever
/// name the database is called; too many restores are refused to every call that makes one.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_restore_took_back_is_not_replayed_by_any_name() {
    let world = World::start().await;
    let db = world.database("orders").await;
    let here = bookmark(&world.run(&db, "create table t(a)").await);
    let insert = json!({ "sql": "insert into t values(1)" });
    let batch = json!({ "statements": [insert] });
    let calls = [
        ("/v1/db/default/orders/query".to_owned(), insert.clone()),
        ("/v1/db/default/orders/batch".to_owned(), batch.clone()),
        (format!("{db}/batch"), batch),
    ];
    let send = async |number: usize| {
        let (path, body) = &calls[number];
        let call = world.ask(Method::POST, path);
        read(
            call.header("idempotency-key", format!("k{number}"))
                .json(body),
        )
        .await
    };
    for number in 0..calls.len() {
        assert_eq!(send(number).await.status, 200);
    }
    let restores = format!("{db}/restores");
    let target = json!({ "target": { "bookmark": here } });
    let done = world.keyed(&restores, target.clone()).await;
    assert_eq!(done.status, 200, "{done:?}");
    for number in 0..calls.len() {
        is(&send(number).await, 409, "idempotency-result-rolled-back");
    }
    let id = done.body["restore"]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let undo = format!("{restores}/{id}/undo");
    let got = world.keyed(&undo, json!({ "force": "now" })).await;
    is(&got, 422, "bookmark-malformed");
    for _ in 0..20 {
        let done = world.keyed(&restores, target.clone()).await;
        if done.status == 429 {
            break;
        }
        assert_eq!(done.status, 200, "{done:?}");
    }
    let now = world.get(&format!("{db}/bookmarks/current")).await;
    let forced = json!({ "force": now.body["bookmark"] });
    is(
        &world.keyed(&undo, forced).await,
        429,
        "restore-rate-limited",
    );
    let bookmark = here.as_str().expect("a bookmark");
    let back = format!("{db}/time_travel/restore?bookmark={bookmark}");
    let got = world.keyed(&back, json!({})).await;
    assert_eq!(got.status, 429, "{got:?}");
    world.stop().await;
}
