//! Real S3 servers behind a proxy that loses answers, refuses, and cuts bodies: what a conditional write is told
//! is still true. Runs only where `TIDELOG_TEST_S3` names servers.

mod store_common;

use std::net::ToSocketAddrs;
use std::time::Duration;

use bytes::Bytes;
use store_common::{envelope, impatient};
use tidelog_archive::ErrorKind;
use tidelog_archive::store::Store;
use tidelog_testkit::proxy::{Fault, FaultProxy, Match};
use tidelog_testkit::s3;

/// A store on each S3 server, through a proxy of its own.
fn subjects() -> Vec<(Store, FaultProxy)> {
    let through_proxy = |url: String| {
        let (_, rest) = url
            .split_once("endpoint=http://")
            .expect("test servers speak http");
        let address = rest.split('&').next().expect("split yields one");
        let upstream = address
            .to_socket_addrs()
            .expect("an address")
            .next()
            .expect("one");
        let proxy = FaultProxy::start(upstream).expect("the proxy starts");
        let url = url.replace(&format!("http://{address}"), &proxy.endpoint());
        (
            Store::open(&url, impatient()).expect("the store opens"),
            proxy,
        )
    };
    s3::stores().into_iter().map(through_proxy).collect()
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_is_found_by_reading_back() {
    for (store, proxy) in subjects() {
        // The PUT is applied, its answer lost.
        proxy.rule(Match::new("PUT", "lost"), Fault::LoseAnswer, 1);
        let first = store.create("lost", envelope(1, "a")).await.unwrap();
        assert_eq!(
            proxy.count(&Match::new("PUT", "lost")),
            1,
            "found, not sent again"
        );
        proxy.rule(Match::new("PUT", "lost"), Fault::LoseAnswer, 1);
        let second = store
            .replace("lost", envelope(2, "b"), &first)
            .await
            .unwrap();
        assert_eq!(
            store.get_versioned("lost").await.unwrap(),
            (envelope(2, "b"), second)
        );
        assert_eq!(proxy.count(&Match::new("PUT", "lost")), 2);
    }
}

#[tokio::test]
async fn slow_downs_and_resets_before_the_effect_are_sent_again() {
    for (store, proxy) in subjects() {
        for (n, fault) in [Fault::SlowDown, Fault::ResetBefore]
            .into_iter()
            .enumerate()
        {
            let key = format!("again/{n}");
            proxy.rule(Match::new("PUT", &key), fault.clone(), 2);
            store.create(&key, envelope(1, "a")).await.unwrap();
            assert_eq!(proxy.count(&Match::new("PUT", &key)), 3);
            proxy.rule(Match::new("GET", &key), fault, 2);
            assert_eq!(store.get(&key).await.unwrap(), envelope(1, "a"));
        }
        proxy.rule(Match::new("GET", "again/0"), Fault::CutBody(9), 2);
        assert_eq!(store.get("again/0").await.unwrap(), envelope(1, "a"));
    }
}

#[tokio::test]
async fn a_write_that_cannot_be_read_back_is_unknown() {
    for (store, proxy) in subjects() {
        proxy.rule(Match::new("PUT", "unknown"), Fault::LoseAnswer, usize::MAX);
        proxy.rule(Match::new("GET", "unknown"), Fault::ResetBefore, usize::MAX);
        let error = store.create("unknown", envelope(1, "a")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
        // It was there all the time; the same write again says so.
        proxy.clear_rules();
        store.create("unknown", envelope(1, "a")).await.unwrap();
        assert_eq!(
            store
                .create("unknown", envelope(2, "b"))
                .await
                .unwrap_err()
                .kind(),
            ErrorKind::Conflict
        );
    }
}

#[tokio::test]
async fn a_large_upload_survives_failing_parts_and_a_lost_completion() {
    for (store, proxy) in subjects() {
        proxy.rule(Match::new("PUT", "large"), Fault::SlowDown, 1);
        proxy.rule(Match::new("PUT", "large"), Fault::LoseAnswer, 1);
        let body = Bytes::from((0..=250_u8).cycle().take(20 << 20).collect::<Vec<u8>>());
        let pieces = [body.slice(..7_000_000), body.slice(7_000_000..)];
        let source = futures::stream::iter(pieces.map(Ok::<_, std::io::Error>));
        let head = store.put_unique("large", source).await.unwrap();
        assert_eq!(head.length, 20 << 20);
        assert_eq!(store.get("large").await.unwrap(), body);
        assert_eq!(
            proxy.count(&Match::new("PUT", "large")),
            4,
            "two parts, each sent twice"
        );

        proxy.rule(
            Match::new("POST", "finished"),
            Fault::Delay(Duration::ZERO),
            1,
        );
        proxy.rule(Match::new("POST", "finished"), Fault::LoseAnswer, 1);
        let source = futures::stream::iter([Ok::<_, std::io::Error>(body.clone())]);
        assert_eq!(
            store.put_unique("finished", source).await.unwrap().length,
            20 << 20
        );
    }
}
