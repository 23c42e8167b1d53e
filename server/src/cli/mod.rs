//! The command line of `tidelog`.
//!
//! Three families: `serve`; commands that read the bucket alone (`--store`), which need no server; commands
//! against a server (`--url`). Naming both a bucket and a server is wrong usage. People get tables, and progress
//! bars where a terminal watches; `--json` gets one JSON document on standard output and nothing else there.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 conflict or refused, 5 damaged data.

mod archive;
mod args;
mod bucket;
mod client;
mod exit;
mod gc;
mod keys;
mod local;
mod operation;
mod output;
mod remote;
mod serve;
mod settings;
mod snapshots;
mod travel;
mod verify;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use archive::ArchiveCommand;
use args::{Arguments, Command, ConfigCommand, StoreCommand, TokenCommand};
use exit::{Exit, Failure};
use output::Output;
use tidelog_engine::Settings;

/// Blocking threads beside one for each stream, whose client may read slowly.
const THREADS_BESIDE_STREAMS: usize = 512;

/// Parses the command line, runs it, and says how it went.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version go to standard output and are no failure. A closed pipe is nobody's loss.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Done.into(),
                _ => Exit::Usage.into(),
            };
        }
    };
    let output = Output::new(arguments.json);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(Settings::default().streams_max + THREADS_BESIDE_STREAMS)
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            return output.failure(&Failure::new(
                Exit::Failed,
                format!("cannot start threads: {error}"),
            ));
        }
    };
    let done = runtime.block_on(Box::pin(run(arguments, &output)));
    match done {
        Ok(()) => Exit::Done.into(),
        Err(failure) => output.failure(&failure),
    }
}

async fn run(arguments: Arguments, output: &Output) -> Result<(), Failure> {
    let place = arguments.place;
    let keys = place.master_keys()?;
    match arguments.command {
        Command::Serve(options) => Box::pin(serve::run(place, keys, options, output)).await,
        Command::Config(ConfigCommand::Check(options)) => settings::check(place, &options, *output),
        Command::List => bucket::list::list(&place.bucket()?, &keys, output).await,
        Command::Restore(options) if place.names_bucket() || options.out.is_some() => {
            bucket::restore::restore(&place.bucket()?, &keys, options, output).await
        }
        Command::Restore(options) => travel::restore(&place.server()?, options, output).await,
        Command::Undo(options) => travel::undo(&place.server()?, options, output).await,
        Command::Fork(options) => travel::fork(&place.server()?, options, output).await,
        Command::Detach(options) => travel::detach(&place.server()?, options, output).await,
        Command::Operations(options) => travel::operations(&place.server()?, options, output).await,
        Command::Verify(options) if !place.names_bucket() && place.names_server() => {
            verify::verify(&place.server()?, options, output).await
        }
        Command::Verify(options) => {
            bucket::verify::verify(&place.bucket()?, &keys, options, output).await
        }
        Command::Store(StoreCommand::Check) => bucket::check::check(&place.bucket()?, output).await,
        Command::History(options) if place.names_bucket() => {
            bucket::history::history(&place.bucket()?, &keys, options, output).await
        }
        Command::History(options) => remote::history(&place.server()?, options, output).await,
        Command::Token(TokenCommand::Recover {
            namespace,
            take_over,
        }) => {
            let bucket = place.bucket()?;
            Box::pin(bucket::recover::recover(
                &bucket,
                &keys,
                &namespace,
                take_over.as_deref(),
                output,
            ))
            .await
        }
        Command::Keys(command) => keys::keys(&place.bucket()?, &keys, command, output).await,
        Command::Token(command) => remote::token(&place.server()?, command, output).await,
        Command::Namespace(command) => remote::namespace(&place.server()?, command, output).await,
        Command::Db(command) => remote::db(&place.server()?, command, output).await,
        Command::Query(options) => remote::query(&place.server()?, options, output).await,
        Command::Import(options) => remote::import(&place.server()?, options, output).await,
        Command::Export(options) => remote::export(&place.server()?, options, output).await,
        Command::Gc(options) => gc::gc(&place.server()?, options, output).await,
        Command::Snapshot(command) => snapshots::snapshot(&place.server()?, command, output).await,
        Command::Archive(ArchiveCommand::Decrypt(options)) => {
            archive::decrypt(place, &keys, options, output).await
        }
        Command::Archive(command) => archive::archive(&place.server()?, command, output).await,
        Command::Bookmark(options) => remote::bookmark(&place.server()?, options, output).await,
    }
}
