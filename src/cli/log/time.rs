//! Time: wall clocks as people write and read them, in UTC.
//!
//! Days and dates as in Howard Hinnant's "chrono-Compatible Low-Level Date Algorithms"
//! (`days_from_civil`, `civil_from_days`).

use std::time::{SystemTime, UNIX_EPOCH};

/// A wall clock in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WallClock(pub(super) u64);

/// Clocks from here on are not shown as dates.
pub(super) const YEAR_10000_MS: u64 = 253_402_300_800_000;

/// A wall clock as RFC 3339 text, to the millisecond.
pub(super) fn utc(ms: u64) -> String {
    let (days, in_day) = (ms / 86_400_000, ms % 86_400_000);
    let shifted = days + 719_468; // days since 0000-03-01
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153; // 0 is March
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (seconds, milliseconds) = (in_day / 1000, in_day % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z")
}

/// Reads a time: RFC 3339 (`2026-11-21T07:30:00Z`, `2026-11-21 07:30:00.5+01:00`), the same without
/// seconds, offset or time of day (UTC, midnight), or relative to now (`-10m`, `-90s`, `-2h`, `-3d`).
pub(super) fn parse_time(text: &str) -> Result<WallClock, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64);
    parse_at(text.trim(), now).ok_or_else(|| {
        "expected a time like 2026-11-21T07:30:00Z, 2026-11-21, or before now: -90s, -10m, -2h, -3d"
            .into()
    })
}

fn parse_at(text: &str, now_ms: u64) -> Option<WallClock> {
    if let Some(ago) = text.strip_prefix('-') {
        let digits = ago.find(|c: char| !c.is_ascii_digit())?;
        let unit = match &ago[digits..] {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        let ago: u64 = ago[..digits].parse().ok()?;
        return Some(WallClock(now_ms.saturating_sub(ago.checked_mul(unit)?)));
    }
    let (date, rest) = match text.find(['T', 't', ' ']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let day_ms = days_of(date)? * 86_400_000;
    let Some(rest) = rest else { return u64::try_from(day_ms).ok().map(WallClock) };
    let (time, offset_ms) = split_offset(rest)?;
    let ms = day_ms + time_of_day(time)? - offset_ms;
    u64::try_from(ms).ok().map(WallClock)
}

/// Days since 1970 of `YYYY-MM-DD`.
fn days_of(date: &str) -> Option<i64> {
    let mut parts = date.split('-');
    let [year, month, day] = [parts.next()?, parts.next()?, parts.next()?];
    if parts.next().is_some() || [year.len(), month.len(), day.len()] != [4, 2, 2] {
        return None;
    }
    let [year, month, day] = [number(year, 9999)?, number(month, 12)?, number(day, 31)?];
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        0 => return None,
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if day == 0 || day > days {
        return None;
    }
    let shifted_year = year - i64::from(month <= 2);
    let (era, year_of_era) = (shifted_year.div_euclid(400), shifted_year.rem_euclid(400));
    let shifted_month = (month + 9) % 12;
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Some(era * 146_097 + day_of_era - 719_468)
}

/// The time of day without its offset, and the offset from UTC in milliseconds.
fn split_offset(text: &str) -> Option<(&str, i64)> {
    if let Some(time) = text.strip_suffix(['Z', 'z']) {
        return Some((time, 0));
    }
    let Some(at) = text.find(['+', '-']) else { return Some((text, 0)) };
    let (hours, minutes) = text[at + 1..].split_once(':')?;
    let ms = (number(hours, 23)? * 60 + number(minutes, 59)?) * 60_000;
    Some((&text[..at], if text[at..].starts_with('-') { -ms } else { ms }))
}

/// Milliseconds since midnight of `HH:MM[:SS[.fraction]]`.
fn time_of_day(text: &str) -> Option<i64> {
    let mut parts = text.splitn(3, ':');
    let (hour, minute) = (number(parts.next()?, 23)?, number(parts.next()?, 59)?);
    let second = parts.next().unwrap_or("0");
    let (second, fraction) = second.split_once('.').unwrap_or((second, "0"));
    if fraction.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let milliseconds: i64 = format!("{fraction:0<3}")[..3].parse().ok()?;
    // A leap second is counted as the one after it, as clocks do that know none.
    Some(((hour * 60 + minute) * 60 + number(second, 60)?) * 1000 + milliseconds)
}

fn number(text: &str, most: i64) -> Option<i64> {
    let digits = !text.is_empty() && text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|number| digits && *number <= most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_clocks_print_as_dates() {
        assert_eq!(utc(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(utc(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(utc(1_735_689_599_999), "2024-12-31T23:59:59.999Z");
        assert_eq!(utc(YEAR_10000_MS - 1), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn every_printed_clock_reads_back() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..10_000 {
            let ms = random.u64(0..YEAR_10000_MS);
            assert_eq!(parse_at(&utc(ms), 0), Some(WallClock(ms)), "{}", utc(ms));
        }
    }

    #[test]
    fn times_are_read_in_every_form() {
        let noon = 1_795_262_400_000; // 2026-11-21T12:00:00Z
        for (text, ms) in [
            ("2026-11-21T12:00:00Z", noon),
            ("2026-11-21t12:00:00.000z", noon),
            ("2026-11-21 12:00", noon),
            ("2026-11-21T13:30:00+01:30", noon),
            ("2026-11-21T03:59:59.9999-08:00", noon - 1),
            ("2026-11-21", noon - 43_200_000),
            ("2026-11-21T12:00:00.5Z", noon + 500),
            ("-90s", noon - 90_000),
            ("-10m", noon - 600_000),
            ("-2h", noon - 7_200_000),
            ("-3d", noon - 259_200_000),
            ("-5ms", noon - 5),
            ("-99999999d", 0),
        ] {
            assert_eq!(parse_at(text, noon), Some(WallClock(ms)), "{text}");
        }
        for bad in [
            "",
            "-",
            "-10",
            "-m",
            "-1y",
            "10m",
            "2026",
            "2026-13-01",
            "2026-02-29",
            "2026-00-10",
            "2026-11-21T",
            "2026-11-21T25:00",
            "2026-11-21T12",
            "2026-11-21T12:00:00.Z",
            "2026-11-21T12:00:00+1",
            "2026-11-21T12:00:61Z",
            "1969-12-31",
            "+2026-11-21",
            "now",
        ] {
            assert_eq!(parse_at(bad, noon), None, "{bad}");
        }
        assert_eq!(
            parse_at("2024-02-29", 0).map(|clock| utc(clock.0)).as_deref(),
            Some("2024-02-29T00:00:00.000Z")
        );
    }
}
