//! What sealing costs: the encode path of a node up to a finished journal object, and a restore from the bucket
//! alone, each plain and sealed.
//!
//! `cargo bench --bench seal`. Encode: elements are commits of the OLTP mix, one core. Restore: bytes are those of the
//! restored file; store and file lie in the temporary folder, so that no network hides the cost. Criterion runs plain
//! and sealed minutes apart, in which a machine changes by more than sealing costs: what it costs is therefore also
//! measured in pairs, one right after the other.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode, Throughput};
use tidelog_archive::SystemEntropy;
use tidelog_archive::envelope::KeyId;
use tidelog_archive::journal::{JournalObjectBuilder, SectionMeta};
use tidelog_archive::key::Seq;
use tidelog_archive::seal::{SealKey, Stamp};
use tidelog_engine::bucket::{At, Bucket};
use tidelog_engine::{Engine, MasterKeys, Parts, Settings};
use tidelog_testkit::oltp::ROWS;
use tidelog_testkit::recorder::{Recorded, record_oltp};
use tidelog_testkit::sealing::sealed_masters;
use tidelog_wal::block::Compressor;
use tidelog_wal::delta::DeltaEncoder;
use tidelog_wal::record::{RecordHeader, RecordKind, TimeFlag};
use tidelog_wal::{
    Chain, DatabaseId, Digest, DigestSeed, NamespaceId, PageSize, Term, Timestamp, TxId, chain,
};

const SIZE: PageSize = PageSize::DEFAULT;
const SEED: DigestSeed = DigestSeed::new(0x5eed);
const COMMITS: u64 = 1_000;
/// Commits an object: what one second of 100 commits/s ships.
const BATCH: usize = 100;
/// Rows of the database that is restored, a kilobyte each.
const RESTORED_ROWS: u32 = 128 << 10;
/// Pairs of one plain and one sealed run.
const PAIRS: usize = 101;

struct Encoded {
    header: RecordHeader,
    before: Chain,
    after: Chain,
    bytes: std::ops::Range<usize>,
}

/// Everything a node does for a batch of commits between reading their pages and the finished object.
fn encode(
    commits: &[Recorded],
    encoder: &mut DeltaEncoder,
    compressor: Compressor,
    key: Option<&Arc<SealKey>>,
) -> (u64, Compressor) {
    let mut buffer = Vec::new();
    let mut pages = Vec::new();
    let mut done: Vec<Encoded> = Vec::new();
    let mut link = Chain::default();
    for (commit, number) in commits.iter().zip(1..) {
        pages.clear();
        encoder.reset();
        let mut digest = Digest::default().resize(commit.n_before, commit.n_after, SIZE);
        for pair in &commit.pages {
            if encoder.page(pair.page, &pair.old, &pair.new, &mut pages) {
                let new = SEED.page(pair.page, &pair.new);
                digest = digest.replace(tidelog_wal::digest::PageHash::ABSENT, new);
            }
        }
        let header = RecordHeader {
            term: Term::FIRST,
            txid: TxId::new(number),
            time: Timestamp::from_micros(1_800_000_000_000_000 + number * 10_007),
            wall: Timestamp::from_micros(1_800_000_000_000_000 + number * 10_007),
            flag: TimeFlag::Live,
            n_before: commit.n_before,
            n_after: commit.n_after,
            digest,
            annotations: Vec::new(),
        };
        let start = buffer.len();
        header.encode(RecordKind::Delta, &mut buffer);
        buffer.extend_from_slice(&pages);
        let before = link;
        link = chain::step(link, &buffer[start..]);
        done.push(Encoded {
            header,
            before,
            after: link,
            bytes: start..buffer.len(),
        });
    }
    let (Some(first), Some(last)) = (done.first(), done.last()) else {
        return (0, compressor);
    };
    let meta = SectionMeta {
        namespace: NamespaceId::from_bytes([1; 16]),
        database: DatabaseId::from_bytes([2; 16]),
        page_size: SIZE,
        seed: SEED,
        key_id: KeyId::default(),
        first: first.header.txid,
        last: last.header.txid,
        first_term: Term::FIRST,
        last_term: Term::FIRST,
        first_time: first.header.time,
        last_time: last.header.time,
        chain_before: first.before,
        chain_after: last.after,
        digest_after: last.header.digest,
        n_before: first.header.n_before,
        n_after: last.header.n_after,
    };
    let stamp = Stamp::draw(&SystemEntropy, key.cloned());
    let locals = (1, done.len() as u64);
    let mut builder = JournalObjectBuilder::new(Term::FIRST, Seq::FIRST, locals, stamp, compressor);
    builder
        .section(meta, key.map(AsRef::as_ref))
        .expect("a section");
    for record in &done {
        builder
            .push(&buffer[record.bytes.clone()])
            .expect("a record");
    }
    let (finished, compressor) = builder.finish().expect("an object");
    (finished.len, compressor)
}

fn encoding(c: &mut Criterion) {
    let commits = record_oltp(ROWS, 8_500, COMMITS).expect("plain SQLite runs the mix");
    let key = Arc::new(SealKey::draw(&SystemEntropy, Timestamp::ZERO));
    let mut group = c.benchmark_group("encode to an object");
    group.throughput(Throughput::Elements(commits.len() as u64));
    for level in [1, 3] {
        for (name, key) in [("plain", None), ("sealed", Some(&key))] {
            group.bench_function(format!("{name}, zstd {level}"), |b| {
                let mut encoder = DeltaEncoder::new(SIZE);
                let mut compressor = Some(Compressor::new(level));
                b.iter(|| {
                    let mut bytes = 0;
                    for batch in commits.chunks(BATCH) {
                        let held = compressor.take().expect("handed back each time");
                        let (len, back) = encode(batch, &mut encoder, held, key);
                        bytes += len;
                        compressor = Some(back);
                    }
                    bytes
                });
            });
        }
    }
    group.finish();
    pairs(&commits, &key);
}

/// Prints how much longer sealed runs take than plain ones: the median of the pairs, and the quartiles.
#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
#[expect(clippy::print_stdout, reason = "the figure is what it is run for")]
fn pairs(commits: &[Recorded], key: &Arc<SealKey>) {
    for level in [1, 3] {
        let mut encoder = DeltaEncoder::new(SIZE);
        let mut compressor = Some(Compressor::new(level));
        let mut run = |key: Option<&Arc<SealKey>>| {
            let begun = Instant::now();
            for batch in commits.chunks(BATCH) {
                let held = compressor.take().expect("handed back each time");
                let (len, back) = encode(batch, &mut encoder, held, key);
                std::hint::black_box(len);
                compressor = Some(back);
            }
            begun.elapsed().as_secs_f64()
        };
        let mut more: Vec<f64> = (0..PAIRS)
            .map(|pair| {
                // Who goes second finds warm caches: each does as often.
                let (plain, sealed) = if pair % 2 == 0 {
                    let plain = run(None);
                    (plain, run(Some(key)))
                } else {
                    let sealed = run(Some(key));
                    (run(None), sealed)
                };
                (sealed / plain - 1.0) * 100.0
            })
            .collect();
        more.sort_by(f64::total_cmp);
        let [low, median, high] = [1, 2, 3].map(|quarter| more[PAIRS * quarter / 4]);
        println!(
            "sealed takes {median:+.1} % longer at zstd {level} (quartiles {low:+.1} %, {high:+.1} %)"
        );
    }
}

/// Imports the database `file` into a bucket of its own below `folder`.
async fn bucket(folder: &Path, file: &Path, keys: &MasterKeys) -> Bucket {
    let url = format!("file://{}", folder.join("store").display());
    let settings = Settings {
        data: folder.join("data"),
        store_url: url.clone(),
        master_keys: keys.clone(),
        settle_level: 3,
        ..Settings::default()
    };
    let engine = Engine::start(settings, Parts::production())
        .await
        .expect("start");
    let namespace = engine.namespace_create("acme").await.expect("a namespace");
    let imported = engine.database_import(namespace.id, "large", file).await;
    drop(imported.expect("import"));
    engine.shutdown().await.expect("shutdown");
    Bucket::open_with_keys(&url, keys)
        .await
        .expect("the bucket")
}

fn restoring(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("large.db");
    let sqlite = rusqlite::Connection::open(&file).expect("open");
    sqlite
        .execute_batch(&format!(
            "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);
             WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c WHERE x < {RESTORED_ROWS})
             INSERT INTO t SELECT x, hex(randomblob(250)) || printf('%0500d', x) FROM c"
        ))
        .expect("fill");
    sqlite.close().expect("close");
    let bytes = std::fs::metadata(&file).expect("a file").len();
    let mut group = c.benchmark_group("restore");
    group
        .throughput(Throughput::Bytes(bytes))
        .sample_size(10)
        .sampling_mode(SamplingMode::Flat)
        .measurement_time(Duration::from_secs(20));
    for (name, keys) in [
        ("plain", MasterKeys::default()),
        ("sealed", sealed_masters()),
    ] {
        let home = folder.path().join(name);
        let bucket = runtime.block_on(bucket(&home, &file, &keys));
        let found = runtime
            .block_on(bucket.find("acme", "large"))
            .expect("the database");
        let out = home.join("out.db");
        group.bench_function(name, |b| {
            b.iter(|| {
                let restored = bucket.restore(&found, At::Latest, &out, true);
                runtime.block_on(restored).expect("restore");
            });
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    encoding(&mut criterion);
    restoring(&mut criterion);
    criterion.final_summary();
}
