//! Bytes a commit of the OLTP mix: the encoding in use, and those it was chosen over.
//!
//! `cargo bench --bench sizes [-- COMMITS]` prints one line an encoding: raw bytes a commit, then zstd at
//! several levels, page runs alone, without record headers (20 bytes a commit more at level 3). Every encoding
//! keeps every commit and needs no base page to merge; the last line merges each batch and loses commits.
#![expect(clippy::print_stdout, reason = "the table is what it is for")]
#![expect(clippy::cast_precision_loss, reason = "averages of small numbers")]

use std::error::Error;

use tidelog_testkit::oltp::ROWS;
use tidelog_testkit::recorder::{Recorded, record_oltp};
use tidelog_wal::PageSize;
use tidelog_wal::block::BLOCK_RAW_MAX;
use tidelog_wal::codec::put_varint;
use tidelog_wal::delta::Merge;
use zstd::zstd_safe::{CCtx, CParameter};

const SIZE: PageSize = PageSize::DEFAULT;
const LEVELS: [i32; 4] = [1, 3, 6, 9];
const BATCH: usize = 100;

/// One changed page: its number, and its runs as (offset, bytes).
type Changed = (u32, Vec<(usize, Vec<u8>)>);

/// The runs of a commit's pages, joined across fewer than `gap` zeros.
fn runs(commit: &Recorded, gap: usize) -> Vec<Changed> {
    let mut pages = Vec::new();
    for pair in &commit.pages {
        let mut found: Vec<(usize, Vec<u8>)> = Vec::new();
        let xors = pair.old.iter().zip(&pair.new).map(|(old, new)| old ^ new);
        for (at, xor) in xors.enumerate().filter(|(_, xor)| *xor != 0) {
            match found.last_mut() {
                Some((start, run)) if at - (*start + run.len()) < gap => {
                    run.resize(at - *start, 0);
                    run.push(xor);
                }
                _ => found.push((at, vec![xor])),
            }
        }
        if !found.is_empty() {
            pages.push((pair.page.get(), found));
        }
    }
    pages
}

fn put_runs(found: &[(usize, Vec<u8>)], structure: &mut Vec<u8>, mut bytes: Option<&mut Vec<u8>>) {
    let mut end = 0;
    for (at, run) in found {
        put_varint(structure, (at - end) as u64);
        put_varint(structure, run.len() as u64);
        bytes.as_deref_mut().unwrap_or(structure).extend(run);
        end = at + run.len();
    }
}

/// As the delta codec writes them, but for the gap.
fn inline(batch: &[Recorded], gap: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for commit in batch {
        let mut last = 0;
        for (page, found) in runs(commit, gap) {
            put_varint(&mut out, u64::from(page - last));
            put_varint(&mut out, found.len() as u64);
            put_runs(&found, &mut out, None);
            last = page;
        }
    }
    out
}

/// Structure of the whole batch first, then the bytes of all runs.
fn columns(batch: &[Recorded]) -> Vec<u8> {
    let (mut structure, mut bytes) = (Vec::new(), Vec::new());
    for (page, found) in batch.iter().flat_map(|commit| runs(commit, 8)) {
        put_varint(&mut structure, u64::from(page));
        put_varint(&mut structure, found.len() as u64);
        put_runs(&found, &mut structure, Some(&mut bytes));
    }
    structure.extend(bytes);
    structure
}

/// All changes of one page side by side.
fn by_page(batch: &[Recorded]) -> Vec<u8> {
    let mut pages: Vec<(u32, usize, Vec<u8>)> = Vec::new();
    for (n, commit) in batch.iter().enumerate() {
        for (page, found) in runs(commit, 8) {
            let mut out = Vec::new();
            put_runs(&found, &mut out, None);
            pages.push((page, n, out));
        }
    }
    pages.sort();
    let (mut out, mut structure) = (Vec::new(), Vec::new());
    for (page, n, runs) in pages {
        put_varint(&mut structure, u64::from(page));
        put_varint(&mut structure, n as u64);
        out.extend(runs);
    }
    out.extend(structure);
    out
}

fn merged(batch: &[Recorded]) -> Vec<u8> {
    let Some(first) = batch.first() else {
        return Vec::new();
    };
    let mut merge = Merge::new(SIZE, first.n_before);
    for commit in batch {
        merge
            .add(&commit.delta(SIZE), commit.n_before, commit.n_after)
            .expect("own deltas follow each other");
    }
    merge.finish().pages
}

fn line(name: &str, commits: usize, batches: &[Vec<u8>]) -> Result<(), Box<dyn Error>> {
    let a_commit = |bytes: usize| bytes as f64 / commits as f64;
    let raw = batches.iter().map(Vec::len).sum();
    print!("{name:40} raw {:7.1}", a_commit(raw));
    for level in LEVELS {
        let mut stored = 0;
        for block in batches.iter().flat_map(|batch| batch.chunks(BLOCK_RAW_MAX)) {
            stored += zstd::bulk::compress(block, level)?.len();
        }
        print!("  zstd {level} {:6.1}", a_commit(stored));
    }
    println!();
    Ok(())
}

/// Each batch compressed with the 256 KiB before it as its dictionary: readable only behind them.
fn line_with_prefix(commits: usize, batches: &[Vec<u8>]) -> Result<(), Box<dyn Error>> {
    print!("{:40} {:11}", "inline, 256 KiB before it as prefix", "");
    for level in LEVELS {
        let (mut before, mut stored) = (Vec::new(), 0);
        for batch in batches {
            let failed = |code| zstd::zstd_safe::get_error_name(code);
            let mut context = CCtx::create();
            context
                .set_parameter(CParameter::CompressionLevel(level))
                .and_then(|_| context.ref_prefix(&before))
                .map_err(failed)?;
            let mut out = vec![0; zstd::zstd_safe::compress_bound(batch.len())];
            stored += context.compress2(&mut out[..], batch).map_err(failed)?;
            drop(context);
            before.extend_from_slice(batch);
            before.drain(..before.len().saturating_sub(BLOCK_RAW_MAX));
        }
        print!("  zstd {level} {:6.1}", stored as f64 / commits as f64);
    }
    println!();
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let asked = std::env::args().find_map(|arg| arg.parse().ok());
    let recorded = record_oltp(ROWS, 8_500, asked.unwrap_or(4_000))?;
    let commits = recorded.len();
    let pages: usize = recorded.iter().map(|commit| commit.pages.len()).sum();
    println!(
        "{commits} commits of {:.2} pages, {BATCH} a batch; bytes a commit",
        pages as f64 / commits as f64
    );
    let batches = |encode: &dyn Fn(&[Recorded]) -> Vec<u8>| -> Vec<Vec<u8>> {
        recorded.chunks(BATCH).map(encode).collect()
    };
    let used = batches(&|batch| batch.iter().flat_map(|commit| commit.delta(SIZE)).collect());
    line("inline, as in use", commits, &used)?;
    for gap in [1, 2, 4, 8, 16] {
        let inline = batches(&|batch| inline(batch, gap));
        line(&format!("inline, gap {gap}"), commits, &inline)?;
    }
    line("columns, structure apart", commits, &batches(&columns))?;
    line("by page within the batch", commits, &batches(&by_page))?;
    line_with_prefix(commits, &used)?;
    line("merged, commits lost", commits, &batches(&merged))
}
