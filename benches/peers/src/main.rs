//! Figures of Tidelog, by the command that repeats them: `cargo run --release -p tidelog-bench-peers -- NAME`.

mod big_transaction;
mod dump;
mod hrana;
mod idle;
mod many;
mod measure;
mod memory;
mod oltp;
mod real_input;
mod replay;
mod throughput;
mod travel;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about = "Figures of Tidelog, measured here and now")]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Bytes a commit of the OLTP mix: the first copy, and everything that is uploaded.
    Oltp(oltp::Options),
    /// Memory that one large transaction takes, from COMMIT to a restore on an empty disk.
    BigTransaction(big_transaction::Options),
    /// Requests a second by a Hrana pipeline, beside sqld.
    Hrana(hrana::Options),
    /// Store requests and descriptors of databases that nobody uses.
    Idle(idle::Options),
    /// Memory and store requests of many databases of which some are written.
    Many(many::Options),
    /// Commits a second beside plain SQLite.
    Throughput(throughput::Options),
    /// A real SQLite file, changed and restored at random bookmarks beside a plain twin.
    RealInput(real_input::Options),
    /// How fast a long log is applied onto an image.
    Replay(replay::Options),
    /// Rewind, fork and restore of a large database, beside SQLite, zstd and Litestream.
    Travel(travel::Options),
}

#[expect(clippy::print_stdout, reason = "a bench prints its figures")]
fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let printed = match Cli::parse().bench {
        Bench::Oltp(options) => runtime.block_on(oltp::run(options)),
        Bench::BigTransaction(options) => runtime.block_on(big_transaction::run(options)),
        Bench::Hrana(options) => runtime.block_on(hrana::run(options)),
        Bench::Idle(options) => runtime.block_on(idle::run(options)),
        Bench::Many(options) => runtime.block_on(many::run(options)),
        Bench::Throughput(options) => runtime.block_on(throughput::run(options)),
        Bench::RealInput(options) => runtime.block_on(real_input::run(options)),
        Bench::Replay(options) => runtime.block_on(replay::run(options)),
        Bench::Travel(options) => runtime.block_on(travel::run(options)),
    };
    println!("{printed:#}");
}
