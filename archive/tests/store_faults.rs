//! Ambiguous outcomes, exhaustively: every store call of a conditional write fails before its effect, after
//! it, or with the effect coming late, in every combination over the first calls, with and without a
//! competitor who writes in between. What the caller is told is always true.

mod store_common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, TryStreamExt, stream};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, PutResult, UpdateVersion,
};
use store_common::{envelope, on};
use tidelog_archive::ErrorKind;
use tidelog_archive::store::{Outcome, StoreError, Verb};
use tidelog_testkit::faultstore::{Fault, FaultStore, Op, Seeded, Shared, script};

const KEY: &str = "k";

fn faults() -> [Fault; 6] {
    [
        Fault::None,
        Fault::Before,
        Fault::After,
        Fault::Late(1),
        Fault::Late(3),
        Fault::CutBody,
    ]
}

/// Calls whose faults are enumerated; those after them succeed, or fail for ever.
const DEPTH: usize = 4;

/// The `n`th combination of faults.
fn combination(mut n: usize) -> [Fault; DEPTH] {
    std::array::from_fn(|_| {
        let fault = faults()[n % faults().len()];
        n /= faults().len();
        fault
    })
}

async fn put(objects: &InMemory, body: Bytes, mode: PutMode) -> Option<PutResult> {
    let path = Path::from("p/k");
    objects
        .put_opts(&path, PutPayload::from_bytes(body), PutOptions::from(mode))
        .await
        .ok()
}

async fn now(objects: &InMemory) -> Option<Bytes> {
    objects
        .get(&Path::from("p/k"))
        .await
        .ok()?
        .bytes()
        .await
        .ok()
}

/// How the competitor writes: as a protocol partner does, conditionally.
async fn compete(objects: &InMemory, replaces: bool) {
    let mode = if replaces {
        let Ok(meta) = objects.head(&Path::from("p/k")).await else {
            return;
        };
        PutMode::Update(UpdateVersion {
            e_tag: meta.e_tag,
            version: None,
        })
    } else {
        PutMode::Create
    };
    put(objects, envelope(9, "competitor"), mode).await;
}

struct Case {
    result: Result<(), ErrorKind>,
    applied_ever: bool,
    stands: bool,
}

/// One write with these faults; the competitor comes before the call `rival`.
async fn run(
    faults: [Fault; DEPTH],
    rest: Fault,
    rival: Option<u64>,
    replaces: bool,
    body: Bytes,
) -> Case {
    let memory = Arc::new(InMemory::new());
    let base = if replaces {
        put(&memory, envelope(1, "base"), PutMode::Create).await
    } else {
        None
    };
    let seen = Arc::new(AtomicBool::new(false));
    let plan = script({
        let (memory, seen, body) = (Arc::clone(&memory), Arc::clone(&seen), body.clone());
        move |call| {
            // The in-memory store never waits.
            let current = now(&memory).now_or_never().flatten();
            if current == Some(body.clone()) {
                seen.store(true, Ordering::Relaxed);
            }
            if rival == Some(call.number) {
                compete(&memory, replaces).now_or_never();
            }
            let index = usize::try_from(call.number).unwrap_or(usize::MAX);
            faults.get(index).copied().unwrap_or(rest)
        }
    });
    let faulty = FaultStore::new(Arc::clone(&memory) as Arc<dyn ObjectStore>, plan);
    let store = on(Arc::new(Shared(Arc::clone(&faulty))));
    let result = if base.is_none() {
        store.create(KEY, body.clone()).await
    } else {
        // The version as the store names it, read past the faults.
        let clean = on(Arc::clone(&memory) as Arc<dyn ObjectStore>);
        let (_, version) = clean
            .get_versioned(KEY)
            .await
            .expect("the base stands there");
        store.replace(KEY, body.clone(), &version).await
    };
    let stands_now = now(&memory).await == Some(body.clone());
    faulty.release_late().await;
    let stands = now(&memory).await == Some(body.clone());
    Case {
        result: result.map(|_| ()).map_err(|error| error.kind()),
        applied_ever: seen.load(Ordering::Relaxed) || stands_now || stands,
        stands,
    }
}

/// A success has happened; a conflict never did and never will; nothing is claimed otherwise.
fn judge(case: &Case, told: &str) {
    match case.result {
        Ok(()) => assert!(case.applied_ever, "success without effect: {told}"),
        Err(ErrorKind::Conflict | ErrorKind::Unavailable) => {
            assert!(!case.applied_ever, "failure with effect: {told}");
        }
        Err(ErrorKind::OutcomeUnknown) => {}
        Err(kind) => panic!("unexpected {kind:?}: {told}"),
    }
}

#[tokio::test(start_paused = true)]
async fn every_ambiguous_outcome_of_a_conditional_write_is_told_truly() {
    let (mut succeeded, mut lost, mut unknown) = (0, 0, 0);
    for n in 0..faults().len().pow(u32::try_from(DEPTH).unwrap()) {
        let faults = combination(n);
        for rest in [Fault::None, Fault::Before] {
            for rival in [None, Some(0), Some(1), Some(2), Some(3)] {
                for replaces in [false, true] {
                    let case = run(faults, rest, rival, replaces, envelope(2, "ours")).await;
                    let told =
                        format!("{faults:?}, then {rest:?}, rival {rival:?}, replaces {replaces}");
                    judge(&case, &told);
                    if rival.is_none() && rest == Fault::None && case.result.is_ok() {
                        assert!(case.stands, "nobody else wrote: {told}");
                    }
                    match case.result {
                        Ok(()) => succeeded += 1,
                        Err(ErrorKind::OutcomeUnknown) => unknown += 1,
                        Err(_) => lost += 1,
                    }
                }
            }
        }
    }
    // Each verdict occurs, and a store that recovers rarely leaves a doubt.
    assert!(
        succeeded > 5_000 && lost > 1_000,
        "{succeeded} {lost} {unknown}"
    );
    assert!(unknown > 0);
}

#[tokio::test(start_paused = true)]
async fn objects_without_an_envelope_are_compared_whole() {
    for n in 0..faults().len().pow(2) {
        let mut faults = combination(n);
        faults[2..].fill(Fault::None);
        for rival in [None, Some(0), Some(1), Some(2)] {
            let body = Bytes::from_static(b"plain text, no envelope");
            let case = run(faults, Fault::None, rival, false, body).await;
            judge(&case, &format!("{faults:?}, rival {rival:?}"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_exists_with_nothing_there_is_sent_again() {
    // A 409 during a race says "exists" although nothing was written.
    let lying = |times: u64| {
        let plan = script(move |call| match call.op {
            Op::Put if call.number < times => Fault::Exists,
            _ => Fault::None,
        });
        on(Arc::new(Shared(FaultStore::new(
            Arc::new(InMemory::new()),
            plan,
        ))))
    };
    let store = lying(3);
    store.create(KEY, envelope(1, "x")).await.unwrap();
    assert_eq!(store.get(KEY).await.unwrap(), envelope(1, "x"));

    // For ever: then it has not been applied, which is certain, and says so.
    let store = lying(u64::MAX);
    let error = store.create(KEY, envelope(1, "x")).await.unwrap_err();
    assert!(
        matches!(error, StoreError::NotApplied { attempts: 3, .. }),
        "{error:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn reads_survive_cut_bodies_delays_and_errors_within_their_attempts() {
    let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    on(Arc::clone(&memory))
        .create(KEY, Bytes::from(vec![7; 5_000]))
        .await
        .unwrap();
    let reads = [
        Fault::Before,
        Fault::CutBody,
        Fault::Delay(Duration::from_hours(1)),
    ];
    for first in reads {
        for second in reads {
            let plan = script(move |call| match call.number {
                0 => first,
                1 => second,
                _ => Fault::None,
            });
            let store = on(Arc::new(Shared(FaultStore::new(Arc::clone(&memory), plan))));
            assert_eq!(store.get(KEY).await.unwrap().len(), 5_000);
            assert_eq!(store.meter().snapshot().in_flight, 0);
        }
    }
    let dead = FaultStore::new(Arc::clone(&memory), script(|_| Fault::Before));
    let store = on(Arc::new(Shared(Arc::clone(&dead))));
    for result in [
        store.get(KEY).await.map(drop),
        store.get_range(KEY, 0..9).await.map(drop),
        store.head(KEY).await.map(drop),
        store.list("").await.map(drop),
        store.delete(KEY).await,
    ] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Unavailable);
    }
    assert_eq!(
        store
            .get_stream(KEY)
            .try_collect::<Vec<_>>()
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Unavailable
    );
    let gets = dead
        .calls()
        .iter()
        .filter(|call| call.op == Op::Get)
        .count() as u64;
    assert_eq!(
        store
            .meter()
            .snapshot()
            .requests(Verb::Get, Outcome::Failed),
        gets
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_that_ignores_conditions_is_refused_in_words() {
    for (creates, named) in [(true, "If-None-Match"), (false, "If-Match")] {
        // Of the probe's writes the first two are creates.
        let puts = std::sync::atomic::AtomicU32::new(0);
        let plan = script(move |call| {
            let create = call.op == Op::Put && puts.fetch_add(1, Ordering::Relaxed) < 2;
            if call.op == Op::Put && create == creates {
                Fault::Unconditional
            } else {
                Fault::None
            }
        });
        let store = on(Arc::new(Shared(FaultStore::new(
            Arc::new(InMemory::new()),
            plan,
        ))));
        let error = store.probe().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(named), "{error}");
        assert!(store.list("").await.unwrap().is_empty());
    }
}

/// S41: what a completion answers decides nothing; the object's length does.
#[tokio::test(start_paused = true)]
async fn an_upload_in_parts_is_believed_by_its_length_alone() {
    let upload = |at: Op, fault: Fault| async move {
        let memory = Arc::new(InMemory::new());
        let plan = script(move |call| if call.op == at { fault } else { Fault::None });
        let faulty = FaultStore::new(Arc::clone(&memory) as Arc<dyn ObjectStore>, plan);
        let store = on(Arc::new(Shared(Arc::clone(&faulty))));
        let part = Bytes::from(vec![1; 16 << 20]);
        let parts = [part.clone(), part.clone(), part.slice(..9)];
        let source = stream::iter(parts.map(Ok::<_, std::io::Error>));
        let result = store.put_unique(KEY, source).await;
        faulty.set_plan(script(|_| Fault::None));
        (result, store.head(KEY).await)
    };
    // The completion took effect and its answer was lost.
    let (result, head) = upload(Op::Complete, Fault::After).await;
    assert_eq!(result.unwrap(), head.unwrap());
    // It did not: then nobody can tell whether it still will.
    let (result, head) = upload(Op::Complete, Fault::Before).await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    assert_eq!(head.unwrap_err().kind(), ErrorKind::NotFound);
    for at in [Op::Upload, Op::Part] {
        let (result, head) = upload(at, Fault::Before).await;
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(head.unwrap_err().kind(), ErrorKind::NotFound);
    }
}

#[tokio::test(start_paused = true)]
async fn the_probe_is_not_fooled_by_faults() {
    for seed in 0..200 {
        let plan = Seeded {
            seed,
            per_mille: 100,
            bit_rot: false,
        };
        let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let faulty = FaultStore::new(memory, Box::new(plan));
        let store = on(Arc::new(Shared(faulty)));
        match store.probe().await {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "seed {seed}: {error}"),
        }
    }
}

#[tokio::test]
async fn a_right_that_lacks_is_named() {
    // Goal: `store check` says which right to give. Method: each kind of request is forbidden in turn, and looking for
    // what is not there, which S3 answers so to whoever may not list; everything else is allowed.
    let part = || stream::iter([Ok::<_, StoreError>(Bytes::from_static(b"a part"))]);
    for (op, right) in [
        (Op::Put, "s3:PutObject"),
        (Op::Get, "s3:GetObject"),
        (Op::Delete, "s3:DeleteObject"),
        (Op::List, "s3:ListBucket"),
        (Op::Head, "s3:GetObject"),
    ] {
        let faults = FaultStore::in_memory(script(move |call| {
            if call.op == op {
                Fault::Denied
            } else {
                Fault::None
            }
        }));
        let store = on(Arc::new(Shared(Arc::clone(&faults))));
        let refused = match op {
            Op::List => store.list("probe/").await.map(drop),
            _ => store.probe().await.map(drop),
        };
        let refused = refused.expect_err(&format!("{op:?} is forbidden"));
        assert_eq!(refused.right(), Some(right), "{op:?}: {refused}");
        // It is not tried again, and what is forbidden is not "away".
        assert!(matches!(refused, StoreError::Denied { .. }), "{refused:?}");
        let same = faults.calls().iter().filter(|call| call.op == op).count();
        // Two objects are deleted.
        assert!(same <= 1 + usize::from(op == Op::Delete), "{op:?}: {same}");
    }
    let deleted = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&deleted);
    let faults = FaultStore::in_memory(script(move |call| {
        if call.op == Op::Delete {
            seen.store(true, Ordering::SeqCst);
        }
        if call.op == Op::Head && seen.load(Ordering::SeqCst) {
            Fault::Denied
        } else {
            Fault::None
        }
    }));
    let store = on(Arc::new(Shared(faults)));
    let refused = store.probe().await.expect_err("forbidden");
    assert_eq!(refused.right(), Some("s3:ListBucket"), "{refused}");
    // Parts of an upload need the right to write.
    let faults = FaultStore::in_memory(script(|call| match call.op {
        Op::Put | Op::Upload | Op::Part => Fault::Denied,
        _ => Fault::None,
    }));
    let store = on(Arc::new(Shared(faults)));
    let refused = store.put_unique(KEY, part()).await.expect_err("forbidden");
    assert_eq!(refused.right(), Some("s3:PutObject"), "{refused}");
    // An upload that may not be given up is ended, so that a deletion reaches it.
    let faults = FaultStore::in_memory(script(|call| match call.op {
        Op::Abort => Fault::Denied,
        _ => Fault::None,
    }));
    let store = on(Arc::new(Shared(Arc::clone(&faults))));
    let refused = store.probe_abort(KEY).await.expect_err("forbidden");
    assert_eq!(
        refused.right(),
        Some("s3:AbortMultipartUpload"),
        "{refused}"
    );
    store.head(KEY).await.expect("it is no upload any more");
    faults.set_plan(script(|_| Fault::None));
    store.delete(KEY).await.expect("deleted");
    store.probe_abort(KEY).await.expect("allowed");
    assert_eq!(store.list("").await.expect("a listing"), []);
}
