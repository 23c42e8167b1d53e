//! `tidelog verify`: what a bucket holds is whole, or this says what is not and where.

use serde_json::{Value as Json, json};
use tidelog_archive::ErrorKind;
use tidelog_archive::restore::FileSink;
use tidelog_archive::scrub::{self, Finding, scrub};
use tidelog_engine::MasterKeys;
use tidelog_engine::bucket::{At, Bucket};
use tidelog_engine::travel::verify::integrity_of_file;

use crate::cli::args::{Level, VerifyOptions};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::Output;

/// Verifies one database or all, the system database among them. Damage is exit 5, after everything was looked at.
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
    let level = match options.level {
        Level::Objects => scrub::Level::Objects,
        Level::Chain => scrub::Level::Chain,
        Level::Restore | Level::Full => scrub::Level::Restore,
    };
    let bar = output.bar(u64::try_from(wanted.len()).unwrap_or_default(), "verifying");
    let scratch = tempfile::tempdir()
        .map_err(|error| Failure::failed(format!("cannot make a temporary folder: {error}")))?;
    let (mut items, mut lines, mut damaged) = (Vec::<Json>::new(), Vec::new(), 0_usize);
    for database in wanted {
        let name = format!("{}/{}", database.namespace, database.name);
        let id = database.id;
        let history = bucket.history(&database).await?;
        let mut files = 0_u64;
        let report = scrub(bucket.store(), history, level, || {
            files += 1;
            FileSink::create(&scratch.path().join(format!("{id}-{files}")))
        });
        let mut report = report.await?;
        let mut checked = false;
        if options.level == Level::Full && report.is_clean() {
            let file = scratch.path().join(format!("{id}-whole"));
            bucket.restore(&database, At::Latest, &file, false).await?;
            let looked = file.clone();
            let said = tokio::task::spawn_blocking(move || integrity_of_file(&looked)).await;
            let said = said.map_err(|error| Failure::failed(error.to_string()))??;
            checked = true;
            if said != "ok" {
                report.findings.push(Finding {
                    key: String::new(),
                    offset: None,
                    what: format!("SQLite finds the restored state damaged: {said}"),
                    kind: ErrorKind::Corrupt,
                });
            }
        }
        // Restored files are of no more use.
        for entry in std::fs::read_dir(scratch.path())
            .into_iter()
            .flatten()
            .flatten()
        {
            let _ = std::fs::remove_file(entry.path());
        }
        bar.inc(1);
        let findings: Vec<Json> = report
            .findings
            .iter()
            .map(|found| json!({ "key": found.key, "offset": found.offset, "what": found.what }))
            .collect();
        let outcome = if report.is_clean() {
            "verified"
        } else {
            "mismatch"
        };
        lines.push(format!(
            "{name}: {outcome}; {} objects, {} commits, {} states restored",
            report.objects, report.records, report.states
        ));
        for finding in &report.findings {
            lines.push(format!("  {finding}"));
        }
        damaged += report.findings.len();
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
    }
    bar.finish_and_clear();
    output.result(&json!({ "items": items }), || lines.join("\n") + "\n");
    if damaged > 0 {
        return Err(Failure::new(
            Exit::Damaged,
            format!("{damaged} findings: the history is damaged"),
        ));
    }
    Ok(())
}
