//! Times as legacy rows and registries write them.

/// Reads RFC 3339, or what PostgreSQL prints (`2025-11-17 00:00:00+00`), into milliseconds since 1970; finer digits are
/// dropped, as JavaScript's `Date` does.
pub fn parse_time(text: &str) -> Option<i64> {
    parse_time_us(text).map(|us| us.div_euclid(1000))
}

/// Like [`parse_time`], into microseconds, which is all that PostgreSQL keeps; finer digits are dropped.
pub(crate) fn parse_time_us(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = bytes.get(from..to)?;
        digits.iter().all(u8::is_ascii_digit).then(|| digits.iter().fold(0, |n, d| n * 10 + i64::from(d - b'0')))
    };
    let marks = |list: &[(usize, &[u8])]| list.iter().all(|(at, any)| bytes.get(*at).is_some_and(|b| any.contains(b)));
    if !marks(&[(4, b"-"), (7, b"-"), (10, b"Tt "), (13, b":"), (16, b":")]) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let month_days = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if !(1..=12).contains(&month) || !(1..=month_days).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut at = 19;
    let mut micros = 0;
    if bytes.get(at) == Some(&b'.') {
        let digits = bytes[at + 1..].iter().take_while(|b| b.is_ascii_digit()).count();
        for place in 0..6 {
            let digit = if place < digits { i64::from(bytes[at + 1 + place] - b'0') } else { 0 };
            micros = micros * 10 + digit;
        }
        if digits == 0 {
            return None;
        }
        at += 1 + digits;
    }
    let offset = match bytes.get(at)? {
        b'Z' | b'z' if bytes.len() == at + 1 => 0,
        sign @ (b'+' | b'-') => {
            let minutes = match bytes.len() - at {
                3 => 0,
                6 if bytes[at + 3] == b':' => number(at + 4, at + 6)?,
                _ => return None,
            };
            let offset = number(at + 1, at + 3)? * 60 + minutes;
            if *sign == b'-' { -offset } else { offset }
        }
        _ => return None,
    };
    // Days from a civil date, with years that begin in March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days =
        y * 365 + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (153 * m + 2) / 5 + day - 1 - 719_468;
    Some((((days * 24 + hour) * 60 + minute - offset) * 60 + second) * 1_000_000 + micros)
}

/// Prints milliseconds since 1970 as RFC 3339.
pub fn print_time(millis: i64) -> String {
    let (days, rest) = (millis.div_euclid(86_400_000), millis.rem_euclid(86_400_000));
    // The inverse of the count above, by 400-year eras.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let m = (5 * day_of_year + 2) / 153;
    let (day, month) = (day_of_year - (153 * m + 2) / 5 + 1, if m < 10 { m + 3 } else { m - 9 });
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let seconds = rest / 1000;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        rest % 1000
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_prints() {
        for day in (-200_000..200_000).step_by(37) {
            let millis = day * 86_400_000 + 86_399_123;
            assert_eq!(parse_time(&print_time(millis)), Some(millis));
        }
    }

    #[test]
    fn shapes() {
        let expected = parse_time("2025-11-17T00:00:00.000Z");
        assert_eq!(expected, Some(1_763_337_600_000));
        for text in ["2025-11-17 00:00:00+00", "2025-11-17T01:00:00.0009+01:00", "2025-11-16t23:00:00-01"] {
            assert_eq!(parse_time(text), expected, "{text}");
        }
        for bad in [
            "",
            "2025-11-17",
            "2025-02-29T00:00:00Z",
            "2025-11-17T00:00:00",
            "2025-11-17T00:00:00.Z",
            "2025-11-17T24:00:00Z",
        ] {
            assert_eq!(parse_time(bad), None, "{bad}");
        }
    }
}
