//! Times for people: RFC 3339, UTC, from microseconds since the Unix epoch.

/// `2026-11-23T12:00:00.000000Z`
pub fn rfc3339(us: i64) -> String {
    let (seconds, micros) = (us.div_euclid(1_000_000), us.rem_euclid(1_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days since 0000-03-01, so that a leap day ends its year (H. Hinnant's civil_from_days).
    let z = days + 719_468;
    let (era, doe) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{micros:06}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// Reads exactly what [`rfc3339`] prints, for the years 0000 to 9999.
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    let bytes: &[u8; 27] = text.as_bytes().try_into().ok()?;
    let number = |from: usize, to: usize| {
        let digits = bytes[from..to].iter().map(|b| b.is_ascii_digit().then(|| i64::from(b - b'0')));
        digits.collect::<Option<Vec<_>>>().map(|digits| digits.iter().fold(0, |n, d| n * 10 + d))
    };
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    // The same days as above, the other way round (H. Hinnant's days_from_civil).
    let y = year - i64::from(month <= 2);
    let (era, yoe) = (y.div_euclid(400), y.rem_euclid(400));
    let doy = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468;
    let seconds = days * 86_400 + number(11, 13)? * 3600 + number(14, 16)? * 60 + number(17, 19)?;
    let us = seconds * 1_000_000 + number(20, 26)?;
    // Whatever is out of range or in another form prints differently.
    (rfc3339(us) == text).then_some(us)
}

#[cfg(test)]
mod tests {
    use super::{parse_rfc3339, rfc3339};

    #[test]
    fn known_times() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(rfc3339(951_782_400_000_001), "2000-02-29T00:00:00.000001Z");
        assert_eq!(rfc3339(1_795_443_123_000_000), "2026-11-23T14:12:03.000000Z");
    }

    #[test]
    fn reads_what_it_prints_and_nothing_else() {
        for us in [0, -1, 951_782_400_000_001, 1_795_443_123_000_000, (1 << 53) - 1, -(1 << 53) + 1] {
            assert_eq!(parse_rfc3339(&rfc3339(us)), Some(us));
        }
        for text in [
            "",
            "2026-11-23T14:12:03Z",
            "2026-11-23T14:12:03.000000z",
            "2026-11-23 14:12:03.000000Z",
            "2026-02-30T00:00:00.000000Z",
            "2026-13-01T00:00:00.000000Z",
            "2026-00-01T00:00:00.000000Z",
            "2026-11-23T24:00:00.000000Z",
            "2026-11-23T23:59:60.000000Z",
            "+026-11-23T14:12:03.000000Z",
            "2026-11-23T14:12:03.000000+",
        ] {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
    }
}
