//! Sizes: bytes and ages as people write and read them.

use std::time::Duration;

/// Reads a number of bytes: `4096`, `64KiB`, `1.5 MiB`, `1GiB`; `k`, `M`, `G` alone mean the same.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    let expected =
        || format!("{text:?} is no size: expected for instance 4096, 64KiB, 1.5MiB, 1GiB");
    let text_end = text.trim_end();
    let digits_end =
        text_end.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text_end.len());
    let (digits, unit) = text_end.split_at(digits_end);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1_u64,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        _ => return Err(expected()),
    };
    if let Ok(whole) = digits.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(expected);
    }
    match digits.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok((number * factor as f64) as u64),
        _ => Err(expected()),
    }
}

/// Reads an age: `90s`, `15min`, `36h`, `7d`.
pub(super) fn parse_age(text: &str) -> Result<Duration, String> {
    let expected = || format!("{text:?} is no age: expected for instance 90s, 15min, 36h, 7d");
    let text = text.trim();
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let seconds: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(expected()),
    };
    let count: u64 = digits.parse().map_err(|_| expected())?;
    count.checked_mul(seconds).map(Duration::from_secs).ok_or_else(expected)
}

/// A number of bytes with three digits: `1.23 MiB`.
pub(super) fn show_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1000.0 || unit == "GiB" {
            return match value {
                _ if unit == "B" => format!("{bytes} B"),
                v if v < 10.0 => format!("{v:.2} {unit}"),
                v if v < 100.0 => format!("{v:.1} {unit}"),
                v => format!("{v:.0} {unit}"),
            };
        }
        value /= 1024.0;
    }
    unreachable!("the last unit takes any value")
}

/// A number with its thousands apart: `1,234,567`.
pub(super) fn show_count(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        for (text, bytes) in
            [("4096", 4096), ("64KiB", 65536), ("1.5 MiB", 3 << 19), ("2g", 2 << 30), ("7B", 7)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes));
        }
        for bad in ["", "MiB", "1 parsec", "-1", "1.2.3", "99999999999999999GiB"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
        for (text, seconds) in [("90s", 90), ("15 min", 900), ("36h", 129_600), ("7d", 604_800)] {
            assert_eq!(parse_age(text), Ok(Duration::from_secs(seconds)));
        }
        for bad in ["", "7", "d", "-1d", "1.5h", "99999999999999999d"] {
            assert!(parse_age(bad).is_err(), "{bad}");
        }
        assert_eq!(show_bytes(999), "999 B");
        assert_eq!(show_bytes(1536), "1.50 KiB");
        assert_eq!(show_bytes(64 << 20), "64.0 MiB");
        assert_eq!(show_count(1_234_567), "1,234,567");
        assert_eq!(show_count(123), "123");
    }
}
