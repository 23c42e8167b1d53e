//! Real buckets of a kind: that keep versions, with Object Lock, with a policy that forbids, with the least rights, with
//! the store's own encryption. The real server and the real commands on the S3 servers of a run (`scripts/test`); which
//! of them checks what is in docs/operations.md.

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use reqwest::StatusCode;
use serde_json::{Value as Json, json};
use tidelog_archive::store::{Store, StoreError, StoreOptions, StoreSettings};
use tidelog_testkit::buckets::{Buckets, Version};
use tidelog_testkit::proxy::Seen;
use tidelog_testkit::s3;
use tidelog_testkit::sealing::KEYS;
use tidelog_testkit::server::{Launch, PATIENCE, Server, binary, deadline};

/// The rights of docs/security.md, where a policy that gives less is refused by the command that names the right.
const RIGHTS: [&str; 5] = [
    "s3:GetObject",
    "s3:PutObject",
    "s3:DeleteObject",
    "s3:AbortMultipartUpload",
    "s3:ListBucket",
];

/// Runs the program with the test master key: whether it went well, and the document it answers.
fn tidelog(arguments: &[&str], environment: &[(&str, &str)]) -> (bool, Json) {
    let output = Command::new(binary())
        .args(arguments)
        .arg("--json")
        .env(KEYS.0, KEYS.1)
        .envs(environment.iter().copied())
        .output()
        .expect("the program runs");
    let well = output.status.success();
    let said = if well { output.stdout } else { output.stderr };
    let text = String::from_utf8_lossy(&said).into_owned();
    let document = serde_json::from_str(&text).unwrap_or(Json::String(text));
    (well, document)
}

fn check(store: &str, environment: &[(&str, &str)]) -> (bool, Json) {
    tidelog(&["store", "check", "--store", store], environment)
}

/// A server on a data folder of its own, sealed whatever the run is.
fn launch(home: &tempfile::TempDir, store: &str) -> Launch {
    Launch::on(home.path().join("data"), store.to_owned())
        .with(&["--take-over", "all"])
        .with_environment(&[KEYS, ("TIDELOG_OLD_VERSIONS_DAYS", "3")])
}

async fn posted(server: &Server, path: &str, body: Json) {
    let answer = server.address().post(path, &body).await;
    let (status, answer) = answer.expect("a server that runs answers");
    assert!(status.is_success(), "{path}: {status} {answer}");
}

async fn archived(server: &Server) {
    let body = json!({ "format": "sqlite" });
    let address = server.address();
    let made = address.begin("databases/goes/archives", "one", &body);
    let (status, said) = made.await.expect("a server that runs answers");
    assert_eq!(status, StatusCode::CREATED, "{said}");
}

async fn rows(server: &Server, database: &str, from: usize) {
    for row in from..from + 3 {
        let sql = format!("insert into t values({row}, randomblob(3000))");
        let body = json!({ "sql": sql, "durability": "remote" });
        posted(server, &format!("databases/{database}/query"), body).await;
    }
}

/// The life of a server: two databases with commits, a death in the midst, a start on the same folder. One of the
/// databases is purged, the other stays and is whole; answers what the purge said, and the purged one's id.
async fn life(launch: &Launch) -> (Json, String) {
    let server = launch.start().await;
    for name in ["goes", "stays"] {
        posted(&server, "databases", json!({ "name": name })).await;
        let body =
            json!({ "sql": "create table t(a integer primary key, b)", "durability": "remote" });
        posted(&server, &format!("databases/{name}/query"), body).await;
        rows(&server, name, 1).await;
    }
    archived(&server).await;
    server.kill();
    let server = launch.start().await;
    let said = server.address().get("databases/goes").await;
    let id = said.expect("an answer").1["id"].as_str().map(str::to_owned);
    rows(&server, "goes", 4).await;
    rows(&server, "stays", 4).await;
    let address = server.address();
    let counted = address.rows("stays", "select count(*) from t").await;
    assert_eq!(counted, json!([[6]]));
    let purged = purge(&server).await;
    assert_eq!(purged.0, StatusCode::OK, "{}", purged.1);
    server.stop().await;
    let (whole, said) = tidelog(
        &["verify", "--store", launch.store(), "--level", "restore"],
        &[],
    );
    assert!(whole, "{said}");
    (purged.1, id.expect("a database has an id"))
}

async fn purge(server: &Server) -> (StatusCode, Json) {
    let purged = server.address().delete("databases/goes?purge=true").await;
    purged.expect("a server that runs answers")
}

/// The versions of each object, markers left out, newest state told by whether one is read without a version.
fn by_key(versions: &[Version]) -> BTreeMap<&str, Vec<&Version>> {
    let mut found: BTreeMap<&str, Vec<&Version>> = BTreeMap::new();
    for version in versions.iter().filter(|version| !version.marker) {
        found.entry(&version.key).or_default().push(version);
    }
    found
}

/// What is replaced, by docs/formats.md; the probe tries replacing on objects of its own.
fn is_replaced(key: &str) -> bool {
    key == "history/root"
        || key.starts_with("history/probe/")
        || ["/manifest", "/key", "/state"]
            .iter()
            .any(|end| key.ends_with(end))
}

/// What lives on of a purged database in a bucket that keeps versions: each of its objects, of which none is found but
/// the tombstone and the key object without keys, and the key object as it was.
fn lives_on(versions: &[Version], id: &str) {
    let of_it = format!("/{id}/");
    let all = by_key(versions);
    let old: Vec<_> = all.iter().filter(|(key, _)| key.contains(&of_it)).collect();
    assert!(old.len() > 2, "objects were stored: {old:?}");
    for (key, versions) in old {
        let stays = key.ends_with("/manifest") || key.ends_with("/key");
        assert_eq!(
            versions.iter().any(|version| version.latest),
            stays,
            "{key}"
        );
        assert!(!key.ends_with("/key") || versions.len() > 1, "{versions:?}");
    }
}

/// Goal: a bucket that keeps versions serves as any other, and nobody takes a purge in it for more than it is. Method:
/// buckets that keep them, keep none, and kept them once; a server's life in the first; what lies there afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_keeps_versions_says_so_and_serves_as_any() {
    if !s3::notice() {
        return;
    }
    for url in s3::stores() {
        let buckets = Buckets::on(&url);
        let bucket = buckets.plain().await;
        let (fit, said) = check(&buckets.url(&bucket), &[]);
        assert!(fit, "{url}: {said}");
        assert_eq!(said["versioned"], false, "{url}: {said}");

        let bucket = buckets.versioned().await;
        let store = buckets.url(&bucket);
        let (fit, said) = check(&store, &[]);
        assert!(fit && said["versioned"] == true, "{url}: {said}");
        let home = tempfile::tempdir().expect("a temporary folder");
        let (said, id) = life(&launch(&home, &store)).await;
        let old = &said["old_versions"];
        assert_eq!(old["kept"], true, "{said}");
        let (gone, now) = (old["gone_at"].as_str(), said["objects_gone_at"].as_str());
        let (gone, now) = (gone.expect("a time"), now.expect("a time"));
        assert!(gone[..10] > now[..10], "three days more: {said}");
        let versions = buckets.versions(&bucket).await;
        lives_on(&versions, &id);

        // Suspended, it keeps what it kept; ministack does not tell such a bucket from one that never did.
        if Buckets::checks_rights(&url) {
            buckets.set_versions(&bucket, "Suspended").await;
            let (fit, said) = check(&store, &[]);
            assert!(fit && said["versioned"] == true, "{url}: {said}");
        }
    }
}

/// Goal: Object Lock stands in nothing's way, and holds. Method: a server's life in a bucket whose versions nobody can
/// remove for a day; afterwards what is never replaced has one version, and none of them can be destroyed.
#[tokio::test(flavor = "multi_thread")]
async fn object_lock_holds_and_stands_in_nothings_way() {
    if !s3::notice() {
        return;
    }
    for url in s3::stores() {
        let buckets = Buckets::on(&url);
        let bucket = buckets.locked().await;
        let store = buckets.url(&bucket);
        let (fit, said) = check(&store, &[]);
        assert!(fit && said["versioned"] == true, "{url}: {said}");
        let home = tempfile::tempdir().expect("a temporary folder");
        let (said, id) = life(&launch(&home, &store)).await;
        assert_eq!(said["old_versions"]["kept"], true, "{said}");
        let versions = buckets.versions(&bucket).await;
        lives_on(&versions, &id);
        for (key, versions) in by_key(&versions) {
            assert!(versions.len() == 1 || is_replaced(key), "{versions:?}");
            // ministack does not lock what was uploaded in parts.
            if !Buckets::checks_rights(&url) && key.ends_with("-parts") {
                continue;
            }
            let status = buckets.destroy(&bucket, versions[0]).await;
            assert_eq!(status, 403, "{url}: {key} can be destroyed");
        }
    }
}

/// Goal: a bucket whose policy forbids deletion, for one key of many as for all, is met by name: the check says which
/// right lacks, a purge says that it may not, and ends once it may. Method: policies on the server that checks them.
#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_forbids_is_met_by_name() {
    for url in s3::stores()
        .into_iter()
        .filter(|url| Buckets::checks_rights(url))
    {
        let buckets = Buckets::on(&url);
        let bucket = buckets.plain().await;
        let store = buckets.url(&bucket);
        let user = buckets.user().await;
        buckets.permit(&user, &policy(&bucket, "").0).await;
        let environment = user.environment();
        for right in ["s3:DeleteObject", "s3:AbortMultipartUpload", "s3:PutObject"] {
            buckets.forbid(&bucket, right, &["history/"]).await;
            lacks(&store, &environment, Some(right)).await;
        }
        buckets.allow(&bucket).await;
        lacks(&store, &environment, None).await;

        let home = tempfile::tempdir().expect("a temporary folder");
        let launch = launch(&home, &store).with_environment(&environment);
        let server = launch.start().await;
        posted(&server, "databases", json!({ "name": "goes" })).await;
        let body = json!({ "sql": "create table t(a, b)", "durability": "remote" });
        posted(&server, "databases/goes/query", body).await;
        rows(&server, "goes", 1).await;
        archived(&server).await;
        let below = ["history/tenants/", "history/probe/"];
        buckets.forbid(&bucket, "s3:DeleteObject", &below).await;
        lacks(&store, &environment, Some("s3:DeleteObject")).await;
        let (status, said) = purge(&server).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{said}");
        assert_eq!(said["code"], "storage-unavailable", "{said}");
        let detail = said["detail"].as_str().unwrap_or_default();
        assert!(detail.contains("is not permitted"), "{said}");
        buckets.allow(&bucket).await;
        lacks(&store, &environment, None).await;
        let (status, said) = purge(&server).await;
        assert_eq!(status, StatusCode::OK, "{said}");
        server.kill();
    }
}

/// Asks until the check says that the right lacks, or that none does: a server takes a moment to believe a new policy.
async fn lacks(store: &str, environment: &[(&str, &str)], right: Option<&str>) {
    let late = deadline(PATIENCE);
    loop {
        let (fit, said) = check(store, environment);
        let found = said["error"]["lacks"].as_str();
        if fit == right.is_none() && found == right {
            return;
        }
        assert!(!late(), "{right:?}: {said}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The policy of docs/security.md for a bucket of a test, without the rights in `but`.
fn policy(bucket: &str, but: &str) -> (String, BTreeSet<String>) {
    let text = include_str!("../docs/security.md");
    let (_, text) = text
        .split_once("## The smallest bucket policy")
        .expect("the manual has the policy");
    let block = text.lines().skip_while(|line| !line.starts_with("    {"));
    let block: String = block.take_while(|line| line.starts_with("    ")).collect();
    let block = block.replace("BUCKET", bucket).replace("PREFIX", "history");
    let mut document: Json = serde_json::from_str(&block).expect("the policy is JSON");
    let mut rights = BTreeSet::new();
    let statements = document["Statement"].as_array_mut().expect("statements");
    statements.retain_mut(|statement| {
        let actions = match statement["Action"].take() {
            Json::Array(actions) => actions,
            one => vec![one],
        };
        rights.extend(actions.iter().map(|a| a.as_str().expect("text").to_owned()));
        let left: Vec<Json> = actions.into_iter().filter(|a| a != but).collect();
        statement["Action"] = Json::Array(left.clone());
        !left.is_empty()
    });
    (document.to_string(), rights)
}

/// The right that S3 asks for a request.
fn right(seen: &Seen) -> &'static str {
    let path = seen.key.trim_start_matches('/');
    let whole_bucket = path.split_once('/').is_none_or(|(_, key)| key.is_empty());
    let asks = |name: &str| {
        let mut pairs = seen.query.split('&');
        pairs.any(|pair| pair.split('=').next() == Some(name))
    };
    match (seen.method.as_str(), whole_bucket) {
        ("GET", true) if asks("list-type") => "s3:ListBucket",
        ("POST", true) if asks("delete") => "s3:DeleteObject",
        ("GET" | "HEAD", false) if seen.query.is_empty() => "s3:GetObject",
        ("DELETE", false) if asks("uploadId") => "s3:AbortMultipartUpload",
        ("DELETE", false) if seen.query.is_empty() => "s3:DeleteObject",
        ("PUT", false) if seen.query.is_empty() || asks("partNumber") => "s3:PutObject",
        ("POST", false) if asks("uploads") || asks("uploadId") => "s3:PutObject",
        _ => panic!(
            "no right is known for {} {}?{}",
            seen.method, seen.key, seen.query
        ),
    }
}

/// Goal: the policy of the manual names the rights that are used, all and no others. Method: a user with these rights on
/// the server that checks them; a server's life and the check with its keys, each request recorded; then less by each
/// right, which the check names. That server does not check the right to abort an upload by its users' policies.
#[tokio::test(flavor = "multi_thread")]
async fn the_smallest_policy_suffices_and_each_right_of_it_is_needed() {
    for url in s3::stores()
        .into_iter()
        .filter(|url| Buckets::checks_rights(url))
    {
        let buckets = Buckets::on(&url);
        let bucket = buckets.plain().await;
        let user = buckets.user().await;
        let (whole, rights) = policy(&bucket, "");
        assert_eq!(rights, BTreeSet::from(RIGHTS.map(str::to_owned)));
        buckets.permit(&user, &whole).await;
        let (proxy, store) = world::s3::proxied(&buckets.url(&bucket));
        lacks(&store, &user.environment(), None).await;
        let home = tempfile::tempdir().expect("a temporary folder");
        let launch = launch(&home, &store).with_environment(&user.environment());
        life(&launch).await;
        let used: BTreeSet<String> = proxy
            .requests()
            .iter()
            .filter(|seen| seen.status != Some(403))
            .map(|seen| right(seen).to_owned())
            .collect();
        assert_eq!(used, rights);
        for less in RIGHTS {
            if less == "s3:AbortMultipartUpload" {
                continue;
            }
            buckets.permit(&user, &policy(&bucket, less).0).await;
            lacks(&store, &user.environment(), Some(less)).await;
        }
    }
}

/// Goal: what the URL asks of S3 is asked of every object, whole or in parts, and is there. Method: both on each server
/// through a recording proxy; the headers of each request, and what a HEAD of the objects says.
#[tokio::test]
async fn the_stores_own_encryption_is_asked_for_with_every_object() {
    if !s3::notice() {
        return;
    }
    for url in s3::stores() {
        let buckets = Buckets::on(&url);
        let bucket = buckets.plain().await;
        let (proxy, through) = world::s3::proxied(&buckets.url(&bucket));
        let options = StoreOptions {
            settings: StoreSettings {
                part_bytes: 5 << 20,
                ..StoreSettings::default()
            },
            ..StoreOptions::default()
        };
        let store = Store::open(&format!("{through}&sse=AES256"), options).expect("a store");
        store.probe().await.expect("it does what it must");
        let whole = Bytes::from(vec![7; 64]);
        store.create("whole", whole).await.expect("written");
        let parts = [vec![1; 5 << 20], vec![2; 100]];
        let parts = stream::iter(parts.map(|part| Ok::<_, StoreError>(Bytes::from(part))));
        store.put_unique("parts", parts).await.expect("written");
        store.probe_abort("aborted").await.expect("aborted");
        let (mut began, mut parts) = (0, 0);
        for seen in proxy.requests() {
            let sse = seen.header("x-amz-server-side-encryption");
            let sum = seen.header("x-amz-checksum-sha256");
            if seen.method == "POST" && seen.query.contains("uploads") {
                began += 1;
                assert_eq!(sse.as_deref(), Some("aes256"), "{seen:?}");
                let how = seen.header("x-amz-checksum-algorithm");
                assert_eq!(how.as_deref(), Some("sha256"), "{seen:?}");
            } else if seen.query.contains("partNumber") {
                // Asked for when the upload began; S3 refuses a part that asks again.
                parts += 1;
                assert_eq!((sse, sum.is_some()), (None, true), "{}", seen.query);
            } else if seen.method == "PUT" {
                assert_eq!(sse.as_deref(), Some("aes256"), "{seen:?}");
                assert!(sum.is_some(), "{seen:?}");
            }
        }
        assert_eq!(
            (began, parts),
            (2, 3),
            "an upload, and one that is given up"
        );
        let said = |key: &'static str| {
            let header = "x-amz-server-side-encryption";
            let (buckets, bucket) = (&buckets, &bucket);
            async move {
                buckets
                    .header(bucket, &format!("history/{key}"), header)
                    .await
            }
        };
        assert_eq!(said("whole").await.as_deref(), Some("AES256"), "{url}");
        // SeaweedFS says it of objects that came whole alone.
        if !Buckets::checks_rights(&url) {
            assert_eq!(said("parts").await.as_deref(), Some("AES256"), "{url}");
        }
        assert_eq!(said("aborted").await, None);
    }
}
