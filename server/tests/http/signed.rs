//! Signed tokens (JWT): a member vouched for by somebody else's key.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use reqwest::Method;
use serde_json::{Value as Json, json};
use tidelog_server::config::{Config, Jwt, JwtKey, Preset};

use crate::world::{Got, World, read};

const SECRET: &[u8] = b"a secret of at least thirty-two bytes!";
const DATABASES: &str = "/v1/namespaces/default/databases";

fn now() -> u64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "a signed token is made of real time"
    )]
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("after 1970").as_secs()
}

fn config(folder: &Path) -> (Config, EncodingKey) {
    let secret = folder.join("hs256");
    std::fs::write(&secret, SECRET).expect("written");
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key pair");
    let public = folder.join("ed25519.pem");
    std::fs::write(&public, pair.public_key_pem()).expect("written");
    let key = |alg: &str, file| JwtKey {
        alg: alg.to_owned(),
        file,
        kid: None,
    };
    let mut config = Preset::Development.config();
    config.auth.jwt = Some(Jwt {
        audience: "tidelog".to_owned(),
        issuer: None,
        namespace_claim: "tenant_id".to_owned(),
        jwks_file: None,
        keys: vec![key("HS256", secret), key("EdDSA", public)],
    });
    let private = EncodingKey::from_ed_pem(pair.serialize_pem().as_bytes()).expect("our own key");
    (config, private)
}

fn claims(who: &str, namespace: &str) -> Json {
    json!({ "sub": who, "tenant_id": namespace, "aud": "tidelog", "exp": now() + 600, "iat": now() })
}

async fn get(world: &World, token: &str, path: &str) -> Got {
    read(
        world
            .client
            .get(format!("{}{path}", world.base))
            .bearer_auth(token),
    )
    .await
}

/// Goal: only a member of the namespace that the token names gets in, with the member's role; ending their tokens
/// ends the signed ones, too, at the next request.
#[tokio::test(flavor = "multi_thread")]
async fn a_signed_token_is_its_member_and_nobody_else() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (config, private) = config(folder.path());
    let world = World::of(config).await;
    let database = world.database("orders").await;
    let hs = |claims: &Json| {
        let key = EncodingKey::from_secret(SECRET);
        encode(&Header::new(Algorithm::HS256), claims, &key).expect("signed")
    };
    let ed =
        |claims: &Json| encode(&Header::new(Algorithm::EdDSA), claims, &private).expect("signed");
    let stranger = get(&world, &hs(&claims("ana", "default")), DATABASES).await;
    assert_eq!(
        (stranger.status, stranger.code()),
        (401, "unauthenticated"),
        "no member yet"
    );
    let path = "/v1/namespaces/default/members/ana";
    let member = json!({ "role": "analyst", "databases": { "orders": "operator" } });
    assert_eq!(
        read(world.ask(Method::PUT, path).json(&member))
            .await
            .status,
        200
    );
    for token in [hs(&claims("ana", "default")), ed(&claims("ana", "default"))] {
        assert_eq!(get(&world, &token, DATABASES).await.status, 200);
        assert_eq!(get(&world, &token, &database).await.status, 200);
        let url = format!("{}/v1/namespaces/default/tokens", world.base);
        let refused = read(world.client.get(url).bearer_auth(&token)).await;
        assert_eq!(
            (refused.status, &refused.body["required"]),
            (403, &json!("admin"))
        );
        let foreign = get(&world, &token, "/v1/namespaces/other/databases").await;
        assert_eq!(
            (foreign.status, foreign.code()),
            (403, "namespace-mismatch")
        );
    }
    let body = json!({ "sql": "create table t(a)" });
    let token = ed(&claims("ana", "default"));
    let write = world
        .client
        .post(format!("{}{database}/query", world.base))
        .bearer_auth(&token);
    assert_eq!(
        read(write.json(&body)).await.status,
        200,
        "an operator there"
    );
    for bad in [
        hs(&claims("bob", "default")),
        hs(&claims("ana", "nowhere")),
        hs(&json!({ "sub": "ana", "tenant_id": "default", "aud": "other", "exp": now() + 600 })),
        format!("{}x", hs(&claims("ana", "default"))),
        "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbmEifQ.".to_owned(),
    ] {
        let got = get(&world, &bad, DATABASES).await;
        assert_eq!((got.status, got.code()), (401, "unauthenticated"), "{bad}");
    }
    let mut old = claims("ana", "default");
    old["exp"] = json!(now() - 600);
    assert_eq!(
        get(&world, &hs(&old), DATABASES).await.code(),
        "token-expired"
    );
    assert_eq!(
        read(world.ask(Method::POST, &format!("{path}/revoke")))
            .await
            .status,
        200
    );
    assert_eq!(get(&world, &token, DATABASES).await.code(), "token-revoked");
    let mut later = claims("ana", "default");
    later["iat"] = json!(now() + 5);
    assert_eq!(
        get(&world, &hs(&later), DATABASES).await.status,
        200,
        "made after the revocation"
    );
    world.stop().await;
}

/// Goal: who was let in and whose token ran out is no guesser, nor is anybody behind the same address. Method: where
/// three refusals a minute are allowed, tokens that have expired, then forged ones, and one that nobody has seen yet.
#[tokio::test(flavor = "multi_thread")]
async fn expired_and_foreign_tokens_lock_no_signed_caller_out() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (mut config, private) = config(folder.path());
    config.limits.auth_failures_per_minute = 3;
    let world = World::of(config).await;
    let member = json!({ "role": "viewer" });
    let path = "/v1/namespaces/default/members/ana";
    let put = read(world.ask(Method::PUT, path).json(&member)).await;
    assert_eq!(put.status, 200, "{put:?}");
    let ed =
        |claims: &Json| encode(&Header::new(Algorithm::EdDSA), claims, &private).expect("signed");
    let mut old = claims("ana", "default");
    old["exp"] = json!(now() - 600);
    for _ in 0..8 {
        let got = get(&world, &ed(&old), DATABASES).await;
        assert_eq!((got.status, got.code()), (401, "token-expired"));
    }
    let got = get(&world, "tl_live_guessed", DATABASES).await;
    assert_eq!(got.status, 401, "nothing was counted so far");
    let forged = format!("{}x", ed(&claims("ana", "default")));
    let mut last = 0;
    for _ in 0..8 {
        last = get(&world, &forged, DATABASES).await.status;
    }
    assert_eq!(last, 429, "guessing is bounded");
    let fresh = ed(&claims("ana", "default"));
    assert_eq!(get(&world, &fresh, DATABASES).await.status, 200);
    world.stop().await;
}

/// Goal: what was revoked stays so, whatever becomes of the membership.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_made_anew_is_not_reached_by_what_was_revoked() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (config, private) = config(folder.path());
    let world = World::of(config).await;
    let path = "/v1/namespaces/default/members/ana";
    let make = || {
        read(
            world
                .ask(Method::PUT, path)
                .json(&json!({ "role": "viewer" })),
        )
    };
    assert_eq!(make().await.status, 200);
    let token = encode(
        &Header::new(Algorithm::EdDSA),
        &claims("ana", "default"),
        &private,
    )
    .expect("signed");
    assert_eq!(get(&world, &token, DATABASES).await.status, 200);
    let revoke = world.ask(Method::POST, &format!("{path}/revoke"));
    assert_eq!(read(revoke).await.status, 200);
    let gone = read(world.ask(Method::DELETE, path)).await;
    assert_eq!(gone.status, 204, "{gone:?}");
    assert_eq!(make().await.status, 200);
    assert_eq!(get(&world, &token, DATABASES).await.code(), "token-revoked");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_keys_no_signed_token_counts() {
    let world = World::start().await;
    let key = EncodingKey::from_secret(SECRET);
    let token = encode(
        &Header::new(Algorithm::HS256),
        &claims("ana", "default"),
        &key,
    )
    .expect("signed");
    assert_eq!(
        get(&world, &token, DATABASES).await.code(),
        "unauthenticated"
    );
    world.stop().await;
}
