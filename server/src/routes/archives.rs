//! Archives: making, listing, downloading, proving, holding, deleting; and a database made of one.

use std::ops::Range;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value as Json, json};
use tidelog_engine::bucket::At;
use tidelog_engine::operations::Operation;
use tidelog_engine::system::tokens::token_id_text;
use tidelog_engine::travel::archives::{
    Archive, ArchiveSchedule, Format, Keep, NewArchive, NewArchiveSchedule,
};
use tidelog_engine::travel::retention::DAY_MICROS;
use tidelog_wal::Timestamp;

use super::operations::outcome;
use super::restores::bookmark;
use super::shape::span;
use crate::config::Regulation;
use crate::fields::Fields;
use crate::http::{Answer, Call};
use crate::problem::{Code, Problem};
use crate::time;

const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");

/// The state that the object `name` of a body asks for: a bookmark, a timestamp or a snapshot; `None` without
/// one.
pub(super) fn state(fields: &mut Fields, name: &str) -> Result<Option<At>, Problem> {
    let Some(value) = fields.take(name) else {
        return Ok(None);
    };
    let pointer = fields.at(name);
    let mut target = Fields::of_value(value, &pointer)?;
    let at = bookmark(&mut target, "bookmark")?.map(At::Bookmark);
    let time = target.time("timestamp")?.map(At::Time);
    let snapshot = target.text("snapshot")?.map(At::Snapshot);
    target.finish()?;
    let mut named = [at, time, snapshot].into_iter().flatten();
    match (named.next(), named.next()) {
        (Some(one), None) => Ok(Some(one)),
        _ => {
            let detail = format!("{name} names exactly one of bookmark, timestamp, snapshot");
            Err(Problem::invalid(Code::InvalidRequest, &pointer, detail))
        }
    }
}

/// An archive as the API shows it.
fn shown(archive: &Archive) -> Json {
    let document = &archive.document;
    json!({
        "id": document.id,
        "state": "ready",
        "name": document.name,
        "format": document.format.as_str(),
        "bookmark": document.bookmark,
        "committed_at": document.committed_at,
        "created_at": document.created_at,
        "bytes": document.bytes,
        "stored_bytes": document.stored_bytes,
        "sha256": document.sha256,
        "stored_sha256": document.stored_sha256,
        "digest": document.digest,
        "page_size": document.page_size,
        "page_count": document.page_count,
        "rows": document.rows,
        "schema_sha256": document.schema_sha256,
        "integrity": document.integrity,
        "retain_until": archive.retain_until.map(time::format),
        "legal_hold": archive.legal_hold,
        "key_id": document.key_id,
        "scheduled": archive.scheduled,
        "verified": archive.verified,
    })
}

/// `retain_until`, or `retain_for`: as long as a regulation asks for.
fn retained(call: &mut Call) -> Result<Option<Timestamp>, Problem> {
    let until = call.body.time("retain_until")?;
    let by = call.body.word("retain_for", |name| {
        Regulation::parse(name).ok_or_else(|| format!("soc2, hipaa, gdpr or pci, not {name:?}"))
    })?;
    match (until, by) {
        (Some(_), Some(_)) => Err(Problem::invalid(
            Code::InvalidRequest,
            "/retain_for",
            "give retain_until or retain_for, not both",
        )),
        (until, None) => Ok(until),
        (None, Some(regulation)) => {
            let now = call.app.engine.now().micros();
            let kept = regulation.archive_days() * DAY_MICROS;
            Ok(Some(Timestamp::from_micros(now.saturating_add(kept))))
        }
    }
}

pub(super) async fn create(mut call: Call) -> Result<Answer, Problem> {
    let at = state(&mut call.body, "target")?.unwrap_or(At::Latest);
    let format = call.body.word("format", Format::parse)?;
    let new = NewArchive {
        at,
        format: format.unwrap_or(Format::Sqlite),
        name: call.body.text("name")?,
        retain_until: retained(&mut call)?,
        legal_hold: call.body.boolean("legal_hold")?.unwrap_or(false),
        token: Some(token_id_text(&call.principal()?.token.id)),
        request: call.idempotency.take(),
    };
    call.finish()?;
    let handle = call.database().await?.archive_create(new).await?;
    outcome(&call, handle, StatusCode::CREATED).await
}

pub(super) async fn list(mut call: Call) -> Result<Answer, Problem> {
    let (page, link) = call.page()?;
    call.finish()?;
    let found = call.database().await?.archives(page).await?;
    let items: Vec<Json> = found.items.iter().map(shown).collect();
    Ok(Answer::page(&items, found.next_cursor.as_deref(), &link))
}

pub(super) async fn show(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let id = call.name("archive")?;
    let archive = call.database().await?.archive(&id).await?;
    Ok(Answer::ok(shown(&archive)))
}

pub(super) async fn change(mut call: Call) -> Result<Answer, Problem> {
    let retain_until = call.body.time("retain_until")?;
    let legal_hold = call.body.boolean("legal_hold")?;
    call.finish()?;
    let id = call.name("archive")?;
    let database = call.database().await?;
    let archive = database.archive_hold(&id, retain_until, legal_hold).await?;
    Ok(Answer::ok(shown(&archive)))
}

pub(super) async fn delete(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let id = call.name("archive")?;
    call.database().await?.archive_delete(&id).await?;
    Ok(Answer::nothing())
}

pub(super) async fn verify(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let id = call.name("archive")?;
    let token = Some(token_id_text(&call.principal()?.token.id));
    let handle = call.database().await?.archive_verify(&id, token).await?;
    outcome(&call, handle, StatusCode::OK).await
}

fn schedule_shown(schedule: &ArchiveSchedule, last: Option<&Operation>) -> Json {
    let days = |span: Duration| span.as_secs() / 86_400;
    let archive = |operation: &Operation| {
        let result = operation.result.as_ref()?;
        result["archive"]["id"].as_str().map(str::to_owned)
    };
    json!({
        "every_seconds": schedule.every.as_secs(),
        "format": schedule.format.as_str(),
        "retain": {
            "newest": schedule.keep.newest,
            "days": schedule.keep.within.map(days),
        },
        "due_at": time::format(schedule.due),
        "last": schedule.last.as_ref().map(|run| json!({
            "at": time::format(run.at),
            "operation": run.operation,
            "state": match (last, &run.error) {
                (Some(operation), _) => operation.state.as_str(),
                (None, Some(_)) => "failed",
                (None, None) => "unknown",
            },
            "archive": last.and_then(archive),
            "error": last
                .and_then(|operation| operation.error.as_ref())
                .map(|failure| failure.code.clone())
                .or_else(|| run.error.clone()),
        })),
    })
}

async fn scheduled(call: &Call, schedule: Option<ArchiveSchedule>) -> Result<Answer, Problem> {
    let Some(schedule) = schedule else {
        return Ok(Answer::ok(json!({ "schedule": null })));
    };
    let run = schedule.last.as_ref();
    let operation = match run.and_then(|run| run.operation.as_deref()) {
        // It is shown for 180 days, which a schedule may outlive.
        Some(id) => call.app.engine.operation(call.namespace()?, id).await.ok(),
        None => None,
    };
    let shown = schedule_shown(&schedule, operation.as_ref());
    Ok(Answer::ok(json!({ "schedule": shown })))
}

pub(super) async fn schedule(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let schedule = call.database().await?.archive_schedule().await?;
    scheduled(&call, schedule).await
}

/// `retain`: `{"newest": N, "days": D}`; what neither keeps of the schedule's archives is deleted after the next one.
fn keep(call: &mut Call) -> Result<Keep, Problem> {
    let Some(value) = call.body.take("retain") else {
        return Ok(Keep::default());
    };
    let mut fields = Fields::of_value(value, "/retain")?;
    let (newest, days) = (fields.number("newest")?, fields.number("days")?);
    fields.finish()?;
    let newest = newest.map(|count| {
        u32::try_from(count).map_err(|_| {
            let detail = "newest is a number of archives";
            Problem::invalid(Code::InvalidRequest, "/retain/newest", detail)
        })
    });
    Ok(Keep {
        newest: newest.transpose()?,
        within: days.map(|days| Duration::from_secs(days.saturating_mul(86_400))),
    })
}

pub(super) async fn set_schedule(mut call: Call) -> Result<Answer, Problem> {
    let every = span(&mut call, "every")?;
    let format = call.body.word("format", Format::parse)?;
    let new = NewArchiveSchedule {
        every,
        format: format.unwrap_or(Format::Sqlite),
        keep: keep(&mut call)?,
    };
    call.finish()?;
    let database = call.database().await?;
    let set = database.set_archive_schedule(Some(new)).await?;
    scheduled(&call, set).await
}

pub(super) async fn end_schedule(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let database = call.database().await?;
    database.set_archive_schedule(None).await?;
    Ok(Answer::nothing())
}

/// What of a content is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    /// All of it: no range, or one that this server need not understand.
    Whole,
    /// One run of bytes.
    Bytes(Range<u64>),
    /// A range that lies outside.
    Outside,
}

/// Reads a `Range` header (RFC 9110): one range of bytes. Several ranges, or other units, mean the whole.
fn part(header: Option<&str>, length: u64) -> Part {
    let Some(range) = header.and_then(|text| text.trim().strip_prefix("bytes=")) else {
        return Part::Whole;
    };
    let Some((first, last)) = range.split_once('-').filter(|_| !range.contains(',')) else {
        return Part::Whole;
    };
    let (first, last) = (first.trim(), last.trim());
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // A number beyond 64 bits lies past every end.
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    match (number(first), number(last)) {
        (Some(first), None) if last.is_empty() && first < length => Part::Bytes(first..length),
        (Some(_), None) if last.is_empty() => Part::Outside,
        (Some(first), Some(last)) if first > last => Part::Whole,
        (Some(first), Some(last)) if first < length => {
            Part::Bytes(first..last.saturating_add(1).min(length))
        }
        (Some(_), Some(_)) => Part::Outside,
        (None, Some(count)) if first.is_empty() && count > 0 && length > 0 => {
            Part::Bytes(length.saturating_sub(count)..length)
        }
        (None, Some(_)) if first.is_empty() => Part::Outside,
        _ => Part::Whole,
    }
}

/// A SHA-256 in hex as RFC 9530 writes it.
fn digest(sha256: &str) -> Option<HeaderValue> {
    let byte = |at: usize| u8::from_str_radix(sha256.get(at..at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..sha256.len()).step_by(2).map(byte).collect();
    HeaderValue::try_from(format!("sha-256=:{}:", STANDARD.encode(bytes?))).ok()
}

/// `GET content`: the archive as it is stored, whole or a range of it.
pub(super) async fn content(mut call: Call) -> Result<Answer, Problem> {
    call.finish()?;
    let id = call.name("archive")?;
    let content = call.database().await?.archive_content(&id).await?;
    let document = &content.archive.document;
    let length = document.stored_bytes;
    let tag = format!("\"{}\"", document.stored_sha256);
    let asked = call.headers.get(header::RANGE);
    // A range of something else than the caller holds a part of would not fit it.
    let fits = call
        .headers
        .get(header::IF_RANGE)
        .is_none_or(|held| held.as_bytes() == tag.as_bytes());
    let asked = asked.filter(|_| fits).and_then(|value| value.to_str().ok());
    let range = match part(asked, length) {
        Part::Whole => None,
        Part::Bytes(range) => Some(range),
        Part::Outside => {
            let detail = format!("the archive has {length} bytes");
            return Err(Problem::new(Code::RangeNotSatisfiable, detail).with("length", length));
        }
    };
    let sent = range.clone().unwrap_or(0..length);
    let kind = match document.format {
        Format::Sqlite => ("application/zstd", "db.zst"),
        Format::Sql => ("application/zstd", "sql.zst"),
    };
    let body = Body::from_stream(content.stream(sent.clone()));
    let mut answer = Answer::other(kind.0, body)
        .header(
            header::CONTENT_LENGTH,
            HeaderValue::from(sent.end - sent.start),
        )
        .header(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let mut set = |name: HeaderName, value: Option<HeaderValue>| {
        if let Some(value) = value {
            answer.headers.insert(name, value);
        }
    };
    set(header::ETAG, HeaderValue::try_from(tag).ok());
    let name = format!("attachment; filename=\"{}.{}\"", document.id, kind.1);
    set(
        header::CONTENT_DISPOSITION,
        HeaderValue::try_from(name).ok(),
    );
    let sum = digest(&document.stored_sha256);
    set(REPR_DIGEST, sum.clone());
    if let Some(range) = range {
        let text = format!("bytes {}-{}/{length}", range.start, range.end - 1);
        set(header::CONTENT_RANGE, HeaderValue::try_from(text).ok());
        answer.status = StatusCode::PARTIAL_CONTENT;
    } else {
        set(CONTENT_DIGEST, sum);
    }
    Ok(answer)
}

/// `POST databases` with `seed: {archive}`.
pub(super) async fn seeded(call: &Call, name: &str, archive: &str) -> Result<Answer, Problem> {
    let principal = call.principal()?;
    let token = Some(token_id_text(&principal.token.id));
    let (engine, namespace) = (&call.app.engine, call.namespace()?);
    let found = engine.archive(namespace, archive).await?;
    let of = &found.document.database_name;
    if let Some(visible) = &principal.token.databases
        && !visible.contains(of)
    {
        let detail = format!("there is no archive {archive:?}");
        return Err(Problem::new(Code::ArchiveNotFound, detail));
    }
    super::may_fork(call, of).await?;
    let handle = engine
        .database_from_archive(namespace, name, archive, token)
        .await?;
    outcome(call, handle, StatusCode::CREATED).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        let of = |text| part(Some(text), 100);
        assert_eq!(part(None, 100), Part::Whole);
        assert_eq!(of("bytes=0-0"), Part::Bytes(0..1));
        assert_eq!(of("bytes=10-"), Part::Bytes(10..100));
        assert_eq!(of("bytes=10-1000"), Part::Bytes(10..100));
        assert_eq!(of("bytes=-10"), Part::Bytes(90..100));
        assert_eq!(of("bytes=-1000"), Part::Bytes(0..100));
        assert_eq!(of("bytes=0-99999999999999999999"), Part::Bytes(0..100));
        for outside in ["bytes=100-", "bytes=100-200", "bytes=-0"] {
            assert_eq!(of(outside), Part::Outside, "{outside}");
        }
        for ignored in [
            "bytes=",
            "bytes=-",
            "bytes=5-1",
            "bytes=0-1,5-6",
            "lines=0-1",
            "bytes=a-b",
            "bytes=+1-2",
        ] {
            assert_eq!(of(ignored), Part::Whole, "{ignored}");
        }
        assert_eq!(part(Some("bytes=0-"), 0), Part::Outside);
    }

    #[test]
    fn digests_are_base64_between_colons() {
        let sum = "00".repeat(31) + "ff";
        assert_eq!(
            digest(&sum).expect("a digest"),
            "sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAP8=:"
        );
        assert_eq!(digest("0x"), None);
    }
}
