//! `tidelog verify`: what a bucket holds is whole, or this says what is not and where.

use std::path::Path;

use serde_json::{Value as Json, json};
use tidelog_archive::ErrorKind;
use tidelog_archive::plan::PlanError;
use tidelog_archive::restore::FileSink;
use tidelog_archive::scrub::{self, Finding, ScrubReport, scrub};
use tidelog_engine::MasterKeys;
use tidelog_engine::bucket::{At, Bucket, BucketDatabase};
use tidelog_engine::travel::verify::{finding_shown, integrity_of_file, outcome_of};

use crate::cli::args::{Level, VerifyOptions};
use crate::cli::exit::Failure;
use crate::cli::output::Output;
use crate::cli::verify::judge;

/// Why a database could not be looked at to the end.
struct Trouble {
    kind: ErrorKind,
    failure: Failure,
}

macro_rules! troubles {
    ($($error:ty)*) => { $(
        impl From<$error> for Trouble {
            fn from(error: $error) -> Self {
                Self { kind: error.kind(), failure: error.into() }
            }
        }
    )* };
}

troubles! { PlanError tidelog_engine::Error }

impl Trouble {
    fn internal(text: impl std::fmt::Display) -> Self {
        Self {
            kind: ErrorKind::Internal,
            failure: Failure::failed(text.to_string()),
        }
    }

    /// What it says about the bucket; a failure of this program says nothing.
    fn found(self) -> Result<ScrubReport, Failure> {
        match self.kind {
            ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::Unavailable => Ok(ScrubReport {
                findings: vec![Finding {
                    key: String::new(),
                    offset: None,
                    what: self.failure.message,
                    kind: self.kind,
                }],
                ..ScrubReport::default()
            }),
            _ => Err(self.failure),
        }
    }
}

/// Looks at one database; answers what was found, and whether SQLite looked at it, too.
async fn look(
    bucket: &Bucket,
    database: &BucketDatabase,
    level: Level,
    scratch: &Path,
) -> Result<(ScrubReport, bool), Trouble> {
    let depth = match level {
        Level::Objects => scrub::Level::Objects,
        Level::Chain => scrub::Level::Chain,
        Level::Restore | Level::Full => scrub::Level::Restore,
    };
    let id = database.id;
    let history = bucket.history(database).await?;
    let mut files = 0_u64;
    let report = scrub(bucket.store(), history, depth, || {
        files += 1;
        FileSink::create(&scratch.join(format!("{id}-{files}")))
    });
    let mut report = report.await?;
    if level != Level::Full || !report.is_clean() {
        return Ok((report, false));
    }
    let file = scratch.join(format!("{id}-whole"));
    bucket.restore(database, At::Latest, &file, false).await?;
    let said = tokio::task::spawn_blocking(move || integrity_of_file(&file)).await;
    let said = said.map_err(Trouble::internal)??;
    if said != "ok" {
        report.findings.push(Finding {
            key: String::new(),
            offset: None,
            what: format!("SQLite finds the restored state damaged: {said}"),
            kind: ErrorKind::Corrupt,
        });
    }
    Ok((report, true))
}

/// Verifies one database or all, the system database among them. The exit is that of everything that was found, after
/// everything was looked at.
pub(in crate::cli) async fn verify(
    url: &str,
    keys: &MasterKeys,
    options: VerifyOptions,
    output: &Output,
) -> Result<(), Failure> {
    if options.every.is_some() || !options.at.is_newest() {
        let text = "--every and a point in time are for a server: a bucket is verified whole";
        return Err(Failure::usage(text));
    }
    let bucket = Bucket::open_with_keys(url, keys).await?;
    let wanted = if let Some(name) = &options.database {
        vec![bucket.find(&name.namespace, &name.database).await?]
    } else {
        let mut all = vec![bucket.system()];
        all.extend(bucket.databases().await?);
        all
    };
    let bar = output.bar(u64::try_from(wanted.len()).unwrap_or_default(), "verifying");
    let scratch = tempfile::tempdir()
        .map_err(|error| Failure::failed(format!("cannot make a temporary folder: {error}")))?;
    let (mut items, mut lines) = (Vec::<Json>::new(), Vec::new());
    let mut found: Vec<Finding> = Vec::new();
    for database in wanted {
        let name = format!("{}/{}", database.namespace, database.name);
        let (report, checked) = match look(&bucket, &database, options.level, scratch.path()).await
        {
            Ok(looked) => looked,
            Err(trouble) => (trouble.found()?, false),
        };
        // Restored files are of no more use.
        for entry in std::fs::read_dir(scratch.path())
            .into_iter()
            .flatten()
            .flatten()
        {
            let _ = std::fs::remove_file(entry.path());
        }
        bar.inc(1);
        let outcome = outcome_of(&report.findings).as_str();
        let findings: Vec<Json> = report.findings.iter().map(finding_shown).collect();
        lines.push(format!(
            "{name}: {outcome}; {} objects, {} commits, {} states restored",
            report.objects, report.records, report.states
        ));
        for finding in &report.findings {
            lines.push(format!("  {finding}"));
        }
        items.push(json!({
            "database": name,
            "outcome": outcome,
            "objects": report.objects,
            "bytes": report.bytes,
            "commits": report.records,
            "states_restored": report.states,
            "integrity_checked": checked,
            "findings": findings,
        }));
        found.extend(report.findings);
    }
    bar.finish_and_clear();
    output.result(&json!({ "items": items }), || lines.join("\n") + "\n");
    judge(outcome_of(&found).as_str())
}
