//! Times as the API writes and reads them: RFC 3339 in UTC with microseconds out; the same with any offset, or
//! Unix milliseconds, in.

use jiff::tz::TimeZone;
use tidelog_wal::Timestamp;

/// `2026-01-02T03:04:05.678901Z`.
pub fn format(time: Timestamp) -> String {
    let micros = i64::try_from(time.micros()).unwrap_or(i64::MAX);
    // Past the year 9999 there is no RFC 3339; the number of microseconds is still the truth.
    jiff::Timestamp::from_microsecond(micros).map_or_else(
        |_| micros.to_string(),
        |time| {
            time.to_zoned(TimeZone::UTC)
                .strftime("%Y-%m-%dT%H:%M:%S.%6fZ")
                .to_string()
        },
    )
}

/// Reads a time, or says why it is none.
pub fn parse(text: &str) -> Result<Timestamp, String> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let micros = text
            .parse::<u64>()
            .ok()
            .and_then(|millis| millis.checked_mul(1000));
        return micros
            .map(Timestamp::from_micros)
            .ok_or_else(|| format!("{text} is out of range for Unix milliseconds"));
    }
    let time: jiff::Timestamp = text.parse().map_err(|_| {
        format!("{text:?} is neither RFC 3339 (2026-01-02T03:04:05.678901Z) nor Unix milliseconds")
    })?;
    let micros = time.as_microsecond();
    u64::try_from(micros)
        .map(Timestamp::from_micros)
        .map_err(|_| format!("{text} is before 1970"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_round_trip_to_the_microsecond() {
        for micros in [0, 1, 999_999, 1_700_000_000_123_456, 4_102_444_800_000_000] {
            let time = Timestamp::from_micros(micros);
            let text = format(time);
            assert_eq!(text.len(), "2026-01-02T03:04:05.678901Z".len(), "{text}");
            assert_eq!(parse(&text).expect("our own text parses"), time);
        }
    }

    #[test]
    fn offsets_and_milliseconds_mean_the_same_instant() {
        let utc = parse("2026-01-02T03:04:05.5Z").expect("UTC");
        assert_eq!(
            parse("2026-01-02T05:04:05.500+02:00").expect("an offset"),
            utc
        );
        assert_eq!(parse("1767323045500").expect("milliseconds"), utc);
        assert_eq!(format(utc), "2026-01-02T03:04:05.500000Z");
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "yesterday",
            "2026-13-01T00:00:00Z",
            "2026-01-02",
            "99999999999999999999",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert!(parse("1969-12-31T23:59:59Z").is_err());
    }
}
