//! Promises of bookmarks and times: each way of not being usable is told apart, and names what is.

mod format_support;

use format_support::world::World;
use format_support::{Dice, History};
use tidelog_archive::ErrorKind;
use tidelog_archive::manifest::{Gap, GapReason, Marked, TermStart};
use tidelog_archive::plan::{PlanError, Resolved, Target, Terms};
use tidelog_wal::{Chain, Position, Term, Timestamp, TxId};

/// Twenty commits of term 3 and ten of term 5; term 4 was claimed and committed nothing here that was
/// shipped; term 6 is running.
async fn world() -> World {
    let mut history = History::random(512, 20, &mut Dice(21));
    history.term = Term::new(5);
    let mut dice = Dice(4);
    for _ in 0..10 {
        let mut pages = history.state();
        pages.push(dice.bytes(512));
        history.commit(pages);
    }
    let mut world = World::new(history);
    world.manifest.owner.term = Term::new(5);
    world.manifest.terms.push(TermStart {
        term: Term::new(5),
        first: TxId::new(21),
    });
    world.settle(1, 12).await;
    world.settle(13, 22).await;
    world.ship(1, 23, 30).await;
    world.image(12).await;
    world
}

const TERMS: Terms = Terms {
    highest_claimed: Term::new(6),
    present: Some(Term::new(6)),
};

async fn resolve(world: &World, target: Target) -> Result<Resolved, PlanError> {
    world.known().resolve(&world.store, target, TERMS).await
}

async fn bookmark(
    world: &World,
    term: u32,
    txid: u64,
    chain: Chain,
) -> Result<Resolved, PlanError> {
    let position = Position {
        term: Term::new(term),
        txid: TxId::new(txid),
        chain,
    };
    resolve(world, Target::Position(position)).await
}

#[tokio::test]
async fn every_bookmark_resolves_to_its_commit() {
    let world = world().await;
    for commit in &world.history.commits {
        let found = resolve(&world, Target::Position(commit.position))
            .await
            .expect("found");
        assert_eq!(found.position, commit.position);
        assert_eq!(found.digest, commit.header.digest);
        assert_eq!(found.n, commit.header.n_after);
        assert_eq!(found.time, commit.header.time);
    }
    let head = resolve(&world, Target::Head).await.expect("head");
    assert_eq!(head.position, world.history.at(30).position);
}

#[tokio::test]
async fn a_time_resolves_to_the_last_commit_at_or_before_it() {
    let world = world().await;
    for txid in 1..=30 {
        for later in [0, 1, 999] {
            let time = Timestamp::from_micros(world.time(txid).micros() + later);
            let found = resolve(&world, Target::Time(time)).await.expect("found");
            assert_eq!(
                found.position,
                world.history.at(txid).position,
                "{txid} + {later}"
            );
        }
    }
    let before = Timestamp::from_micros(world.time(1).micros() - 1);
    let error = resolve(&world, Target::Time(before))
        .await
        .expect_err("before");
    let first = Some(world.history.at(1).position);
    assert!(matches!(error, PlanError::BeforeHistory { nearest, .. } if nearest == first));
    let late = resolve(&world, Target::Time(Timestamp::MAX))
        .await
        .expect("head");
    assert_eq!(late.position, world.history.at(30).position);
}

#[tokio::test]
async fn a_bookmark_of_a_term_never_claimed_is_unknown() {
    let world = world().await;
    let error = bookmark(&world, 7, 3, Chain::default())
        .await
        .expect_err("unknown");
    let newest = Some(world.history.at(30).position);
    assert!(
        matches!(error, PlanError::Unknown { head, .. } if head == newest),
        "{error}"
    );
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn a_bookmark_of_another_history_is_foreign() {
    let world = world().await;
    for txid in [3, 12, 22, 28] {
        let term = world.history.at(txid).position.term.get();
        let error = bookmark(&world, term, txid, Chain::default())
            .await
            .expect_err("foreign");
        let ours = Some(world.history.at(txid).position);
        assert!(
            matches!(error, PlanError::Foreign { nearest, .. } if nearest == ours),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_bookmark_past_its_terms_end_is_lost_and_names_the_end() {
    let world = world().await;
    let at = |txid| Some(world.history.at(txid).position);
    // Term 3 ended at 20, term 5 at 30 (it is not running), term 4 shipped nothing.
    for (term, txid, nearest) in [
        (3, 21, at(20)),
        (3, 400, at(20)),
        (5, 31, at(30)),
        (4, 21, at(20)),
    ] {
        let error = bookmark(&world, term, txid, Chain::default())
            .await
            .expect_err("lost");
        match error {
            PlanError::Lost {
                nearest_earlier, ..
            } => assert_eq!(nearest_earlier, nearest, "{term} {txid}"),
            other => panic!("{term} {txid}: {other}"),
        }
    }
}

#[tokio::test]
async fn a_bookmark_of_the_running_term_past_the_head_is_in_the_future() {
    let world = world().await;
    let head = Some(world.history.at(30).position);
    let error = bookmark(&world, 6, 31, Chain::default())
        .await
        .expect_err("future");
    assert!(
        matches!(error, PlanError::InFuture { head: h, .. } if h == head),
        "{error}"
    );
    let error = resolve(&world, Target::TxId(TxId::new(31)))
        .await
        .expect_err("future");
    assert!(
        matches!(error, PlanError::InFuture { head: h, .. } if h == head),
        "{error}"
    );
}

#[tokio::test]
async fn a_state_below_the_horizon_is_expired_unless_it_is_pinned() {
    let mut world = world().await;
    world.manifest.horizon = TxId::new(14);
    let gone = world.manifest.segments.remove(0);
    world
        .manifest
        .marked
        .push(Marked::segment(&gone, Timestamp::ZERO));
    let nearest = Some(world.history.at(14).position);
    for target in [
        Target::Position(world.history.at(5).position),
        Target::TxId(TxId::new(13)),
        Target::Time(world.time(13)),
        Target::Time(world.time(2)),
    ] {
        let error = resolve(&world, target).await.expect_err("expired");
        assert!(
            matches!(error, PlanError::Expired { nearest: n, .. } if n == nearest),
            "{target:?}: {error}"
        );
    }
    let plan = world
        .plan(Target::TxId(TxId::new(14)), None)
        .await
        .expect("kept");
    world.check(&plan, None).await;
}

#[tokio::test]
async fn a_gap_is_neither_crossed_nor_guessed() {
    let mut world = world().await;
    world.manifest.gaps.push(Gap {
        after: TxId::new(15),
        resumes: TxId::new(16),
        from: world.time(15),
        to: world.time(16),
        reason: GapReason::Discontinuity,
    });
    let inside = Timestamp::from_micros(world.time(15).micros() + 1);
    let error = resolve(&world, Target::Time(inside))
        .await
        .expect_err("gap");
    let (before, after) = (world.history.at(15).position, world.history.at(16).position);
    assert!(
        matches!(
            error,
            PlanError::Gap { nearest_earlier, nearest_later, .. }
                if nearest_earlier == Some(before) && nearest_later == Some(after)
        ),
        "{error}"
    );
    // Both edges exist; behind the gap there is no start yet.
    let plan = world
        .plan(Target::TxId(TxId::new(15)), None)
        .await
        .expect("before the gap");
    world.check(&plan, None).await;
    let error = world
        .plan(Target::TxId(TxId::new(20)), None)
        .await
        .expect_err("no start");
    assert!(matches!(error, PlanError::Gap { .. }), "{error}");
    world.image(16).await;
    for txid in 1..=30 {
        let plan = world
            .plan(Target::TxId(TxId::new(txid)), None)
            .await
            .expect("plan");
        assert_eq!(plan.start.txid() >= TxId::new(16), txid >= 16, "{plan}");
        world.check(&plan, None).await;
    }
}

/// Where records have expired up to an image, the image tells what its commit was, and a time before it is
/// expired even if something older is pinned: commits may be missing in between.
#[tokio::test]
async fn where_records_are_gone_an_image_stands_for_its_commit() {
    let mut world = world().await;
    let gone = world.manifest.segments.remove(0);
    let end = gone.run.last.get();
    assert_eq!(world.manifest.images[0].position.txid, gone.run.last);
    world
        .manifest
        .marked
        .push(Marked::segment(&gone, Timestamp::ZERO));
    world.manifest.horizon = gone.run.last;
    let there = world.history.at(end).position;
    let later = Timestamp::from_micros(world.time(end).micros() + 1);
    for target in [
        Target::Position(there),
        Target::TxId(gone.run.last),
        Target::Time(world.time(end)),
        Target::Time(later),
    ] {
        let found = resolve(&world, target).await.expect("kept");
        assert_eq!(found.position, there, "{target:?}");
        let plan = world.plan(target, None).await.expect("a plan");
        world.check(&plan, None).await;
    }
    for target in [
        Target::Position(world.history.at(end - 1).position),
        Target::TxId(TxId::new(end - 1)),
        Target::Time(world.time(end - 1)),
    ] {
        let error = resolve(&world, target).await.expect_err("expired");
        assert!(
            matches!(error, PlanError::Expired { nearest, .. } if nearest == Some(there)),
            "{target:?}: {error}"
        );
    }
    // With every segment gone, the image is the head.
    world.manifest.index.clear();
    world.tail.clear();
    for entry in std::mem::take(&mut world.manifest.segments) {
        let at = Timestamp::ZERO;
        world.manifest.marked.push(Marked::segment(&entry, at));
    }
    let settled = world.manifest.settled.expect("settled").position;
    world.image(settled.txid.get()).await;
    world.manifest.horizon = settled.txid;
    world.manifest.check_self().expect("sound");
    let head = resolve(&world, Target::Head).await.expect("head");
    assert_eq!(head.position, settled);
}
