//! The legacy canonical form: what `JSON.stringify` prints of the parsed value, keys sorted by UTF-16 code units.
//!
//! One pass over the text writes the output; only an object whose members are out of order is copied once more.

use std::borrow::Cow;
use std::cmp::Ordering;

use memchr::memchr;

/// Arrays and objects may nest this deep.
pub(crate) const DEPTH_MAX: usize = 256;

/// Why a text has no canonical form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Not JSON, at this byte.
    Syntax(usize),
    /// A number that no double can hold, at this byte.
    NumberTooLarge(usize),
    /// Nested deeper than [`DEPTH_MAX`].
    TooDeep,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Syntax(at) => write!(f, "not JSON at byte {at}"),
            Fault::NumberTooLarge(at) => write!(f, "the number at byte {at} is too large for a double"),
            Fault::TooDeep => write!(f, "nested deeper than {DEPTH_MAX}"),
        }
    }
}

/// Where a member lies in the output: `"key":value` from `start` to `end`, the quoted key up to `key_end`.
#[derive(Clone, Copy)]
struct Member {
    start: usize,
    key_end: usize,
    end: usize,
}

/// Buffers that are used again from text to text.
#[derive(Default)]
pub(crate) struct Scratch {
    members: Vec<Member>,
    copy: Vec<u8>,
    /// Set where a number was printed that has not exactly the value of the text.
    pub(crate) inexact: bool,
    /// Numbers that no double has exactly are printed as they are, see [`canonicalise_exactly`].
    exact: bool,
}

/// Appends the canonical form of one JSON text to `out`. On a fault `out` holds a part of it.
pub(crate) fn canonicalise(text: &str, out: &mut Vec<u8>, scratch: &mut Scratch) -> Result<(), Fault> {
    scratch.inexact = false;
    let mut scanner = Scanner::new(text);
    scanner.value(out, scratch, 0)?;
    scanner.space();
    if scanner.pos < text.len() { Err(scanner.syntax()) } else { Ok(()) }
}

/// Like [`canonicalise`], but a number whose canonical print has another value is given by its digits, without zeros
/// around them, and, unless it is 0, `e` and the power of ten (FORMAT.md 14).
pub(crate) fn canonicalise_exactly(text: &str, out: &mut Vec<u8>, scratch: &mut Scratch) -> Result<(), Fault> {
    scratch.exact = true;
    let done = canonicalise(text, out, scratch);
    scratch.exact = false;
    done
}

/// Sign, digits without zeros around them, power of ten: one form for one value.
fn decimal(number: &str) -> (bool, String, i64) {
    let (negative, number) = number.strip_prefix('-').map_or((false, number), |rest| (true, rest));
    let (digits, power) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    // Beyond an i64 no number is told from another any more.
    let limit = if power.starts_with('-') { i64::MIN / 2 } else { i64::MAX / 2 };
    let power = power.parse::<i64>().unwrap_or(limit).clamp(i64::MIN / 2, i64::MAX / 2);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all = [whole, fraction].concat();
    let kept = all.trim_end_matches('0');
    let power = power - fraction.len() as i64 + (all.len() - kept.len()) as i64;
    let kept = kept.trim_start_matches('0');
    if kept.is_empty() { (false, String::new(), 0) } else { (negative, kept.to_owned(), power) }
}

fn print_decimal(number: &str, out: &mut Vec<u8>) {
    let (negative, digits, power) = decimal(number);
    out.extend_from_slice(if negative { b"-" } else { b"" });
    out.extend_from_slice(digits.as_bytes());
    if power != 0 {
        out.extend_from_slice(format!("e{power}").as_bytes());
    }
}

/// A cursor over JSON text.
pub(crate) struct Scanner<'a> {
    text: &'a str,
    pos: usize,
}

impl<'a> Scanner<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Scanner { text, pos: 0 }
    }

    fn bytes(&self) -> &'a [u8] {
        self.text.as_bytes()
    }

    fn syntax(&self) -> Fault {
        Fault::Syntax(self.pos)
    }

    pub(crate) fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.bytes().get(self.pos) {
            self.pos += 1;
        }
    }

    /// The next byte that is no white space, without taking it.
    pub(crate) fn peek(&mut self) -> Option<u8> {
        self.space();
        self.bytes().get(self.pos).copied()
    }

    /// Takes `byte` if it comes next, after white space.
    pub(crate) fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.pos += usize::from(found);
        found
    }

    pub(crate) fn expect(&mut self, byte: u8) -> Result<(), Fault> {
        if self.take(byte) { Ok(()) } else { Err(self.syntax()) }
    }

    pub(crate) fn at_end(&mut self) -> bool {
        self.peek().is_none()
    }

    fn word(&mut self, word: &str) -> Result<(), Fault> {
        if !self.text[self.pos..].starts_with(word) {
            return Err(self.syntax());
        }
        self.pos += word.len();
        Ok(())
    }

    fn value(&mut self, out: &mut Vec<u8>, scratch: &mut Scratch, depth: usize) -> Result<(), Fault> {
        match self.peek() {
            Some(b'{') => self.object(out, scratch, depth + 1),
            Some(b'[') => self.array(out, scratch, depth + 1),
            Some(b'"') => self.print_string(out),
            Some(b'-' | b'0'..=b'9') => self.print_number(out, scratch),
            Some(c) => {
                let word = match c {
                    b't' => "true",
                    b'f' => "false",
                    b'n' => "null",
                    _ => return Err(self.syntax()),
                };
                self.word(word)?;
                out.extend_from_slice(word.as_bytes());
                Ok(())
            }
            None => Err(self.syntax()),
        }
    }

    fn array(&mut self, out: &mut Vec<u8>, scratch: &mut Scratch, depth: usize) -> Result<(), Fault> {
        if depth > DEPTH_MAX {
            return Err(Fault::TooDeep);
        }
        self.pos += 1;
        out.push(b'[');
        if !self.take(b']') {
            loop {
                self.value(out, scratch, depth)?;
                if !self.take(b',') {
                    break;
                }
                out.push(b',');
            }
            self.expect(b']')?;
        }
        out.push(b']');
        Ok(())
    }

    fn object(&mut self, out: &mut Vec<u8>, scratch: &mut Scratch, depth: usize) -> Result<(), Fault> {
        if depth > DEPTH_MAX {
            return Err(Fault::TooDeep);
        }
        self.pos += 1;
        out.push(b'{');
        let mine = scratch.members.len();
        if !self.take(b'}') {
            loop {
                if self.peek() != Some(b'"') {
                    return Err(self.syntax());
                }
                let start = out.len();
                self.print_string(out)?;
                let key_end = out.len();
                self.expect(b':')?;
                out.push(b':');
                self.value(out, scratch, depth)?;
                scratch.members.push(Member { start, key_end, end: out.len() });
                if !self.take(b',') {
                    break;
                }
                out.push(b',');
            }
            self.expect(b'}')?;
        }
        sort_members(out, scratch, mine);
        out.push(b'}');
        Ok(())
    }

    /// Length of the run from here that a string can hold and print as it is.
    fn plain(&self) -> usize {
        let rest = &self.bytes()[self.pos..];
        rest.iter().position(|&b| b == b'"' || b == b'\\' || b < 0x20).unwrap_or(rest.len())
    }

    fn hex4(&mut self) -> Result<u16, Fault> {
        let digits = self.bytes().get(self.pos..self.pos + 4).ok_or(Fault::Syntax(self.pos))?;
        let mut unit = 0;
        for &d in digits {
            let value = char::from(d).to_digit(16).ok_or(Fault::Syntax(self.pos))?;
            unit = unit << 4 | value as u16;
        }
        self.pos += 4;
        Ok(unit)
    }

    /// Reads what follows a backslash: one char, or a surrogate without its other half.
    fn escape(&mut self) -> Result<Result<char, u16>, Fault> {
        let c = *self.bytes().get(self.pos).ok_or(Fault::Syntax(self.pos))?;
        self.pos += 1;
        let simple = match c {
            b'"' | b'\\' | b'/' => char::from(c),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let unit = self.hex4()?;
                if (0xd800..0xdc00).contains(&unit) && self.bytes()[self.pos..].starts_with(b"\\u") {
                    let second = self.pos;
                    self.pos += 2;
                    let low = self.hex4()?;
                    if let Some(Ok(c)) = char::decode_utf16([unit, low]).next() {
                        return Ok(Ok(c));
                    }
                    self.pos = second;
                }
                return Ok(char::from_u32(u32::from(unit)).ok_or(unit));
            }
            _ => return Err(Fault::Syntax(self.pos - 1)),
        };
        Ok(Ok(simple))
    }

    /// Copies a string as `JSON.stringify` prints it, quotes included.
    fn print_string(&mut self, out: &mut Vec<u8>) -> Result<(), Fault> {
        self.pos += 1;
        out.push(b'"');
        loop {
            let run = self.plain();
            out.extend_from_slice(&self.bytes()[self.pos..self.pos + run]);
            self.pos += run;
            match self.bytes().get(self.pos) {
                Some(b'"') => {
                    self.pos += 1;
                    out.push(b'"');
                    return Ok(());
                }
                Some(b'\\') => {
                    self.pos += 1;
                    print_char(self.escape()?, out);
                }
                _ => return Err(self.syntax()),
            }
        }
    }

    /// Reads a string. A surrogate without its other half becomes U+FFFD.
    pub(crate) fn string(&mut self) -> Result<Cow<'a, str>, Fault> {
        self.expect(b'"')?;
        let start = self.pos;
        let run = self.plain();
        self.pos += run;
        let mut text = Cow::Borrowed(&self.text[start..self.pos]);
        loop {
            match self.bytes().get(self.pos) {
                Some(b'"') => {
                    self.pos += 1;
                    return Ok(text);
                }
                Some(b'\\') => {
                    self.pos += 1;
                    let c = self.escape()?.unwrap_or(char::REPLACEMENT_CHARACTER);
                    text.to_mut().push(c);
                }
                _ => return Err(self.syntax()),
            }
            let run = self.plain();
            text.to_mut().push_str(&self.text[self.pos..self.pos + run]);
            self.pos += run;
        }
    }

    /// Takes a number and gives its text, and whether it is a plain integer.
    pub(crate) fn number(&mut self) -> Result<(&'a str, bool), Fault> {
        let bytes = self.bytes();
        let start = self.pos;
        let digits = |mut at: usize| {
            while bytes.get(at).is_some_and(u8::is_ascii_digit) {
                at += 1;
            }
            at
        };
        let mut at = start + usize::from(bytes.get(start) == Some(&b'-'));
        let first = at;
        at = digits(at);
        if at == first || (bytes[first] == b'0' && at > first + 1) {
            return Err(Fault::Syntax(at));
        }
        let integer_end = at;
        if bytes.get(at) == Some(&b'.') {
            let fraction = at + 1;
            at = digits(fraction);
            if at == fraction {
                return Err(Fault::Syntax(at));
            }
        }
        if let Some(b'e' | b'E') = bytes.get(at) {
            let sign = usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-')));
            let exponent = at + 1 + sign;
            at = digits(exponent);
            if at == exponent {
                return Err(Fault::Syntax(at));
            }
        }
        self.pos = at;
        Ok((&self.text[start..at], at == integer_end))
    }

    fn print_number(&mut self, out: &mut Vec<u8>, scratch: &mut Scratch) -> Result<(), Fault> {
        // 15 digits are below 2^53: the double prints as it was written.
        const EXACT_DIGITS: usize = 15;
        let start = self.pos;
        let (text, integer) = self.number()?;
        if integer && text.len() <= EXACT_DIGITS && text != "-0" {
            out.extend_from_slice(text.as_bytes());
            return Ok(());
        }
        let value: f64 = text.parse().map_err(|_| Fault::Syntax(start))?;
        if value.is_infinite() {
            return Err(Fault::NumberTooLarge(start));
        }
        let mut buffer = ryu_js::Buffer::new();
        let printed = if value == 0.0 { "0" } else { buffer.format_finite(value) };
        let inexact = printed != text && decimal(printed) != decimal(text);
        scratch.inexact |= inexact;
        if inexact && scratch.exact {
            print_decimal(text, out);
        } else {
            out.extend_from_slice(printed.as_bytes());
        }
        Ok(())
    }

    /// Passes over one value, checking no more than its brackets and strings, and gives its text.
    pub(crate) fn skip(&mut self) -> Result<&'a str, Fault> {
        self.space();
        let start = self.pos;
        let mut depth = 0_usize;
        loop {
            match self.bytes().get(self.pos) {
                None => return Err(self.syntax()),
                Some(b'"') => self.skip_string()?,
                Some(b'{' | b'[') => {
                    depth += 1;
                    self.pos += 1;
                }
                Some(b'}' | b']' | b',') if depth == 0 => {
                    if self.pos == start {
                        return Err(self.syntax());
                    }
                    break;
                }
                Some(b'}' | b']') => {
                    depth -= 1;
                    self.pos += 1;
                }
                Some(_) => self.pos += 1,
            }
            if depth == 0 && matches!(self.bytes()[self.pos - 1], b'"' | b'}' | b']') {
                break;
            }
        }
        Ok(self.text[start..self.pos].trim_ascii_end())
    }

    fn skip_string(&mut self) -> Result<(), Fault> {
        self.pos += 1;
        loop {
            let quote = memchr(b'"', &self.bytes()[self.pos..]).ok_or(Fault::Syntax(self.pos))?;
            let run = &self.bytes()[self.pos..self.pos + quote];
            self.pos += quote + 1;
            if run.iter().rev().take_while(|&&b| b == b'\\').count() % 2 == 0 {
                return Ok(());
            }
        }
    }
}

fn print_char(c: Result<char, u16>, out: &mut Vec<u8>) {
    match c {
        Ok('"') => out.extend_from_slice(b"\\\""),
        Ok('\\') => out.extend_from_slice(b"\\\\"),
        Ok('\u{8}') => out.extend_from_slice(b"\\b"),
        Ok('\t') => out.extend_from_slice(b"\\t"),
        Ok('\n') => out.extend_from_slice(b"\\n"),
        Ok('\u{c}') => out.extend_from_slice(b"\\f"),
        Ok('\r') => out.extend_from_slice(b"\\r"),
        Ok(c) if c < ' ' => out.extend_from_slice(format!("\\u{:04x}", c as u32).as_bytes()),
        Ok(c) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        Err(lone) => out.extend_from_slice(format!("\\u{lone:04x}").as_bytes()),
    }
}

/// Brings the members from `mine` on into order; of equal keys the last one stays, as in `JSON.parse`.
fn sort_members(out: &mut Vec<u8>, scratch: &mut Scratch, mine: usize) {
    let Scratch { members, copy, .. } = scratch;
    let list = &mut members[mine..];
    let key = |m: &Member| m.start + 1..m.key_end - 1;
    if !list.is_sorted_by(|a, b| utf16_order(&out[key(a)], &out[key(b)]).is_lt()) {
        let from = list[0].start;
        list.sort_by(|a, b| utf16_order(&out[key(a)], &out[key(b)]));
        copy.clear();
        for (i, m) in list.iter().enumerate() {
            if list.get(i + 1).is_some_and(|next| out[key(next)] == out[key(m)]) {
                continue;
            }
            if !copy.is_empty() {
                copy.push(b',');
            }
            copy.extend_from_slice(&out[m.start..m.end]);
        }
        out.truncate(from);
        out.extend_from_slice(copy);
    }
    members.truncate(mine);
}

/// Compares two printed keys, without their quotes, by the UTF-16 code units of what they stand for.
fn utf16_order(a: &[u8], b: &[u8]) -> Ordering {
    if memchr(b'\\', a).is_some() || memchr(b'\\', b).is_some() {
        return units(a).cmp(units(b));
    }
    // In UTF-8 the order of bytes is that of code points. UTF-16 differs from it in one place: what needs surrogates
    // (lead bytes from f0) comes before U+E000 to U+FFFF (lead bytes ee and ef).
    let rank = |byte: u8| match byte {
        0xee | 0xef => byte + 5,
        0xf0..=0xf4 => byte - 2,
        byte => byte,
    };
    let common = a.iter().zip(b).position(|(x, y)| x != y);
    common.map_or_else(|| a.len().cmp(&b.len()), |at| rank(a[at]).cmp(&rank(b[at])))
}

/// The UTF-16 code units of a printed string.
fn units(printed: &[u8]) -> impl Iterator<Item = u16> {
    // The printer writes UTF-8 only, and its own escapes only.
    let text = std::str::from_utf8(printed).unwrap_or_default();
    let mut scanner = Scanner::new(text);
    let mut low = None;
    std::iter::from_fn(move || {
        if let Some(unit) = low.take() {
            return Some(unit);
        }
        let c = scanner.text[scanner.pos..].chars().next()?;
        scanner.pos += c.len_utf8();
        let c = if c == '\\' {
            match scanner.escape() {
                Ok(Ok(c)) => c,
                Ok(Err(lone)) => return Some(lone),
                Err(_) => return None,
            }
        } else {
            c
        };
        let mut pair = [0; 2];
        let pair = c.encode_utf16(&mut pair);
        low = pair.get(1).copied();
        Some(pair[0])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> Result<String, Fault> {
        let mut out = Vec::new();
        canonicalise(text, &mut out, &mut Scratch::default())?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn vectors_of_the_old_system() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/legacy/legacy-canonical.json");
        let file: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let vectors = file["vectors"].as_array().unwrap();
        assert!(vectors.len() > 30);
        for v in vectors {
            let text = v["json_text"].as_str().unwrap();
            let printed = canonical(text).unwrap();
            assert_eq!(printed, v["canonical"].as_str().unwrap(), "{text}");
            let hash = ledger_engine::hash::sha256(&[printed.as_bytes()]);
            assert_eq!(hash.to_hex(), v["sha256"].as_str().unwrap(), "{text}");
        }
    }

    #[test]
    fn keys_by_code_units_even_if_escaped() {
        // U+001F before U+0020 though its escape begins with a backslash; a lone surrogate between U+20AC and U+FB01.
        let text = r#"{"ﬁ":1,"\ud83d\ude00":2,"\udead":3,"€":4," ":5,"\u001f":6,"\"":7,"a\\":8,"a]":9,"a":10}"#;
        let expected = r#"{"\u001f":6," ":5,"\"":7,"a":10,"a\\":8,"a]":9,"€":4,"😀":2,"\udead":3,"ﬁ":1}"#;
        assert_eq!(canonical(text).unwrap(), expected);
    }

    #[test]
    fn the_last_of_equal_keys_stays() {
        assert_eq!(canonical(r#"{"a":1,"b":2,"\u0061":3}"#).unwrap(), r#"{"a":3,"b":2}"#);
        assert_eq!(canonical(r#"{"a":{"x":1,"x":2},"a":[]}"#).unwrap(), r#"{"a":[]}"#);
    }

    #[test]
    fn what_has_no_canonical_form() {
        assert_eq!(canonical("[1e400]"), Err(Fault::NumberTooLarge(1)));
        assert_eq!(canonical(&"9".repeat(400)), Err(Fault::NumberTooLarge(0)));
        assert_eq!(canonical(&"[".repeat(100_000)), Err(Fault::TooDeep));
        assert_eq!(canonical(&r#"{"a":"#.repeat(100_000)), Err(Fault::TooDeep));
        for bad in
            ["", "{", "[1,]", "{\"a\":1,}", "01", "1.", ".5", "-", "+1", "1e", "nul", "'a'", "\"\n\"", "\"\\x\"", "1 2"]
        {
            assert!(matches!(canonical(bad), Err(Fault::Syntax(_))), "{bad:?}");
        }
    }

    #[test]
    fn skips_what_it_is_not_asked_about() {
        for (text, value) in
            [("1 ,2", "1"), (r#" {"a":["}",1e999]} ,"#, r#"{"a":["}",1e999]}"#), ("\"a\\\\\",1", "\"a\\\\\"")]
        {
            assert_eq!(Scanner::new(text).skip().unwrap(), value);
        }
        assert!(Scanner::new(&"[".repeat(1 << 20)).skip().is_err());
        assert!(Scanner::new(",").skip().is_err());
    }
}
