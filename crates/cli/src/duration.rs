//! Durations as Go writes and reads them: `1m30s`, `500ms`, `0`.

use std::time::Duration;

/// Units, in nanoseconds. Longer names first where one starts another.
const UNITS: &[(&str, f64)] = &[
    ("ns", 1.0),
    ("us", 1e3),
    ("\u{b5}s", 1e3),
    ("\u{3bc}s", 1e3),
    ("ms", 1e6),
    ("s", 1e9),
    ("m", 60e9),
    ("h", 3600e9),
];

/// Reads a duration that is not negative.
///
/// # Errors
/// A text that names the valid forms.
pub fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a valid duration; write it as 40s, 1m30s or 500ms");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = 0.0;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let number: f64 = rest[..end].parse().map_err(|_| wrong())?;
        rest = &rest[end..];
        let end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let (_, unit) = UNITS
            .iter()
            .find(|(name, _)| *name == &rest[..end])
            .ok_or_else(wrong)?;
        total += number * unit;
        rest = &rest[end..];
    }
    Duration::try_from_secs_f64(total / 1e9).map_err(|_| wrong())
}

/// Writes a duration, rounded to milliseconds: `0s`, `31ms`, `1.05s`, `1m2s`.
pub fn millis(time: Duration) -> String {
    let total = (time.as_nanos() + 500_000) / 1_000_000;
    if total == 0 {
        return "0s".to_owned();
    }
    if total < 1000 {
        return format!("{total}ms");
    }
    let (minutes, millis) = (total / 60_000, total % 60_000);
    let mut seconds = format!("{}.{:03}", millis / 1000, millis % 1000);
    while seconds.ends_with('0') {
        seconds.pop();
    }
    let seconds = seconds.trim_end_matches('.');
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let ms = |n| Ok(Duration::from_millis(n));
        for (text, expected) in [
            ("0", ms(0)),
            ("0s", ms(0)),
            ("40s", ms(40_000)),
            ("1m30s", ms(90_000)),
            ("500ms", ms(500)),
            ("1.5h", ms(5_400_000)),
            ("1h0m0.5s", ms(3_600_500)),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
        for wrong in [
            "",
            "5",
            "s",
            "-1s",
            "1x",
            "1.2.3s",
            "1 s",
            "\u{e9}",
            "999999999999999999999h",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (micros, expected) in [
            (0, "0s"),
            (400, "0s"),
            (8_200, "8ms"),
            (999_600, "1s"),
            (1_050_000, "1.05s"),
            (62_000_000, "1m2s"),
            (3_600_000_000, "1h0m0s"),
        ] {
            assert_eq!(millis(Duration::from_micros(micros)), expected);
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,20}") {
            let _ = parse(&text);
        }

        #[test]
        fn written_durations_are_read_back(ms in 0u64..1_000_000_000) {
            prop_assert_eq!(parse(&millis(Duration::from_millis(ms))), Ok(Duration::from_millis(ms)));
        }
    }
}
