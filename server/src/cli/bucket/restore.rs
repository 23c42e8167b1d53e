//! `tidelog restore`: a database of a bucket, at any commit, to a new file.

use std::io;
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use serde_json::json;
use tidelog_archive::plan::Plan;
use tidelog_archive::restore::{FileSink, PageSink};
use tidelog_engine::MasterKeys;
use tidelog_engine::bucket::Bucket;

use crate::cli::args::RestoreOptions;
use crate::cli::exit::Failure;
use crate::cli::output::{Output, bytes};
use crate::cli::remote::refuse_existing;
use crate::time;

/// A sink that moves a bar. Pages may be written more than once, so the bar can only run ahead to its end.
struct Watched {
    sink: FileSink,
    bar: ProgressBar,
}

impl PageSink for Watched {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.bar.inc(u64::try_from(bytes.len()).unwrap_or_default());
        self.sink.write(offset, bytes)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.sink.read(offset, buf)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.sink.set_len(len)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.sink.finish()
    }
}

/// Where the file is made before it gets its name: beside it, so that `--force` replaces it in one step.
pub(in crate::cli) fn beside(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".restoring");
    PathBuf::from(name)
}

/// Restores a database to a file.
pub(in crate::cli) async fn restore(
    url: &str,
    keys: &MasterKeys,
    options: RestoreOptions,
    output: &Output,
) -> Result<(), Failure> {
    let of_server = options.reason.is_some() || options.preserve_as.is_some();
    if options.dry_run || options.yes || of_server || options.archive.is_some() {
        let what = "--dry-run, --yes, --reason, --preserve-as and --archive belong to a restore on a server (--url)";
        return Err(Failure::usage(what));
    }
    let out = options
        .out
        .as_deref()
        .ok_or_else(|| Failure::usage("name the file to write with --out FILE"))?;
    refuse_existing(out, options.force)?;
    let bucket = Bucket::open_with_keys(url, keys).await?;
    let name = &options.database;
    let database = bucket.find(&name.namespace, &name.database).await?;
    let unwritable =
        |error: io::Error| Failure::failed(format!("cannot write {}: {error}", out.display()));
    let made = beside(out);
    match std::fs::remove_file(&made) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(unwritable(error)),
        _ => {}
    }
    let watch = |plan: &Plan| {
        Ok(Watched {
            sink: FileSink::create(&made)?,
            bar: output.bar(plan.target.n.bytes(plan.page_size), "restoring"),
        })
    };
    let restored = bucket.restore_into(&database, options.at.target(), watch);
    let (plan, watched, report) = restored.await?;
    let target = plan.target;
    let size = target.n.bytes(plan.page_size);
    watched.bar.finish_and_clear();
    drop(watched);
    place(&made, out, options.force).map_err(unwritable)?;
    let document = json!({
        "file": out.display().to_string(),
        "database": options.database.to_string(),
        "bookmark": report.position.to_string(),
        "committed_at": time::format(target.time),
        "bytes": size,
        "commits_applied": report.commits,
        "objects_read": report.objects,
    });
    output.result(&document, || {
        format!(
            "{}: {} at {}\n{} of {}, {} commits applied, state digest proven\n",
            out.display(),
            options.database,
            report.position,
            bytes(size),
            time::format(target.time),
            report.commits,
        )
    });
    Ok(())
}

/// Gives the finished file its name. A WAL or journal of a file that stood there before must not be replayed
/// into the new one, so `--force` removes them, too.
pub(in crate::cli) fn place(made: &Path, out: &Path, force: bool) -> io::Result<()> {
    if force {
        for suffix in ["-wal", "-shm", "-journal"] {
            let mut stale = out.as_os_str().to_owned();
            stale.push(suffix);
            match std::fs::remove_file(PathBuf::from(stale)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(made, out)?;
    } else {
        // A link refuses to replace what has come into being meanwhile.
        std::fs::hard_link(made, out)?;
        std::fs::remove_file(made)?;
    }
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty());
    std::fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
