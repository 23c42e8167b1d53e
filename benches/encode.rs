//! The encode path of a commit, step by step, over pages recorded from the OLTP mix: elements are commits,
//! so that criterion prints commits a second of one core.
//!
//! `cargo bench --bench encode`. The recorded pages exceed the caches, as a busy node's do.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use tidelog_testkit::oltp::ROWS;
use tidelog_testkit::recorder::{Recorded, record_oltp};
use tidelog_wal::block::Compressor;
use tidelog_wal::delta::DeltaEncoder;
use tidelog_wal::record::{RecordHeader, RecordKind, TimeFlag};
use tidelog_wal::{Chain, Digest, DigestSeed, PageSize, Term, Timestamp, TxId, chain};

const SIZE: PageSize = PageSize::DEFAULT;
const SEED: DigestSeed = DigestSeed::new(0x5eed);
const COMMITS: u64 = 1_000;
/// Commits a batch: what one second of 100 commits/s ships.
const BATCH: usize = 100;

/// Appends the canonical record of a commit; what capture does for it beside reading pages. Hashes of old
/// pages are zero here: capture keeps them from the commit before.
fn encode(
    commit: &Recorded,
    txid: TxId,
    encoder: &mut DeltaEncoder,
    pages: &mut Vec<u8>,
    out: &mut Vec<u8>,
) {
    pages.clear();
    encoder.reset();
    let mut digest = Digest::default().resize(commit.n_before, commit.n_after, SIZE);
    for pair in &commit.pages {
        if encoder.page(pair.page, &pair.old, &pair.new, pages) {
            let new = SEED.page(pair.page, &pair.new);
            digest = digest.replace(tidelog_wal::digest::PageHash::ABSENT, new);
        }
    }
    let header = RecordHeader {
        term: Term::FIRST,
        txid,
        time: Timestamp::from_micros(1_800_000_000_000_000 + txid.get() * 10_007),
        wall: Timestamp::from_micros(1_800_000_000_000_000 + txid.get() * 10_007),
        flag: TimeFlag::Live,
        n_before: commit.n_before,
        n_after: commit.n_after,
        digest,
        annotations: Vec::new(),
    };
    header.encode(RecordKind::Delta, out);
    out.extend_from_slice(pages);
}

fn records(commits: &[Recorded]) -> Vec<Vec<u8>> {
    let mut encoder = DeltaEncoder::new(SIZE);
    let mut pages = Vec::new();
    commits
        .iter()
        .zip(1..)
        .map(|(commit, txid)| {
            let mut record = Vec::new();
            encode(
                commit,
                TxId::new(txid),
                &mut encoder,
                &mut pages,
                &mut record,
            );
            record
        })
        .collect()
}

fn steps(c: &mut Criterion, commits: &[Recorded]) {
    let mut group = c.benchmark_group("encode");
    group.throughput(Throughput::Elements(commits.len() as u64));
    group.bench_function("diff", |b| {
        let (mut encoder, mut out) = (DeltaEncoder::new(SIZE), Vec::new());
        b.iter(|| {
            out.clear();
            for commit in commits {
                encoder.reset();
                for pair in &commit.pages {
                    encoder.page(pair.page, &pair.old, &pair.new, &mut out);
                }
            }
            out.len()
        });
    });
    group.bench_function("digest", |b| {
        b.iter(|| {
            let pages = commits.iter().flat_map(|commit| &commit.pages);
            for pair in pages {
                black_box(SEED.page(pair.page, &pair.new));
            }
        });
    });
    let records = records(commits);
    group.bench_function("chain", |b| {
        b.iter(|| {
            let link = |before, record: &Vec<u8>| chain::step(before, record);
            records.iter().fold(Chain::default(), link)
        });
    });
    for level in [1, 3] {
        group.bench_function(format!("zstd {level}"), |b| {
            let batches: Vec<Vec<u8>> = records.chunks(BATCH).map(<[_]>::concat).collect();
            let (mut compressor, mut out) = (Compressor::new(level), Vec::new());
            b.iter(|| {
                out.clear();
                for batch in &batches {
                    compressor.compress(batch, &mut out);
                }
                out.len()
            });
        });
        group.bench_function(format!("whole path, zstd {level}"), |b| {
            let mut encoder = DeltaEncoder::new(SIZE);
            let (mut pages, mut batch, mut out) = (Vec::new(), Vec::new(), Vec::new());
            let mut compressor = Compressor::new(level);
            b.iter(|| {
                out.clear();
                let mut link = Chain::default();
                let mut txid = TxId::ZERO;
                for commits in commits.chunks(BATCH) {
                    batch.clear();
                    for commit in commits {
                        txid = txid.next();
                        let start = batch.len();
                        encode(commit, txid, &mut encoder, &mut pages, &mut batch);
                        link = chain::step(link, &batch[start..]);
                    }
                    compressor.compress(&batch, &mut out);
                }
                (link, out.len())
            });
        });
    }
    group.finish();
}

fn main() {
    let commits = record_oltp(ROWS, 8_500, COMMITS).expect("plain SQLite runs the mix");
    let mut criterion = Criterion::default().configure_from_args();
    steps(&mut criterion, &commits);
    criterion.final_summary();
}
