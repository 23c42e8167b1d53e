//! Deltas form a group: apply then reverse is identity, merging is associative and equals the direct delta,
//! and the digest moves with every application (DESIGN section 2).

use proptest::prelude::*;
use tidelog_wal::delta::{Delta, DeltaEncoder, Merge};
use tidelog_wal::page::mask_page1;
use tidelog_wal::{Digest, DigestSeed, PageCount, PageNo, PageSize};

const SIZE: PageSize = match PageSize::new(512) {
    Some(size) => size,
    None => panic!("512 is a page size"),
};
const SEED: DigestSeed = DigestSeed::new(42);

/// A state: whole pages, page 1 masked.
type State = Vec<Vec<u8>>;

fn n(state: &State) -> PageCount {
    PageCount::new(u32::try_from(state.len()).expect("few pages"))
}

fn between(a: &State, b: &State) -> Delta {
    Delta::between(
        SIZE,
        (n(a), |page: PageNo| a[page.get() as usize - 1].as_slice()),
        (n(b), |page: PageNo| b[page.get() as usize - 1].as_slice()),
    )
}

fn apply(delta: &Delta, state: &State) -> State {
    assert_eq!(delta.n_before, n(state));
    let mut pages = state.clone();
    let longest = delta.n_before.max(delta.n_after).get() as usize;
    pages.resize(longest, vec![0; SIZE.bytes()]);
    for page in delta.pages() {
        let page = page.expect("own encoding decodes");
        page.apply(&mut pages[page.page.get() as usize - 1]);
    }
    for cut in pages.drain(delta.n_after.get() as usize..) {
        assert!(
            cut.iter().all(|byte| *byte == 0),
            "pages beyond the end become zero"
        );
    }
    pages
}

fn digest(state: &State) -> Digest {
    Digest::of(SIZE, n(state), |page| {
        Ok::<_, std::convert::Infallible>(SEED.page(page, &state[page.get() as usize - 1]))
    })
    .expect("infallible")
}

fn merge(deltas: &[&Delta]) -> Delta {
    let mut merge = Merge::new(SIZE, deltas[0].n_before);
    for delta in deltas {
        merge
            .add(&delta.pages, delta.n_before, delta.n_after)
            .expect("own encoding decodes");
    }
    merge.finish()
}

/// Pages are mostly zero with a few bytes set, at times noise: what runs, gaps and whole pages are made of.
fn page() -> impl Strategy<Value = Vec<u8>> {
    let sparse = proptest::collection::vec((0..512_usize, any::<u8>()), 0..12).prop_map(|bytes| {
        let mut page = vec![0; 512];
        for (at, byte) in bytes {
            page[at] = byte;
        }
        page
    });
    prop_oneof![4 => sparse, 1 => proptest::collection::vec(any::<u8>(), 512)]
}

fn state() -> impl Strategy<Value = State> {
    proptest::collection::vec(page(), 0..8).prop_map(|mut pages| {
        if let Some(first) = pages.first_mut() {
            mask_page1(first);
        }
        pages
    })
}

proptest! {
    #[test]
    fn apply_leads_to_the_target_and_reverse_back(a in state(), b in state()) {
        let delta = between(&a, &b);
        prop_assert_eq!(&apply(&delta, &a), &b);
        prop_assert_eq!(&apply(&delta.clone().reversed(), &b), &a);
    }

    #[test]
    fn merge_is_associative_and_equals_the_direct_delta(
        a in state(), b in state(), c in state(), d in state()
    ) {
        let (ab, bc, cd) = (between(&a, &b), between(&b, &c), between(&c, &d));
        let all = merge(&[&ab, &bc, &cd]);
        prop_assert_eq!(&all, &merge(&[&merge(&[&ab, &bc]), &cd]));
        prop_assert_eq!(&all, &merge(&[&ab, &merge(&[&bc, &cd])]));
        prop_assert_eq!(&all, &between(&a, &d));
        prop_assert_eq!(&apply(&all, &a), &d);
        prop_assert!(merge(&[&ab, &ab.clone().reversed()]).pages.is_empty());
    }

    #[test]
    fn digests_of_two_states_differ_by_what_the_delta_changes(a in state(), b in state()) {
        let delta = between(&a, &b);
        let mut moved = digest(&a).resize(n(&a), n(&b), SIZE);
        let touched: std::collections::BTreeSet<u32> = delta
            .pages()
            .map(|page| page.expect("decodes").page.get())
            .chain(n(&a).min(n(&b)).get() + 1..=n(&a).max(n(&b)).get())
            .collect();
        for number in touched {
            let page = PageNo::new(number).expect("from 1");
            let hash = |state: &State| state.get(number as usize - 1).map(|p| SEED.page(page, p)).unwrap_or_default();
            moved = moved.replace(hash(&a), hash(&b));
        }
        prop_assert_eq!(moved, digest(&b));
    }

    #[test]
    fn what_two_encoders_share_is_what_one_writes(a in state(), b in state(), cut in 0..9_usize) {
        let zeros = vec![0; SIZE.bytes()];
        let longest = a.len().max(b.len());
        let encode = |encoder: &mut DeltaEncoder, range: std::ops::Range<usize>| {
            let mut out = Vec::new();
            for at in range {
                let (old, new) = (a.get(at).unwrap_or(&zeros), b.get(at).unwrap_or(&zeros));
                let page = PageNo::new(u32::try_from(at + 1).expect("few pages")).expect("not 0");
                encoder.page(page, old, new, &mut out);
            }
            out
        };
        let (mut first, mut second) = (DeltaEncoder::new(SIZE), DeltaEncoder::new(SIZE));
        let cut = cut.min(longest);
        let mut joined = encode(&mut first, 0..cut);
        let later = encode(&mut second, cut..longest);
        first.join(&second, &later, &mut joined);
        prop_assert_eq!(&joined, &between(&a, &b).pages);
        // And the first one goes on from there.
        let page = PageNo::new(100).expect("not 0");
        let (mut on, mut whole) = (Vec::new(), Vec::new());
        first.page(page, &zeros, &[1; 512], &mut on);
        let mut alone = DeltaEncoder::new(SIZE);
        encode(&mut alone, 0..longest);
        alone.page(page, &zeros, &[1; 512], &mut whole);
        prop_assert_eq!(on, whole);
    }

    #[test]
    fn a_delta_that_does_not_follow_is_refused(a in state(), b in state()) {
        let delta = between(&a, &b);
        let mut merge = Merge::new(SIZE, PageCount::new(n(&a).get() + 1));
        prop_assert!(merge.add(&delta.pages, delta.n_before, delta.n_after).is_err());
    }

    #[test]
    fn damaged_bytes_never_panic(a in state(), b in state(), at: usize, bit in 0..8_u8) {
        let mut delta = between(&a, &b);
        if !delta.pages.is_empty() {
            let at = at % delta.pages.len();
            delta.pages[at] ^= 1 << bit;
        }
        for page in delta.pages().flatten() {
            prop_assert!(delta.n_before.max(delta.n_after).contains(page.page));
            page.apply(&mut vec![0; SIZE.bytes()]);
        }
    }
}

#[test]
fn a_delta_over_the_lock_page_leaves_it_out() {
    let lock = SIZE.lock_page().get();
    let zeros = vec![0; SIZE.bytes()];
    let ones = vec![1; SIZE.bytes()];
    let before = PageCount::new(lock - 2);
    let after = PageCount::new(lock + 1);
    let delta = Delta::between(
        SIZE,
        (before, |_| zeros.as_slice()),
        (after, |page: PageNo| {
            if page.get() >= lock - 1 {
                ones.as_slice()
            } else {
                zeros.as_slice()
            }
        }),
    );
    let pages: Vec<u32> = delta
        .pages()
        .map(|page| page.expect("decodes").page.get())
        .collect();
    assert_eq!(pages, [lock - 1, lock + 1]);
}
