//! Terms and fences under ambiguous outcomes, rivals, late requests and listings that leave things out
//! (RELIABILITY classes 2 and 8 on an in-memory store).

mod store_common;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::FutureExt;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use store_common::{Counting, despondent, impatient};
use tidelog_archive::ErrorKind;
use tidelog_archive::env::SystemClock;
use tidelog_archive::envelope::{Expect, ObjectKind, WriteId, encode_payload};
use tidelog_archive::key::{Key, Seq};
use tidelog_archive::root::Root;
use tidelog_archive::seal::Stamp;
use tidelog_archive::store::{Store, StoreOptions};
use tidelog_archive::term::{End, Shipped, Step, TermError, Terms};
use tidelog_testkit::faultstore::{Call, Fault, FaultStore, Seeded, Shared, script};
use tidelog_wal::{ClusterId, DatabaseId, NamespaceId, NodeId, Term};

const DEEDS: [Fault; 4] = [Fault::Before, Fault::After, Fault::Late(1), Fault::Late(4)];

fn terms_on(objects: Arc<dyn ObjectStore>, node: u8) -> Terms {
    terms_with(objects, node, impatient())
}

fn terms_with(objects: Arc<dyn ObjectStore>, node: u8, options: StoreOptions) -> Terms {
    let store = Store::from_object_store(objects, "p", options).expect("the prefix is valid");
    // Each node draws other write ids.
    let entropy = Counting::default();
    entropy.skip(u64::from(node) << 32);
    Terms::new(
        store,
        NodeId::from_bytes([node; 16]),
        ClusterId::from_bytes([1; 16]),
        Arc::new(SystemClock::new()),
        Arc::new(entropy),
    )
}

fn faulty(
    memory: &Arc<InMemory>,
    plan: impl Fn(&Call) -> Fault + Send + Sync + 'static,
) -> Arc<FaultStore> {
    FaultStore::new(Arc::clone(memory) as Arc<dyn ObjectStore>, script(plan))
}

/// An object of the journal's kind; every PUT another write id.
fn object(term: Term, seq: Seq) -> Bytes {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut id = [0xee; 16];
    id[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    let payload = format!("{term}/{seq}").into_bytes();
    let object = encode_payload(
        Expect::node(ObjectKind::Journal),
        Stamp::plain(WriteId(id)),
        payload,
    );
    object.expect("it is small").bytes
}

/// A life that ships its journal, trims what it likes, and remembers what it acknowledged.
#[derive(Clone)]
struct Owner {
    terms: Terms,
    term: Term,
    next: Arc<AtomicU64>,
    acknowledged: Arc<Mutex<BTreeSet<u64>>>,
    fenced: Arc<Mutex<Option<u64>>>,
}

impl Owner {
    async fn new(memory: &Arc<InMemory>, node: u8) -> Self {
        let terms = terms_on(Arc::clone(memory) as Arc<dyn ObjectStore>, node);
        let claim = terms
            .claim(None, Term::NONE)
            .await
            .expect("nothing fails yet");
        Self {
            terms,
            term: claim.term,
            next: Arc::new(AtomicU64::new(1)),
            acknowledged: Arc::default(),
            fenced: Arc::default(),
        }
    }

    async fn ship(&self) {
        if self.fenced.lock().expect("not poisoned").is_some() {
            return;
        }
        let seq = Seq::new(self.next.load(Ordering::Relaxed));
        match self
            .terms
            .ship(self.term, seq, object(self.term, seq))
            .await
        {
            Ok(Shipped::Stored) => {
                self.next.fetch_add(1, Ordering::Relaxed);
                self.acknowledged
                    .lock()
                    .expect("not poisoned")
                    .insert(seq.get());
            }
            Ok(Shipped::Before(_)) => panic!("a life ships each number once"),
            Err(TermError::Fenced { by, .. }) => {
                assert_eq!(by.seq, seq);
                *self.fenced.lock().expect("not poisoned") = Some(seq.get());
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}"),
        }
    }

    /// Settles and trims everything it has shipped.
    async fn trim(&self) {
        let below = Seq::new(self.next.load(Ordering::Relaxed));
        self.terms
            .trim(self.term, below)
            .await
            .expect("the clean store works");
        self.terms
            .delete_trimmed(self.term, Seq::FIRST)
            .await
            .expect("the clean store works");
    }
}

/// After `owner`'s term was closed: there is one end, the owner learns of it, and what it acknowledged is
/// either trimmed or walked.
async fn assert_closed(memory: &Arc<InMemory>, owner: &Owner, told: &str) -> u64 {
    let reader = terms_on(Arc::clone(memory) as Arc<dyn ObjectStore>, 99);
    let state = reader
        .state(owner.term)
        .await
        .expect("the clean store works");
    let trimmed = state.trimmed_below;
    let walk = reader.walk(owner.term, Seq::FIRST).await;
    let mut walk = walk.expect("the clean store works");
    let mut walked = BTreeSet::new();
    let fence = loop {
        match walk
            .step()
            .await
            .unwrap_or_else(|error| panic!("{error}: {told}"))
        {
            Step::Object(seq, _) => assert!(walked.insert(seq.get())),
            Step::Trimmed(_) => panic!("nobody trims now: {told}"),
            Step::End(End::Closed(fence)) => break fence,
            Step::End(End::Open(seq)) => panic!("open at {seq}: {told}"),
        }
    };
    let expected: BTreeSet<u64> = (trimmed.get()..fence.seq.get()).collect();
    assert_eq!(walked, expected, "a run without gaps: {told}");
    // A fenced writer acknowledges nothing, now or later.
    owner.ship().await;
    owner.ship().await;
    let fenced = *owner.fenced.lock().expect("not poisoned");
    assert_eq!(fenced, Some(fence.seq.get()), "{told}");
    for seq in owner.acknowledged.lock().expect("not poisoned").iter() {
        assert!(
            *seq < fence.seq.get(),
            "acknowledged {seq} above the fence: {told}"
        );
    }
    fence.seq.get()
}

#[tokio::test(start_paused = true)]
async fn racing_lives_claim_distinct_terms_without_gaps() {
    let memory = Arc::new(InMemory::new());
    let lives = (0..10_u8).map(|node| {
        let terms = terms_on(Arc::clone(&memory) as Arc<dyn ObjectStore>, node);
        tokio::spawn(async move {
            let mut mine: Vec<u32> = Vec::new();
            for _ in 0..5 {
                let previous = mine.last().copied().map(Term::new);
                // The hint is stale on purpose.
                let hint = mine.first().copied().map_or(Term::NONE, Term::new);
                let claim = terms.claim(previous, hint).await.unwrap();
                assert_eq!(terms.read_claim(claim.term).await.unwrap(), Some(claim));
                mine.push(claim.term.get());
                tokio::task::yield_now().await;
            }
            mine
        })
    });
    let mut all: Vec<u32> = Vec::new();
    for life in lives {
        all.extend(life.await.unwrap());
    }
    all.sort_unstable();
    assert_eq!(all, (1..=50).collect::<Vec<_>>());
    let reader = terms_on(memory, 99);
    for hint in 0..=50 {
        assert_eq!(
            reader.highest(Term::new(hint)).await.unwrap(),
            Term::new(50)
        );
    }
    assert_eq!(
        reader
            .claims(Term::NONE, Term::new(50))
            .await
            .unwrap()
            .len(),
        50
    );
    // A hint beyond what exists means that claims were lost.
    assert_eq!(
        reader.highest(Term::new(51)).await.unwrap_err().kind(),
        ErrorKind::Corrupt
    );
}

/// Every pair of faults in the calls of claiming: a life that gives up tries again, and no number is given out
/// twice or left out, however late the requests of the first try land.
#[tokio::test(start_paused = true)]
async fn claims_survive_every_pair_of_ambiguous_outcomes() {
    let mut given_up = 0;
    for (i, j) in pairs(12) {
        for (a, b) in deeds() {
            let memory = Arc::new(InMemory::new());
            terms_on(Arc::clone(&memory) as Arc<dyn ObjectStore>, 7)
                .claim(None, Term::NONE)
                .await
                .unwrap();
            let store = faulty(&memory, move |call| pick(call, (i, a), (j, b)));
            let shared = Arc::new(Shared(Arc::clone(&store)));
            let life = terms_with(
                shared,
                8,
                if (i + j) % 2 == 0 {
                    impatient()
                } else {
                    despondent()
                },
            );
            let claim = loop {
                match life.claim(None, Term::FIRST).await {
                    Ok(claim) => break claim,
                    Err(_) => given_up += 1,
                }
            };
            let next = terms_on(Arc::clone(&memory) as Arc<dyn ObjectStore>, 9);
            let rival = next.claim(None, Term::NONE).await.unwrap();
            store.release_late().await;
            let last = next.claim(None, Term::NONE).await.unwrap();
            assert!(claim.term < rival.term && rival.term < last.term);
            assert_eq!(next.read_claim(claim.term).await.unwrap(), Some(claim));
            assert_eq!(next.read_claim(rival.term).await.unwrap(), Some(rival));
            // Dense: claims() fails on a gap.
            assert!(next.claims(Term::NONE, last.term).await.is_ok());
        }
    }
    assert!(given_up > 0, "some faults make a life give up");
}

fn pairs(calls: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..calls).flat_map(move |i| (i..calls).map(move |j| (i, j)))
}

fn deeds() -> impl Iterator<Item = (Fault, Fault)> {
    DEEDS
        .into_iter()
        .flat_map(|a| DEEDS.into_iter().map(move |b| (a, b)))
}

fn pick(call: &Call, one: (u64, Fault), other: (u64, Fault)) -> Fault {
    match call.number {
        number if number == one.0 => one.1,
        number if number == other.0 => other.1,
        _ => Fault::None,
    }
}

#[derive(Debug, Clone, Copy)]
enum Rival {
    Still,
    /// The owner ships two objects before this call of the closer's.
    Ships(u64),
    /// The owner ships two objects, settles, trims and deletes all, and ships another.
    ShipsAndTrims(u64),
}

impl Rival {
    fn acts(self, owner: &Owner, call: u64) {
        let (at, trims) = match self {
            Self::Still => return,
            Self::Ships(at) => (at, false),
            Self::ShipsAndTrims(at) => (at, true),
        };
        if call == at {
            let done = async {
                owner.ship().await;
                owner.ship().await;
                if trims {
                    owner.trim().await;
                    owner.ship().await;
                }
            };
            // On the in-memory store nothing ever waits.
            assert!(done.now_or_never().is_some());
        }
    }
}

/// How one closing went.
struct Closing {
    fence: u64,
    retries: u64,
    calls: u64,
}

/// Closes a term of two objects with these faults, again and again until it says that it is closed; then all
/// late requests land.
async fn close_through(
    one: (u64, Fault),
    other: (u64, Fault),
    rival: Rival,
    patient: bool,
) -> Closing {
    let told = format!("faults {one:?} {other:?}, rival {rival:?}, patient {patient}");
    let memory = Arc::new(InMemory::new());
    let owner = Owner::new(&memory, 1).await;
    owner.ship().await;
    owner.ship().await;
    let heir = Owner::new(&memory, 2).await;
    let store = faulty(&memory, {
        let owner = owner.clone();
        move |call| {
            rival.acts(&owner, call.number);
            pick(call, one, other)
        }
    });
    let options = if patient { impatient() } else { despondent() };
    let closer = terms_with(Arc::new(Shared(Arc::clone(&store))), 2, options);
    let mut retries = 0;
    let closure = loop {
        match closer.close(heir.term, owner.term).await {
            Ok(closure) => break closure,
            Err(error) => {
                let kind = error.kind();
                let unsettled = matches!(kind, ErrorKind::OutcomeUnknown | ErrorKind::Unavailable);
                assert!(unsettled, "{kind:?} {error}: {told}");
                retries += 1;
            }
        }
    };
    let early = assert_closed(&memory, &owner, &told).await;
    store.release_late().await;
    let seq = assert_closed(&memory, &owner, &told).await;
    assert_eq!((early, closure.fence.seq.get()), (seq, seq), "{told}");
    assert_eq!(closure.fence.by_term, heir.term, "{told}");
    // T4: written down, with the place of the fence.
    let state = heir
        .terms
        .state(heir.term)
        .await
        .expect("the clean store works");
    let inherited: Vec<_> = state
        .inherited
        .iter()
        .map(|known| (known.term, known.fence))
        .collect();
    assert_eq!(inherited, [(owner.term, Some(closure.fence.seq))], "{told}");
    Closing {
        fence: seq,
        retries,
        calls: store.calls().len() as u64,
    }
}

/// Every pair of faults in the calls of closing, with the owner shipping and trimming in between.
#[tokio::test(start_paused = true)]
async fn closing_survives_every_pair_of_ambiguous_outcomes() {
    let (mut closings, mut retried, mut moved) = (0_u64, 0, 0_u64);
    let rivals = [
        Rival::Still,
        Rival::Ships(2),
        Rival::Ships(9),
        Rival::ShipsAndTrims(10),
    ];
    for (rival, patient) in rivals
        .into_iter()
        .flat_map(|rival| [(rival, true), (rival, false)])
    {
        for (i, j) in pairs(22) {
            // The same call twice is a single.
            for (a, b) in deeds().filter(|(a, b)| i != j || a == b) {
                let closing = close_through((i, a), (j, b), rival, patient).await;
                closings += 1;
                retried += closing.retries;
                moved += u64::from(closing.fence > 3);
            }
        }
    }
    assert!(
        closings > 25_000 && retried > 5_000 && moved > 5_000,
        "{closings} {retried} {moved}"
    );
}

/// The owner ships and trims between any two calls of a closer, on a store that works and on one that fails
/// once anywhere.
#[tokio::test(start_paused = true)]
async fn a_living_term_is_closed_at_every_interleaving() {
    let never = (u64::MAX, Fault::None);
    for at in 0..30 {
        for rival in [Rival::Ships(at), Rival::ShipsAndTrims(at)] {
            let closing = close_through(never, never, rival, true).await;
            // What came before the fence is below it.
            assert!(at >= closing.calls || at >= 5 || closing.fence > 4);
            for fault in DEEDS {
                for call in 0..30 {
                    close_through((call, fault), never, rival, true).await;
                }
            }
        }
    }
}

/// Every pair of faults in the calls of shipping, with the term closed before any of them: what is called shipped
/// is below the fence, what is called fenced is not there, and the rest is asked again with the same bytes.
#[tokio::test(start_paused = true)]
async fn shipping_survives_every_pair_of_ambiguous_outcomes() {
    let (mut stored, mut fenced, mut asked_again) = (0, 0, 0);
    for closed_at in (0..8).chain([u64::MAX]) {
        for patient in [true, false] {
            for (i, j) in pairs(8) {
                for (a, b) in deeds().filter(|(a, b)| i != j || a == b) {
                    let told = format!("{i}:{a:?} {j}:{b:?}, closed at {closed_at}, {patient}");
                    let memory = Arc::new(InMemory::new());
                    let owner = Owner::new(&memory, 1).await;
                    owner.ship().await;
                    let heir = Owner::new(&memory, 2).await;
                    let target = owner.term;
                    let store = faulty(&memory, move |call| {
                        if call.number == closed_at {
                            let closing = heir.terms.close(heir.term, target);
                            assert!(closing.now_or_never().is_some_and(|closed| closed.is_ok()));
                        }
                        pick(call, (i, a), (j, b))
                    });
                    let options = if patient { impatient() } else { despondent() };
                    let writer = terms_with(Arc::new(Shared(Arc::clone(&store))), 1, options);
                    let seq = Seq::new(2);
                    let bytes = object(owner.term, seq);
                    let result = loop {
                        match writer.ship(owner.term, seq, bytes.clone()).await {
                            Err(error) if error.kind() == ErrorKind::OutcomeUnknown => {}
                            Err(error) if error.kind() == ErrorKind::Unavailable => {}
                            settled => break settled,
                        }
                        asked_again += 1;
                    };
                    store.release_late().await;
                    let end = owner.terms.end(owner.term).await.unwrap();
                    let key = Key::Journal(target, seq).to_string();
                    let stands = owner.terms.store().get(&key).await.unwrap() == bytes;
                    match (result, end) {
                        (Ok(Shipped::Stored), End::Open(end)) => {
                            assert!(stands && end == seq.next(), "{told}");
                            stored += 1;
                        }
                        (Ok(Shipped::Stored), End::Closed(fence)) => {
                            assert!(stands && fence.seq == seq.next(), "{told}");
                            stored += 1;
                        }
                        (Err(TermError::Fenced { by, .. }), End::Closed(fence)) => {
                            assert!(!stands && fence == by && by.seq == seq, "{told}");
                            fenced += 1;
                        }
                        other => panic!("{other:?}: {told}"),
                    }
                }
            }
        }
    }
    assert!(
        stored > 1_000 && fenced > 1_000 && asked_again > 100,
        "{stored} {fenced}"
    );
}

/// Several lives change one state through a store that fails: every change that was confirmed is in it.
#[tokio::test(start_paused = true)]
async fn confirmed_changes_of_a_state_are_never_lost() {
    for seed in 0..60_u64 {
        let memory = Arc::new(InMemory::new());
        let owner = Owner::new(&memory, 1).await;
        let lives = (2..6_u8).map(|node| {
            let plan = Seeded {
                seed: seed * 100 + u64::from(node),
                per_mille: 250,
                bit_rot: false,
            };
            let store =
                FaultStore::new(Arc::clone(&memory) as Arc<dyn ObjectStore>, Box::new(plan));
            let terms = terms_on(Arc::new(Shared(Arc::clone(&store))), node);
            let term = owner.term;
            tokio::spawn(async move {
                let mut confirmed = 0;
                for n in 1..=5_u64 {
                    let below = n * 10 + u64::from(node);
                    if terms.trim(term, Seq::new(below)).await.is_ok() {
                        confirmed = below;
                    }
                }
                store.release_late().await;
                confirmed
            })
        });
        let lives: Vec<_> = lives.collect();
        let mut highest = 0;
        for life in lives {
            highest = highest.max(life.await.unwrap());
        }
        let trimmed = owner.terms.state(owner.term).await.unwrap().trimmed_below;
        assert!(
            trimmed.get() >= highest,
            "seed {seed}: {trimmed} after {highest} was confirmed"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn racing_closers_agree_on_one_fence() {
    for round in 0..50_u64 {
        let memory = Arc::new(InMemory::new());
        let owner = Owner::new(&memory, 1).await;
        for _ in 0..round % 5 {
            owner.ship().await;
        }
        let mut racing = Vec::new();
        for node in 2..6 {
            let plan = Seeded {
                seed: round * 10 + u64::from(node),
                per_mille: 150,
                bit_rot: false,
            };
            let store =
                FaultStore::new(Arc::clone(&memory) as Arc<dyn ObjectStore>, Box::new(plan));
            let terms = terms_on(Arc::new(Shared(store)), node);
            let clean = terms_on(Arc::clone(&memory) as Arc<dyn ObjectStore>, node);
            let own = clean.claim(None, Term::NONE).await.unwrap().term;
            let target = owner.term;
            racing.push(tokio::spawn(async move {
                for _ in 0..50 {
                    if let Ok(closure) = terms.close(own, target).await {
                        return closure.fence;
                    }
                }
                panic!("no progress");
            }));
        }
        let mut fences = BTreeSet::new();
        for racer in racing {
            let fence = racer.await.unwrap();
            fences.insert((fence.seq, fence.by_term));
        }
        assert_eq!(fences.len(), 1, "round {round}: {fences:?}");
        assert_closed(&memory, &owner, &format!("round {round}")).await;
    }
}

/// T4 at every interleaving: B closes A between any two calls of A's closing C. Either A is stopped before it
/// fences C, or B learns that A inherited C.
#[tokio::test(start_paused = true)]
async fn a_life_that_is_closed_while_it_closes_another_loses_no_tail() {
    let (mut stopped, mut passed_on) = (0, 0);
    for at in 0..40 {
        let memory = Arc::new(InMemory::new());
        let c = Owner::new(&memory, 3).await;
        c.ship().await;
        let a = Owner::new(&memory, 1).await;
        let b = Owner::new(&memory, 2).await;
        let store = faulty(&memory, {
            let (a, b) = (a.clone(), b.clone());
            move |call| {
                if call.number == at {
                    let targets = [a.term];
                    let closing = b.terms.close_all(b.term, &targets);
                    assert!(closing.now_or_never().is_some_and(|closed| closed.is_ok()));
                }
                Fault::None
            }
        });
        let closer = terms_on(Arc::new(Shared(store)), 1);
        let result = closer.close(a.term, c.term).await;
        let c_closed = match b.terms.end(c.term).await.unwrap() {
            End::Closed(fence) => Some(fence.by_term),
            End::Open(_) => None,
        };
        let heirs = b.terms.state(b.term).await.unwrap().inherited;
        let b_knows = heirs.iter().any(|known| known.term == c.term);
        match result {
            Err(TermError::Fenced { term, by }) => {
                assert_eq!((term, by.by_term), (a.term, b.term));
                assert!(c_closed.is_none() || b_knows, "at {at}");
                stopped += 1;
            }
            Ok(_) => {
                assert!(c_closed.is_some());
                let b_closed_a = matches!(b.terms.end(a.term).await.unwrap(), End::Closed(_));
                assert!(!b_closed_a || b_knows, "at {at}: C's tail has no heir");
                passed_on += i32::from(b_closed_a);
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(stopped > 0 && passed_on > 0, "{stopped} {passed_on}");
}

#[tokio::test(start_paused = true)]
async fn a_late_writer_lands_on_the_fence_and_is_told() {
    let memory = Arc::new(InMemory::new());
    let owner = Owner::new(&memory, 1).await;
    owner.ship().await;
    // Its second object is on its way and nobody knows where.
    let slow = faulty(&memory, |call| match call.op {
        tidelog_testkit::faultstore::Op::Put => Fault::Late(1_000),
        _ => Fault::Before,
    });
    let writer = terms_on(Arc::new(Shared(Arc::clone(&slow))), 1);
    let second = object(owner.term, Seq::new(2));
    let unknown = writer
        .ship(owner.term, Seq::new(2), second.clone())
        .await
        .unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::OutcomeUnknown);

    let heir = Owner::new(&memory, 2).await;
    let closure = heir.terms.close(heir.term, owner.term).await.unwrap();
    assert_eq!(closure.fence.seq, Seq::new(2));
    slow.release_late().await;
    slow.set_plan(script(|_| Fault::None));
    let told = writer
        .ship(owner.term, Seq::new(2), second)
        .await
        .unwrap_err();
    assert_eq!(told.kind(), ErrorKind::Fenced);
    // What is shipped above a fence does not exist.
    let third = object(owner.term, Seq::new(3));
    assert!(matches!(
        owner.terms.ship(owner.term, Seq::new(3), third).await,
        Ok(Shipped::Stored)
    ));
    assert_closed(&memory, &owner, "with an object above the fence").await;
    assert_eq!(
        heir.terms.close(heir.term, owner.term).await.unwrap(),
        closure
    );
}

#[tokio::test(start_paused = true)]
async fn a_fence_where_an_object_was_trimmed_is_void() {
    let memory = Arc::new(InMemory::new());
    let owner = Owner::new(&memory, 1).await;
    let heir = Owner::new(&memory, 2).await;
    for _ in 0..3 {
        owner.ship().await;
    }
    owner.trim().await;
    // A closer's request from long ago lands at 2, which is free again.
    let stale = tidelog_archive::journal::Fence {
        term: owner.term,
        seq: Seq::new(2),
        by_term: heir.term,
        by_node: NodeId::from_bytes([2; 16]),
        wall: tidelog_wal::Timestamp::ZERO,
    };
    let bytes = stale.encode(WriteId([9; 16])).unwrap().bytes;
    let key = Key::Journal(owner.term, Seq::new(2)).to_string();
    heir.terms.store().create(&key, bytes).await.unwrap();

    assert_eq!(
        heir.terms.end(owner.term).await.unwrap(),
        End::Open(Seq::new(4))
    );
    owner.ship().await;
    assert!(owner.acknowledged.lock().unwrap().contains(&4));
    let closure = heir.terms.close(heir.term, owner.term).await.unwrap();
    assert_eq!(closure.fence.seq, Seq::new(5));
    // It is never deleted, void or not.
    heir.terms.trim(owner.term, Seq::new(5)).await.unwrap();
    assert_eq!(
        heir.terms
            .delete_trimmed(owner.term, Seq::FIRST)
            .await
            .unwrap(),
        1
    );
    assert!(heir.terms.store().get(&key).await.is_ok());
    assert_eq!(
        heir.terms.end(owner.term).await.unwrap(),
        End::Closed(closure.fence)
    );
}

#[tokio::test(start_paused = true)]
async fn a_lost_object_is_missed_and_never_taken_for_the_end() {
    let memory = Arc::new(InMemory::new());
    let owner = Owner::new(&memory, 1).await;
    let heir = Owner::new(&memory, 2).await;
    for _ in 0..6 {
        owner.ship().await;
    }
    heir.terms.close(heir.term, owner.term).await.unwrap();
    let key = Key::Journal(owner.term, Seq::new(3)).to_string();
    heir.terms.store().delete(&key).await.unwrap();
    let error = heir.terms.close(heir.term, owner.term).await.unwrap_err();
    assert!(
        matches!(&error, TermError::Missing { key: found } if *found == key),
        "{error}"
    );
    let mut walk = heir.terms.walk(owner.term, Seq::FIRST).await.unwrap();
    for _ in 0..2 {
        assert!(matches!(walk.step().await.unwrap(), Step::Object(..)));
    }
    assert_eq!(walk.step().await.unwrap_err().kind(), ErrorKind::Corrupt);
}

/// A reader walks while the owner ships, trims and deletes, on a store that fails: it sees every object once
/// and in order, or is told that it was trimmed.
#[tokio::test(start_paused = true)]
async fn a_walk_through_a_moving_journal_leaves_nothing_out_unsaid() {
    let mut trimmed_seen = 0;
    for seed in 0..300 {
        let memory = Arc::new(InMemory::new());
        let owner = Owner::new(&memory, 1).await;
        let heir = Owner::new(&memory, 2).await;
        for _ in 0..3 {
            owner.ship().await;
        }
        let plan = Seeded {
            seed,
            per_mille: 200,
            bit_rot: false,
        };
        let store = FaultStore::new(Arc::clone(&memory) as Arc<dyn ObjectStore>, Box::new(plan));
        let reader = terms_on(Arc::new(Shared(store)), 3);
        let mut walk = loop {
            if let Ok(walk) = reader.walk(owner.term, Seq::FIRST).await {
                break walk;
            }
        };
        let mut next = 1;
        let mut steps = 0_u64;
        let end = loop {
            steps += 1;
            assert!(steps < 1_000, "seed {seed}: no end");
            match (seed + steps) % 7 {
                1 if steps < 30 => owner.ship().await,
                3 if steps < 30 => owner.trim().await,
                _ if steps == 30 => {
                    heir.terms.close(heir.term, owner.term).await.unwrap();
                }
                _ => {}
            }
            match walk.step().await {
                Ok(Step::Object(seq, _)) => {
                    assert_eq!(seq.get(), next, "seed {seed}");
                    next += 1;
                }
                Ok(Step::Trimmed(below)) => {
                    assert!(below.get() > next, "seed {seed}");
                    next = below.get();
                    trimmed_seen += 1;
                }
                Ok(Step::End(end)) => break end,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
            }
        };
        match end {
            End::Closed(fence) => assert_eq!(fence.seq.get(), next, "seed {seed}"),
            End::Open(seq) => assert_eq!(seq.get(), next, "seed {seed}"),
        }
    }
    assert!(trimmed_seen > 0);
}

/// The owner ships, trims and deletes between any two calls of a reader: what is deleted is said to be trimmed,
/// and the end is the true one.
#[tokio::test(start_paused = true)]
async fn a_walk_at_every_interleaving_ends_where_the_term_does() {
    let mut skipped = 0;
    for at in 0..30 {
        let memory = Arc::new(InMemory::new());
        let owner = Owner::new(&memory, 1).await;
        owner.ship().await;
        owner.ship().await;
        let store = faulty(&memory, {
            let owner = owner.clone();
            move |call| {
                Rival::ShipsAndTrims(at).acts(&owner, call.number);
                Fault::None
            }
        });
        let reader = terms_on(Arc::new(Shared(Arc::clone(&store))), 3);
        let mut walk = reader.walk(owner.term, Seq::FIRST).await.unwrap();
        let mut next = walk.at().get();
        let end = loop {
            match walk.step().await.unwrap() {
                Step::Object(seq, _) => {
                    assert_eq!(seq.get(), next, "at {at}");
                    next += 1;
                }
                Step::Trimmed(below) => {
                    assert!(below.get() > next, "at {at}");
                    next = below.get();
                    skipped += 1;
                }
                Step::End(end) => break end,
            }
        };
        assert_eq!(end, End::Open(Seq::new(next)), "at {at}");
        assert_eq!(next, owner.next.load(Ordering::Relaxed), "at {at}");
    }
    assert!(skipped > 0);
}

#[tokio::test(start_paused = true)]
async fn the_root_is_made_once_and_learns_of_every_claim() {
    let memory = Arc::new(InMemory::new());
    let first = terms_on(Arc::clone(&memory) as Arc<dyn ObjectStore>, 1);
    assert!(matches!(first.root().await, Err(TermError::NoRoot)));
    let root = Root {
        cluster: ClusterId::from_bytes([1; 16]),
        format_version: 1,
        system_namespace: NamespaceId::from_bytes([2; 16]),
        system_database: DatabaseId::from_bytes([3; 16]),
        highest_term: Term::NONE,
        nodes: Vec::new(),
    };
    first.create_root(&root).await.unwrap();
    assert!(matches!(
        first.create_root(&root).await,
        Err(TermError::RootExists)
    ));
    let racing = (1..=8_u8).map(|node| {
        let terms = terms_on(Arc::clone(&memory) as Arc<dyn ObjectStore>, node);
        tokio::spawn(async move { terms.note_claim(Term::new(u32::from(node))).await.unwrap() })
    });
    for noted in racing {
        noted.await.unwrap();
    }
    let root = first.root().await.unwrap();
    assert_eq!(root.highest_term, Term::new(8));
    assert_eq!(root.nodes.len(), 8);
}

#[tokio::test(start_paused = true)]
async fn foreign_and_damaged_slots_are_corrupt_by_name() {
    let memory = Arc::new(InMemory::new());
    let owner = Owner::new(&memory, 1).await;
    let heir = Owner::new(&memory, 2).await;
    let key = Key::Journal(owner.term, Seq::FIRST).to_string();
    // A root in a journal's place.
    let foreign = encode_payload(
        Expect::node(ObjectKind::Root),
        Stamp::plain(WriteId([4; 16])),
        b"x".to_vec(),
    );
    owner
        .terms
        .store()
        .create(&key, foreign.unwrap().bytes)
        .await
        .unwrap();
    let shipped = owner
        .terms
        .ship(owner.term, Seq::FIRST, object(owner.term, Seq::FIRST))
        .await;
    let closed = heir.terms.close(heir.term, owner.term).await.map(drop);
    for error in [shipped.unwrap_err(), closed.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains(&key), "{error}");
    }
    // A term that nobody claimed is not closed.
    let error = heir
        .terms
        .close(heir.term, Term::new(77))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}
