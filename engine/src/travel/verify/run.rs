//! Running one verification.
//!
//! What is listed when it begins may be settled, and its journal objects deleted, while it runs: where objects
//! were missing and history is listed differently since, it begins anew.

use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value as Json, json};
use tidelog_archive::ErrorKind;
use tidelog_archive::plan::{History, Plan, PlanError, Target};
use tidelog_archive::restore::{MemorySink, RestoreError, RestoreSettings, execute};
use tidelog_archive::scrub::{self, Finding, scrub_some};
use tidelog_wal::Position;

use super::live::{self, CopySink, Live};
use super::record::Verification;
use super::{Level, NewVerification, Outcome};
use crate::database::Lease;
use crate::engine::Database;
use crate::error::Error;
use crate::operations::Task;
use crate::rebuild::{Unsettled, history_of, plan_error, present};
use crate::remote::publish_error;
use crate::scratch;
use crate::settings::Durability;
use crate::travel::inspect::{Check, integrity};
use crate::travel::watched::{Watched, materialise_raw};

/// How often history may change under a verification.
const ATTEMPTS: u32 = 3;
/// Findings that are kept.
const FINDINGS_MAX: usize = 100;

/// What has been looked at, and found.
#[derive(Debug, Default)]
struct Proof {
    covers: Map<String, Json>,
    findings: Vec<Finding>,
    bookmark: Option<Position>,
    restore: Option<Duration>,
}

/// What findings come to: damage before absence, absence before what could not be looked at.
pub fn outcome_of(findings: &[Finding]) -> Outcome {
    let has = |kind| findings.iter().any(|finding| finding.kind == kind);
    if has(ErrorKind::Corrupt) {
        Outcome::Mismatch
    } else if has(ErrorKind::NotFound) {
        Outcome::Error
    } else if findings.is_empty() {
        Outcome::Verified
    } else {
        Outcome::Inconclusive
    }
}

/// A finding for programs: where it is, and whether that is `damaged`, `missing` or `unreachable`.
pub fn finding_shown(found: &Finding) -> Json {
    let kind = match found.kind {
        ErrorKind::Corrupt => "damaged",
        ErrorKind::NotFound => "missing",
        _ => "unreachable",
    };
    json!({ "key": found.key, "offset": found.offset, "kind": kind, "what": found.what })
}

impl Proof {
    fn outcome(&self) -> Outcome {
        outcome_of(&self.findings)
    }

    fn found(&mut self, kind: ErrorKind, key: &str, what: impl Into<String>) {
        self.findings.push(Finding {
            key: key.to_owned(),
            offset: None,
            what: what.into(),
            kind,
        });
    }

    /// Notes a failure of the engine: damage where it says so, else something that could not be looked at.
    fn failed(&mut self, key: &str, error: &Error) {
        let mut what = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(inner) = source {
            what = format!("{what}: {inner}");
            source = inner.source();
        }
        self.found(error.kind(), key, what);
    }

    fn findings(&self) -> Json {
        let shown = self.findings.iter().take(FINDINGS_MAX);
        shown.map(finding_shown).collect()
    }
}

/// Verifies, notes what came of it, and answers it.
pub(super) async fn run(
    database: &Database,
    new: &NewVerification,
    target: Option<Position>,
    scheduled: bool,
    task: &Task,
) -> Result<Json, Error> {
    let engine = database.engine();
    let started_at = engine.now();
    let _hold = database.hold().await?;
    let prover = Prover {
        database,
        new,
        target,
        task,
    };
    let proof = prover.prove().await?;
    task.check()?;
    let ended = Verification {
        id: task.id(),
        level: new.level,
        outcome: proof.outcome(),
        started_at,
        ended_at: engine.now(),
        bookmark: proof.bookmark.map(|at| at.to_string()),
        restore_duration: proof.restore,
        scheduled,
        findings: proof.findings(),
        covers: Json::Object(proof.covers),
    };
    if ended.outcome != Outcome::Verified {
        tracing::error!(database = %database.row().id, outcome = ended.outcome.as_str(),
            findings = %ended.findings, "verification found something");
    }
    let row = database.row();
    engine.inner.proofs.note(&ended);
    engine
        .inner
        .system
        .verification_add(row.namespace, row.id, &ended)
        .await?;
    let micros = ended.restore_duration.map(|took| took.as_micros());
    Ok(json!({ "verification": {
        "id": ended.id,
        "level": ended.level.as_str(),
        "outcome": ended.outcome.as_str(),
        "bookmark": ended.bookmark,
        "restore_duration_us": micros.and_then(|micros| u64::try_from(micros).ok()),
        "covers": ended.covers,
        "findings": ended.findings,
    }}))
}

/// One verification at work.
struct Prover<'a> {
    database: &'a Database,
    new: &'a NewVerification,
    target: Option<Position>,
    task: &'a Task,
}

impl Prover<'_> {
    async fn prove(&self) -> Result<Proof, Error> {
        let mut attempt = 1;
        loop {
            let mut proof = Proof::default();
            let looked = self.look(&mut proof).await;
            self.task.check()?;
            if let Err(error) = looked {
                proof.failed("", &error);
            }
            let missing: Vec<&str> = proof
                .findings
                .iter()
                .filter(|finding| finding.kind == ErrorKind::NotFound)
                .map(|finding| finding.key.as_str())
                .collect();
            if missing.is_empty() || attempt == ATTEMPTS || !self.moved(&missing).await {
                return Ok(proof);
            }
            attempt += 1;
        }
    }

    /// Whether objects that were missing are no longer listed.
    async fn moved(&self, missing: &[&str]) -> bool {
        let Ok(mut listed) = self.stored().await else {
            return false;
        };
        if listed.read_all().await.is_err() {
            return false;
        }
        let pieces = listed.pieces.iter().map(|piece| piece.source.key());
        let images = listed.images.iter().map(|image| image.object.key.as_str());
        let keys: Vec<&str> = pieces.chain(images).collect();
        missing
            .iter()
            .any(|key| !key.is_empty() && !keys.contains(key))
    }

    /// History as it stands in the store, whether the database is open or not.
    async fn stored(&self) -> Result<History, Error> {
        let core = &self.database.engine().inner.core;
        let row = self.database.row();
        let manifests = core.remote.manifests(row.namespace, row.id);
        let unsettled = Unsettled::of(core, row.id);
        let loaded = manifests.load().await;
        let loaded = loaded.map_err(|e| publish_error("read a manifest", e))?;
        history_of(core, unsettled, loaded.manifest).await
    }

    async fn look(&self, proof: &mut Proof) -> Result<(), Error> {
        let live = match self.new.level {
            Level::Full => Some(self.live().await?),
            _ => None,
        };
        self.task.phase("reading history", 0)?;
        let mut history = self.stored().await?;
        if let Some(head) = history.head() {
            proof.bookmark = Some(head);
        }
        match self.new.level {
            Level::Objects => self.scrub(history, scrub::Level::Objects, proof).await,
            Level::Chain => self.scrub(history, scrub::Level::Chain, proof).await,
            Level::Restore => self.restore(&mut history, None, proof).await,
            Level::Full => {
                let all = history.clone();
                self.scrub(all, scrub::Level::Chain, proof).await?;
                self.restore(&mut history, live, proof).await
            }
        }
    }

    async fn scrub(
        &self,
        history: History,
        level: scrub::Level,
        proof: &mut Proof,
    ) -> Result<(), Error> {
        self.task.phase("reading objects", 0)?;
        let core = &self.database.engine().inner.core;
        let percent = u64::from(self.new.sample_percent);
        let mut newest = history
            .pieces
            .last()
            .map(|piece| piece.source.key().to_owned());
        let pick = |key: &str| {
            let always = newest.take_if(|newest| newest == key).is_some();
            always || percent >= 100 || core.parts.entropy.below(100) < percent
        };
        let sink = || Ok(MemorySink::default());
        let store = &core.remote.store;
        let scrubbed = scrub_some(store, history, level, sink, pick);
        let scrubbed = tokio::select! {
            scrubbed = scrubbed => scrubbed,
            error = self.task.stopped() => return Err(error),
        };
        match scrubbed {
            Ok(report) => {
                let all = report.objects + report.skipped;
                let objects = json!({ "read": report.objects, "of": all, "bytes": report.bytes });
                proof.covers.insert("objects".to_owned(), objects);
                if level >= scrub::Level::Chain {
                    let chain = json!({ "commits": report.records, "whole": report.skipped == 0 });
                    proof.covers.insert("chain".to_owned(), chain);
                }
                proof.findings.extend(report.findings);
            }
            Err(error) => self.unplanned(error, proof),
        }
        Ok(())
    }

    fn unplanned(&self, error: PlanError, proof: &mut Proof) {
        let row = self.database.row();
        let key = tidelog_archive::key::Key::manifest(row.namespace, row.id).to_string();
        let kind = error.kind();
        proof.found(kind, &key, plan_error(error).to_string());
    }

    /// Restores the state and has SQLite look at it; with the live database, compares that too.
    async fn restore(
        &self,
        history: &mut History,
        live: Option<(Lease, Live, tempfile::TempDir)>,
        proof: &mut Proof,
    ) -> Result<(), Error> {
        let core = &self.database.engine().inner.core;
        let store = &core.remote.store;
        let at = self
            .target
            .or(live.as_ref().map(|(_, live, _)| live.state.position));
        let target = at.map_or(Target::Head, Target::Position);
        let resolved = history.resolve(store, target, present(core.term())).await;
        let plan = match resolved {
            Ok(resolved) => history.plan(resolved, None).await,
            Err(error) => Err(error),
        };
        let plan = match plan {
            Ok(plan) => plan,
            Err(error) => {
                self.unplanned(error, proof);
                return Ok(());
            }
        };
        proof.bookmark = Some(plan.target.position);
        let bytes = plan.target.n.bytes(plan.page_size);
        let folder = scratch::folder(core, "a verification", bytes)?;
        let file = folder.path().join("state.db");
        self.task.phase("restoring", bytes)?;
        let began = core.parts.clock.monotonic_micros();
        match materialise_raw(store, &plan, &file, self.task).await {
            Ok(report) => {
                let took = core.parts.clock.monotonic_micros().saturating_sub(began);
                proof.restore = Some(Duration::from_micros(took));
                let covered = json!({
                    "bookmark": plan.target.position.to_string(),
                    "commits": report.commits,
                    "objects": report.objects,
                    "bytes": bytes,
                });
                proof.covers.insert("restore".to_owned(), covered);
                self.sqlite(&file, proof).await?;
            }
            Err(error) => Self::unrestored(&plan, error, proof),
        }
        drop(folder);
        match live {
            Some(live) => self.compare(history, &plan, live, proof).await,
            None => Ok(()),
        }
    }

    fn unrestored(plan: &Plan, error: RestoreError, proof: &mut Proof) {
        let key = match &error {
            RestoreError::Read(error) => error.key().to_owned(),
            RestoreError::Broken { key, .. } => key.clone(),
            _ => plan
                .steps
                .last()
                .map_or_else(String::new, |step| step.piece.source.key().to_owned()),
        };
        let kind = error.kind();
        let what = crate::rebuild::restore_error(error).to_string();
        proof.found(kind, &key, what);
    }

    async fn sqlite(&self, file: &Path, proof: &mut Proof) -> Result<(), Error> {
        let (check, name) = match self.new.level {
            Level::Full => (Check::Full, "integrity_check"),
            _ => (Check::Quick, "quick_check"),
        };
        self.task.phase("checking", 0)?;
        let (file, task) = (file.to_owned(), self.task.clone());
        let said = crate::executor::blocking(self.database.executor(), move || {
            integrity(&file, check, &task)
        })
        .await?;
        proof.covers.insert("sqlite".to_owned(), json!(name));
        if said != "ok" {
            let what = format!("SQLite finds the restored state damaged: {said}");
            proof.found(ErrorKind::Corrupt, "", what);
        }
        Ok(())
    }

    /// Reads the live database, and waits until what it holds is stored.
    async fn live(&self) -> Result<(Lease, Live, tempfile::TempDir), Error> {
        let lease = self.database.lease().await?;
        let bytes = lease.head().pages.bytes(lease.meta().page_size);
        let past = self.target.is_some();
        let needed = if past { bytes } else { 0 };
        let folder = scratch::folder(&lease.core, "a verification", needed)?;
        let copy = past.then(|| folder.path().join("live.db"));
        let live = live::read(&lease, copy, self.task).await?;
        self.task.phase("waiting for the store", 0)?;
        lease
            .wait_durable(lease.last_lsn(), Durability::Remote)
            .await?;
        Ok((lease, live, folder))
    }

    /// Compares the live database with what was recorded: as it is, and led back to the target.
    async fn compare(
        &self,
        history: &mut History,
        plan: &Plan,
        (_lease, live, folder): (Lease, Live, tempfile::TempDir),
        proof: &mut Proof,
    ) -> Result<(), Error> {
        let head = live.state;
        if live.digest != head.digest {
            let what = format!(
                "the live database at txid {} has digest {}, recorded is {}",
                head.position.txid, live.digest, head.digest
            );
            proof.found(ErrorKind::Corrupt, "", what);
        }
        let covered = json!({ "bookmark": head.position.to_string(), "pages": head.n.get() });
        proof.covers.insert("live".to_owned(), covered);
        let target = plan.target;
        if target.position == head.position {
            if target.digest != head.digest {
                let what = format!(
                    "the log in the store has digest {} for txid {}, this node {}",
                    target.digest, head.position.txid, head.digest
                );
                proof.found(ErrorKind::Corrupt, "", what);
            }
            return Ok(());
        }
        if live.digest != head.digest {
            return Ok(());
        }
        let back = match history.plan_from(head.position, target).await {
            Ok(back) => back,
            // No log leads over it: the states on either side are proven by themselves.
            Err(PlanError::Gap { .. }) => return Ok(()),
            Err(error) => {
                self.unplanned(error, proof);
                return Ok(());
            }
        };
        self.task.phase("stepping back", back.bytes)?;
        let sink = CopySink::open(&folder.path().join("live.db"))?;
        let sink = Watched::new(sink, self.task.clone());
        let core = &self.database.engine().inner.core;
        let settings = RestoreSettings::default();
        match execute(&core.remote.store, &back, sink, settings).await {
            Ok((_, report)) => {
                let covered = json!({
                    "bookmark": target.position.to_string(),
                    "commits": report.commits,
                });
                proof.covers.insert("live_at_target".to_owned(), covered);
            }
            Err(error) => Self::unrestored(&back, error, proof),
        }
        Ok(())
    }
}
