//! TLS: by certificate and key file, replaced without a stop; plain HTTP only where told.

use std::path::{Path, PathBuf};

use reqwest::{Certificate, Client};
use tidelog_server::config::Preset;
use tidelog_server::serve::bind;

use crate::world::{World, read};

/// Writes a new certificate for localhost; answers what a client must trust.
fn certify(cert: &Path, key: &Path) -> Certificate {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let pem = made.cert.pem();
    std::fs::write(cert, &pem).expect("written");
    std::fs::write(key, made.signing_key.serialize_pem()).expect("written");
    Certificate::from_pem(pem.as_bytes()).expect("our own certificate")
}

fn trusting(certificate: Certificate) -> Client {
    let client = Client::builder().no_proxy().tls_certs_only([certificate]);
    client.build().expect("a client")
}

/// Goal: a replaced certificate counts for the next connection; one that does not fit its key changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_replaced_without_a_stop() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str| -> PathBuf { folder.path().join(name) };
    let (cert, key) = (file("cert.pem"), file("key.pem"));
    let first = trusting(certify(&cert, &key));
    let mut config = Preset::Development.config();
    config.tls.cert = Some(cert.clone());
    config.tls.key = Some(key.clone());
    let world = World::of(config).await;
    let url = format!("{}/healthz", world.base.replace("127.0.0.1", "localhost"));
    assert!(url.starts_with("https://"), "{url}");
    assert_eq!(read(first.get(&url)).await.status, 200);
    let second = trusting(certify(&cert, &file("other.pem")));
    world.app.reload();
    assert_eq!(
        read(first.get(&url)).await.status,
        200,
        "the key does not fit: the old one stays"
    );
    std::fs::rename(file("other.pem"), &key).expect("renamed");
    world.app.reload();
    assert!(second.get(&url).send().await.is_ok());
    let plain = url.replace("https://", "http://");
    assert!(
        first.get(plain).send().await.is_err(),
        "no plain HTTP beside it"
    );
    world.stop().await;
}

/// Goal (ENC-1): both versions that are served, and nothing older; the last by the library, which has nothing older.
#[tokio::test(flavor = "multi_thread")]
async fn hands_are_shaken_at_tls_one_two_and_one_three() {
    use reqwest::tls::Version;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (cert, key) = (
        folder.path().join("cert.pem"),
        folder.path().join("key.pem"),
    );
    let certificate = certify(&cert, &key);
    let mut config = Preset::Development.config();
    config.tls.cert = Some(cert);
    config.tls.key = Some(key);
    let world = World::of(config).await;
    let url = format!("{}/healthz", world.base.replace("127.0.0.1", "localhost"));
    for version in [Version::TLS_1_2, Version::TLS_1_3] {
        let client = Client::builder().no_proxy();
        let client = client
            .tls_certs_only([certificate.clone()])
            .tls_version_min(version)
            .tls_version_max(version);
        let client = client.build().expect("a client");
        assert_eq!(read(client.get(&url)).await.status, 200, "{version:?}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_stays_on_loopback_unless_told() {
    let beyond = ([0, 0, 0, 0], 0).into();
    let error = bind(beyond, false).await.expect_err("refused");
    assert!(error.to_string().contains("--insecure-listen"), "{error}");
    assert!(bind(beyond, true).await.is_ok());
}
