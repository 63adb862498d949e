//! Parsers of the chain before this one, against models without any cleverness.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use audit_verify::legacy::parsers;
use audit_verify::legacy::{File, FileFormat, LegacyReport, Signers, verify_legacy};
use ledger_engine::hash::{Hash, from_hex, sha256};

/// Longest message of a refusal: a kid, cut and escaped, and a sentence.
const MESSAGE_BYTES_MAX: usize = 4 << 10;
/// Nesting of the canonical form, FORMAT.md 11.
const DEPTH_MAX: usize = 256;

pub(crate) fn canonical(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let ours = parsers::canonical(text).ok();
    let mut model = Model { rest: text.as_bytes() };
    let value = model.value(0).filter(|_| {
        model.space();
        model.rest.is_empty()
    });
    let expected = value.map(|value| {
        let mut out = String::new();
        print(&value, &mut out);
        out.into_bytes()
    });
    assert_eq!(ours, expected);
    if let Some(ours) = &ours {
        let again = std::str::from_utf8(ours).expect("it is text");
        assert_eq!(parsers::canonical(again).as_ref(), Ok(ours), "it is its own canonical form");
    }
    if serde_json::from_str::<serde_json::Value>(text).is_ok() {
        // It reads half as deep.
        assert!(ours.is_some(), "others read it");
    }
}

enum Value {
    /// `null`, `true` or `false`.
    Word(&'static str),
    Number(f64),
    Text(Vec<u16>),
    Array(Vec<Value>),
    Object(BTreeMap<Vec<u16>, Value>),
}

struct Model<'a> {
    rest: &'a [u8],
}

impl Model<'_> {
    fn space(&mut self) {
        while let [b' ' | b'\t' | b'\n' | b'\r', rest @ ..] = self.rest {
            self.rest = rest;
        }
    }

    fn take(&mut self, text: &str) -> bool {
        self.space();
        let after = self.rest.strip_prefix(text.as_bytes());
        self.rest = after.unwrap_or(self.rest);
        after.is_some()
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        for word in ["null", "true", "false"] {
            if self.take(word) {
                return Some(Value::Word(word));
            }
        }
        if self.take("\"") {
            return self.text().map(Value::Text);
        }
        if self.take("[") {
            return self.array(depth + 1);
        }
        if self.take("{") {
            return self.object(depth + 1);
        }
        self.number()
    }

    fn array(&mut self, depth: usize) -> Option<Value> {
        let mut items = Vec::new();
        if depth > DEPTH_MAX || self.take("]") {
            return (depth <= DEPTH_MAX).then_some(Value::Array(items));
        }
        loop {
            items.push(self.value(depth)?);
            if !self.take(",") {
                return self.take("]").then_some(Value::Array(items));
            }
        }
    }

    fn object(&mut self, depth: usize) -> Option<Value> {
        let mut members = BTreeMap::new();
        if depth > DEPTH_MAX || self.take("}") {
            return (depth <= DEPTH_MAX).then_some(Value::Object(members));
        }
        loop {
            let key = self.take("\"").then(|| self.text()).flatten()?;
            let value = self.take(":").then(|| self.value(depth)).flatten()?;
            members.insert(key, value);
            if !self.take(",") {
                return self.take("}").then_some(Value::Object(members));
            }
        }
    }

    /// The UTF-16 code units up to the closing quote.
    fn text(&mut self) -> Option<Vec<u16>> {
        let mut units = Vec::new();
        let mut chars = std::str::from_utf8(self.rest).ok()?.chars();
        loop {
            match chars.next()? {
                '"' => {
                    self.rest = chars.as_str().as_bytes();
                    return Some(units);
                }
                '\\' => units.push(match chars.next()? {
                    c @ ('"' | '\\' | '/') => c as u16,
                    'b' => 8,
                    't' => 9,
                    'n' => 10,
                    'f' => 12,
                    'r' => 13,
                    'u' => {
                        let mut unit = 0;
                        for _ in 0..4 {
                            unit = unit * 16 + chars.next()?.to_digit(16)? as u16;
                        }
                        unit
                    }
                    _ => return None,
                }),
                c if c < ' ' => return None,
                c => units.extend_from_slice(c.encode_utf16(&mut [0; 2])),
            }
        }
    }

    fn number(&mut self) -> Option<Value> {
        let length = self.rest.iter().take_while(|b| b"+-.eE0123456789".contains(b)).count();
        let (text, rest) = self.rest.split_at(length);
        let text = std::str::from_utf8(text).ok()?;
        // Rust reads more than JSON has: a leading plus or zeros, a bare point.
        let digits = text.strip_prefix('-').unwrap_or(text);
        let (mantissa, exponent) = digits.split_once(['e', 'E']).map_or((digits, None), |(m, e)| (m, Some(e)));
        let (whole, fraction) = mantissa.split_once('.').map_or((mantissa, None), |(w, f)| (w, Some(f)));
        let all = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let exponent = exponent.map(|e| e.strip_prefix(['+', '-']).unwrap_or(e));
        if !all(whole)
            || whole.len() > 1 && whole.starts_with('0')
            || !fraction.is_none_or(all)
            || !exponent.is_none_or(all)
        {
            return None;
        }
        self.rest = rest;
        text.parse().ok().filter(|n: &f64| n.is_finite()).map(Value::Number)
    }
}

fn print(value: &Value, out: &mut String) {
    match value {
        Value::Word(word) => out.push_str(word),
        Value::Number(n) => out.push_str(&number_text(*n)),
        Value::Text(units) => print_text(units, out),
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                out.push_str(if at == 0 { "" } else { "," });
                print(item, out);
            }
            out.push(']');
        }
        Value::Object(members) => {
            out.push('{');
            for (at, (key, value)) in members.iter().enumerate() {
                out.push_str(if at == 0 { "" } else { "," });
                print_text(key, out);
                out.push(':');
                print(value, out);
            }
            out.push('}');
        }
    }
}

fn print_text(units: &[u16], out: &mut String) {
    out.push('"');
    for c in char::decode_utf16(units.iter().copied()) {
        match c {
            Ok('"') => out.push_str("\\\""),
            Ok('\\') => out.push_str("\\\\"),
            Ok('\u{8}') => out.push_str("\\b"),
            Ok('\u{c}') => out.push_str("\\f"),
            Ok('\n') => out.push_str("\\n"),
            Ok('\r') => out.push_str("\\r"),
            Ok('\t') => out.push_str("\\t"),
            Ok(c) if c < ' ' => out.push_str(&format!("\\u{:04x}", c as u32)),
            Ok(c) => out.push(c),
            Err(lone) => out.push_str(&format!("\\u{:04x}", lone.unpaired_surrogate())),
        }
    }
    out.push('"');
}

/// ECMA-262 Number::toString, from the shortest digits that Rust finds.
fn number_text(n: f64) -> String {
    if n == 0.0 {
        return "0".to_owned();
    }
    let printed = format!("{:e}", n.abs());
    let (mantissa, exponent) = printed.split_once('e').expect("Rust prints an exponent");
    let digits = mantissa.replace('.', "");
    let k = digits.len() as i32;
    // The value is 0.digits times ten to this.
    let point = exponent.parse::<i32>().expect("Rust prints a number") + 1;
    let zeros = |count: i32| "0".repeat(count as usize);
    let text = if k <= point && point <= 21 {
        digits + &zeros(point - k)
    } else if 0 < point && point <= 21 {
        let (whole, fraction) = digits.split_at(point as usize);
        format!("{whole}.{fraction}")
    } else if -6 < point && point <= 0 {
        format!("0.{}{digits}", zeros(-point))
    } else {
        let (first, others) = digits.split_at(1);
        let dot = if others.is_empty() { "" } else { "." };
        format!("{first}{dot}{others}e{:+}", point - 1)
    };
    if n < 0.0 { format!("-{text}") } else { text }
}

fn judged(bytes: &[u8], format: Option<FileFormat>, chunk_bytes: usize) -> LegacyReport {
    match File::from_bytes(bytes.to_vec(), format) {
        Ok(file) => verify_legacy("fuzz", &mut file.with_chunk_bytes(chunk_bytes), Some(&HONEST), &[]),
        Err(e) => LegacyReport::unreadable("fuzz", "", &e.to_string()),
    }
}

/// Two rows in a chain, and the registry of who signed them.
const CHAIN: &str = include_str!("../corpus/legacy_file/chain");
const REGISTRY: &str = include_str!("../corpus/legacy_signers/registry");
static HONEST: LazyLock<Signers> =
    LazyLock::new(|| Signers::parse(REGISTRY.as_bytes()).expect("the committed registry"));

pub(crate) fn file(bytes: &[u8]) {
    for format in [None, Some(FileFormat::Lines), Some(FileFormat::Envelope)] {
        let report = judged(bytes, format, 8 << 20);
        for chunk_bytes in [1, 7, 300] {
            assert_eq!(judged(bytes, format, chunk_bytes), report, "chunks of {chunk_bytes}");
        }
        let packed = bytes.starts_with(&[0x1f, 0x8b]) || bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
        if !packed && format == Some(FileFormat::Lines) {
            // A byte order mark is no part of the first line.
            let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
            let lines = text.split(|b| *b == b'\n').filter(|line| !line.trim_ascii().is_empty()).count();
            assert_eq!(report.rows, lines as u64);
        }
        let outside = serde_json::from_slice::<serde_json::Value>(bytes);
        if let (Some(FileFormat::Envelope), Ok(serde_json::Value::Array(events))) = (format, outside) {
            assert_eq!(report.rows, events.len() as u64);
        }
    }
}

pub(crate) fn signers(bytes: &[u8]) {
    let signers = match Signers::parse(bytes) {
        Ok(signers) => signers,
        Err(e) => {
            let e = e.to_string();
            assert!(e.len() <= MESSAGE_BYTES_MAX && !e.contains(char::is_control));
            return;
        }
    };
    let mut file = File::from_bytes(CHAIN.as_bytes().to_vec(), None).expect("the committed chain");
    let report = verify_legacy("fuzz", &mut file, Some(&signers), &[]);
    let key = || -> Option<Hash> {
        let found = report.keys.iter().find(|k| k.kid == "k")?;
        found.key.as_ref().ok().map(|(_, fingerprint)| *fingerprint)
    };
    let honest = from_hex(include_str!("../corpus/legacy_signers/key.hex").trim()).expect("hex");
    assert_eq!(report.exit() == 0, key() == Some(sha256(&[&honest])), "{}", report.to_text());
}

pub(crate) fn time(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Some(millis) = parsers::parse_time(text) else { return };
    let number = |from: usize, to: usize| text[from..to].parse::<i64>().expect("digits");
    let leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    // Counted from the year 0, which begins so many days before 1970.
    let years: i64 = (0..number(0, 4)).map(|year| if leap(year) { 366 } else { 365 }).sum();
    let february = if leap(number(0, 4)) { 29 } else { 28 };
    let months = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let days = years + months[..number(5, 7) as usize - 1].iter().sum::<i64>() + number(8, 10) - 1 - 719_528;
    let seconds = days * 86_400 + number(11, 13) * 3600 + number(14, 16) * 60 + number(17, 19);
    let zone = text[19..].trim_start_matches(['.', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']);
    let offset = zone.get(1..3).map_or(0, |h| h.parse::<i64>().expect("digits") * 3600)
        + zone.get(4..6).map_or(0, |m| m.parse::<i64>().expect("digits") * 60);
    let offset = if zone.starts_with('-') { -offset } else { offset };
    assert_eq!((millis - millis.rem_euclid(1000)) / 1000, seconds - offset);
    let printed = parsers::print_time(millis);
    // Years of four digits; an offset can lead out of them.
    if printed.len() == 24 && !printed.starts_with('-') {
        assert_eq!(parsers::parse_time(&printed), Some(millis));
    }
}
