//! Figures of Tidelog, by the command that repeats them: `cargo run --release -p tidelog-bench-peers -- NAME`.

mod oltp;

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
}

#[expect(clippy::print_stdout, reason = "a bench prints its figures")]
fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let printed = match Cli::parse().bench {
        Bench::Oltp(options) => runtime.block_on(oltp::run(options)),
    };
    println!("{printed:#}");
}
