//! The one JSON reader and printer: I-JSON without fractions, printed as RFC 8785 (JCS) bytes.
//!
//! Bodies are hashed, so two readers must never see different values in the same bytes. What other parsers
//! disagree on is refused here instead of normalised: fractions and exponents, `-0`, integers beyond
//! ±(2^53−1), duplicate names, U+0000, lone surrogates, deep nesting. FORMAT.md 2.1.

use std::cmp::Ordering;
use std::fmt;

/// Deepest nesting accepted; the outermost value is at depth 1.
pub const DEPTH_MAX: usize = 32;

/// Largest magnitude of a number: 2^53 − 1.
pub const INTEGER_MAX: i64 = (1 << 53) - 1;

/// A JSON value. Object members are unique and sorted by the UTF-16 code units of their names (RFC 8785 3.2.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// An integer within ±(2^53−1)
    Int(i64),
    /// A string without U+0000
    Str(Text),
    /// An array
    Array(Vec<Value>),
    /// An object
    Object(Object),
}

/// A name or string. Short ones, as nearly all are, take no allocation of their own.
pub type Text = compact_str::CompactString;

/// Members of an object, unique and sorted.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Object(Vec<(Text, Value)>);

/// Why bytes are not JSON that a body may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonError {
    /// JSON pointer (RFC 6901) of the value at fault.
    pub pointer: String,
    /// Byte offset in the input where reading stopped.
    pub offset: usize,
    /// What is wrong.
    pub fault: JsonFault,
}

/// The kinds of [`JsonError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JsonFault {
    /// Not JSON (RFC 8259).
    Syntax,
    /// A fraction or an exponent.
    NotAnInteger,
    /// `-0`.
    NegativeZero,
    /// Beyond ±(2^53−1).
    OutOfRange,
    /// The same member name twice in one object.
    DuplicateName,
    /// U+0000 in a string or name.
    Nul,
    /// Half of a surrogate pair.
    LoneSurrogate,
    /// Nested deeper than [`DEPTH_MAX`].
    TooDeep,
    /// Not UTF-8.
    NotUtf8,
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.fault {
            JsonFault::Syntax => "not valid JSON",
            JsonFault::NotAnInteger => {
                "a number with a fraction or exponent; write an integer (money is amount and scale)"
            }
            JsonFault::NegativeZero => "-0 is refused; write 0",
            JsonFault::OutOfRange => "an integer beyond ±(2^53−1); write it as a string",
            JsonFault::DuplicateName => "the same member name twice",
            JsonFault::Nul => "U+0000 in a string",
            JsonFault::LoneSurrogate => "half of a surrogate pair",
            JsonFault::TooDeep => "nested deeper than 32",
            JsonFault::NotUtf8 => "not UTF-8",
        };
        write!(f, "{what} (at {:?}, byte {})", if self.pointer.is_empty() { "/" } else { &self.pointer }, self.offset)
    }
}

impl std::error::Error for JsonError {}

impl Object {
    /// An object without members.
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of a member.
    pub fn value(&self, name: &str) -> Option<&Value> {
        // Few members are compared faster than their order.
        if self.0.len() <= 16 {
            return self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value);
        }
        self.0.binary_search_by(|(n, _)| utf16_order(n, name)).ok().map(|at| &self.0[at].1)
    }

    /// Sets a member, replacing one of the same name.
    pub fn set(&mut self, name: &str, value: impl Into<Value>) {
        match self.0.binary_search_by(|(n, _)| utf16_order(n, name)) {
            Ok(at) => self.0[at].1 = value.into(),
            Err(at) => self.0.insert(at, (name.into(), value.into())),
        }
    }

    /// Sets a member when there is a value.
    pub fn set_some<T: Into<Value>>(&mut self, name: &str, value: Option<T>) {
        if let Some(value) = value {
            self.set(name, value);
        }
    }

    /// Builder form of [`Object::set`].
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.set(name, value);
        self
    }

    /// Takes a member out.
    pub fn remove(&mut self, name: &str) -> Option<Value> {
        let at = self.0.binary_search_by(|(n, _)| utf16_order(n, name)).ok()?;
        Some(self.0.remove(at).1)
    }

    /// The members in canonical order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(n, v)| (n.as_str(), v))
    }

    /// How many members.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no members.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The canonical bytes (RFC 8785).
    pub fn to_canonical(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        write_object(self, &mut out);
        out
    }
}

impl IntoIterator for Object {
    type Item = (Text, Value);
    type IntoIter = std::vec::IntoIter<(Text, Value)>;

    /// Members in order.
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl Value {
    /// The canonical bytes (RFC 8785).
    pub fn to_canonical(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        write_value(self, &mut out);
        out
    }

    /// The members, if this is an object.
    pub fn as_object(&self) -> Option<&Object> {
        match self {
            Value::Object(o) => Some(o),
            _ => None,
        }
    }

    /// The text, if this is a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(s) => Some(s),
            _ => None,
        }
    }

    /// The number, if this is one.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Value::Int(n) => Some(*n),
            _ => None,
        }
    }

    /// The items, if this is an array.
    pub fn as_array(&self) -> Option<&[Value]> {
        match self {
            Value::Array(items) => Some(items),
            _ => None,
        }
    }
}

impl From<&str> for Value {
    fn from(v: &str) -> Self {
        Value::Str(v.into())
    }
}
impl From<String> for Value {
    fn from(v: String) -> Self {
        Value::Str(v.into())
    }
}
impl From<i64> for Value {
    fn from(v: i64) -> Self {
        Value::Int(v)
    }
}
impl From<Object> for Value {
    fn from(v: Object) -> Self {
        Value::Object(v)
    }
}
impl From<Vec<Value>> for Value {
    fn from(v: Vec<Value>) -> Self {
        Value::Array(v)
    }
}

/// Reads one value; nothing but white space may surround it.
pub fn parse(bytes: &[u8]) -> Result<Value, JsonError> {
    read(bytes).map(|(value, _)| value)
}

/// Reads one value. Also tells whether the bytes are its canonical form.
fn read(bytes: &[u8]) -> Result<(Value, bool), JsonError> {
    let text = std::str::from_utf8(bytes).map_err(|e| JsonError {
        pointer: String::new(),
        offset: e.valid_up_to(),
        fault: JsonFault::NotUtf8,
    })?;
    let mut reader = Reader { text, at: 0, path: Vec::new(), canonical: true };
    reader.space();
    let value = reader.value(1)?;
    reader.space();
    if reader.at != text.len() {
        return Err(reader.error(JsonFault::Syntax));
    }
    Ok((value, reader.canonical))
}

/// Reads one value and refuses bytes that are not its canonical form. `None` means well-formed but not canonical.
pub fn parse_canonical(bytes: &[u8]) -> Result<Option<Value>, JsonError> {
    let (value, canonical) = read(bytes)?;
    Ok(canonical.then_some(value))
}

/// Order of member names: by UTF-16 code units (RFC 8785 3.2.3).
pub fn utf16_order(a: &str, b: &str) -> Ordering {
    match a.bytes().zip(b.bytes()).find(|(x, y)| x != y) {
        None => a.len().cmp(&b.len()),
        // Below U+E000, where surrogates and UTF-8 begin to disagree, the two orders are one.
        Some((x, y)) if x.max(y) < 0xee => x.cmp(&y),
        Some(_) => a.encode_utf16().cmp(b.encode_utf16()),
    }
}

enum Step {
    Index(usize),
    Name(Text),
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    path: Vec<Step>,
    /// Nothing was read so far that would be printed otherwise: white space, names out of order, escapes. A number has one form.
    canonical: bool,
}

impl Reader<'_> {
    fn error(&self, fault: JsonFault) -> JsonError {
        let mut pointer = String::new();
        for step in &self.path {
            pointer.push('/');
            match step {
                Step::Index(i) => pointer.push_str(&i.to_string()),
                // A hostile name must not make the message as long as the document.
                Step::Name(n) => {
                    pointer.extend(n.chars().take(64).flat_map(|c| match c {
                        '~' => "~0".chars().collect::<Vec<_>>(),
                        '/' => "~1".chars().collect(),
                        c => vec![c],
                    }));
                }
            }
        }
        JsonError { pointer, offset: self.at, fault }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
            self.canonical = false;
        }
    }

    fn literal(&mut self, word: &str, value: Value) -> Result<Value, JsonError> {
        if self.text.as_bytes()[self.at..].starts_with(word.as_bytes()) {
            self.at += word.len();
            Ok(value)
        } else {
            Err(self.error(JsonFault::Syntax))
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, JsonError> {
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => self.string().map(Value::Str),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.literal("true", Value::Bool(true)),
            Some(b'f') => self.literal("false", Value::Bool(false)),
            Some(b'n') => self.literal("null", Value::Null),
            _ => Err(self.error(JsonFault::Syntax)),
        }
    }

    fn number(&mut self) -> Result<Value, JsonError> {
        let start = self.at;
        let negative = self.peek() == Some(b'-');
        self.at += usize::from(negative);
        let digits = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        let count = self.at - digits;
        if count == 0 || (count > 1 && self.text.as_bytes()[digits] == b'0') {
            return Err(self.error(JsonFault::Syntax));
        }
        if matches!(self.peek(), Some(b'.' | b'e' | b'E')) {
            return Err(self.error(JsonFault::NotAnInteger));
        }
        let number: i64 = match self.text[start..self.at].parse() {
            Ok(n) if (-INTEGER_MAX..=INTEGER_MAX).contains(&n) => n,
            _ => return Err(self.error(JsonFault::OutOfRange)),
        };
        if negative && number == 0 {
            return Err(self.error(JsonFault::NegativeZero));
        }
        Ok(Value::Int(number))
    }

    fn string(&mut self) -> Result<Text, JsonError> {
        self.at += 1;
        let mut out = Text::default();
        loop {
            let rest = &self.text.as_bytes()[self.at..];
            let plain = plain_len(rest);
            let text = &self.text[self.at..self.at + plain];
            self.at += plain;
            if out.is_empty() {
                // Nearly always that is all of it.
                out = text.into();
            } else {
                out.push_str(text);
            }
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(out);
                }
                Some(b'\\') => {
                    let from = self.at;
                    let c = self.escape()?;
                    out.push(c);
                    let mut printed = Vec::new();
                    write_string(c.encode_utf8(&mut [0; 4]), &mut printed);
                    // Between the quotes.
                    self.canonical &= printed[1..printed.len() - 1] == self.text.as_bytes()[from..self.at];
                }
                Some(0) => return Err(self.error(JsonFault::Nul)),
                _ => return Err(self.error(JsonFault::Syntax)),
            }
        }
    }

    fn escape(&mut self) -> Result<char, JsonError> {
        self.at += 1;
        let c = match self.peek() {
            Some(c @ (b'"' | b'\\' | b'/')) => char::from(c),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                self.at += 1;
                return self.unicode_escape();
            }
            _ => return Err(self.error(JsonFault::Syntax)),
        };
        self.at += 1;
        Ok(c)
    }

    fn unicode_escape(&mut self) -> Result<char, JsonError> {
        let unit = self.hex4()?;
        match unit {
            0 => Err(self.error(JsonFault::Nul)),
            0xd800..=0xdbff => {
                if !self.text.as_bytes()[self.at..].starts_with(b"\\u") {
                    return Err(self.error(JsonFault::LoneSurrogate));
                }
                self.at += 2;
                let low = self.hex4()?;
                if !(0xdc00..=0xdfff).contains(&low) {
                    return Err(self.error(JsonFault::LoneSurrogate));
                }
                let code = 0x10000 + ((u32::from(unit) - 0xd800) << 10) + (u32::from(low) - 0xdc00);
                char::from_u32(code).ok_or_else(|| self.error(JsonFault::LoneSurrogate))
            }
            unit => char::from_u32(u32::from(unit)).ok_or_else(|| self.error(JsonFault::LoneSurrogate)),
        }
    }

    fn hex4(&mut self) -> Result<u16, JsonError> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4);
        let digits = digits.filter(|d| d.iter().all(u8::is_ascii_hexdigit));
        let Some(unit) = digits.and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| u16::from_str_radix(d, 16).ok())
        else {
            return Err(self.error(JsonFault::Syntax));
        };
        self.at += 4;
        Ok(unit)
    }

    fn array(&mut self, depth: usize) -> Result<Value, JsonError> {
        if depth > DEPTH_MAX {
            return Err(self.error(JsonFault::TooDeep));
        }
        self.at += 1;
        let mut items = Vec::new();
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Value::Array(items));
        }
        loop {
            self.path.push(Step::Index(items.len()));
            self.space();
            items.push(self.value(depth + 1)?);
            self.path.pop();
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(Value::Array(items));
                }
                _ => return Err(self.error(JsonFault::Syntax)),
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, JsonError> {
        if depth > DEPTH_MAX {
            return Err(self.error(JsonFault::TooDeep));
        }
        self.at += 1;
        let mut members: Vec<(Text, Value)> = Vec::new();
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Value::Object(Object(members)));
        }
        loop {
            self.space();
            if self.peek() != Some(b'"') {
                return Err(self.error(JsonFault::Syntax));
            }
            let name = self.string()?;
            self.space();
            if self.peek() != Some(b':') {
                return Err(self.error(JsonFault::Syntax));
            }
            self.at += 1;
            self.space();
            self.path.push(Step::Name(name));
            let value = self.value(depth + 1)?;
            let Some(Step::Name(name)) = self.path.pop() else { unreachable!("the step pushed above") };
            members.push((name, value));
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    break;
                }
                _ => return Err(self.error(JsonFault::Syntax)),
            }
        }
        if members.is_sorted_by(|(a, _), (b, _)| utf16_order(a, b).is_lt()) {
            return Ok(Value::Object(Object(members)));
        }
        self.canonical = false;
        members.sort_by(|(a, _), (b, _)| utf16_order(a, b));
        if let Some(pair) = members.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            self.path.push(Step::Name(pair[0].0.clone()));
            return Err(self.error(JsonFault::DuplicateName));
        }
        Ok(Value::Object(Object(members)))
    }
}

/// How many bytes there are before a quote, a backslash or a control character. Eight are looked at together: a string is most of
/// what a body has, and byte by byte this took more time than hashing it.
fn plain_len(bytes: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    // The high bit of each byte below n, and perhaps of bytes after such a one: the first is right.
    let below = |word: u64, n: u64| word.wrapping_sub(ONES * n) & !word & HIGH;
    let mut at = 0;
    while let Some(chunk) = bytes.get(at..at + 8) {
        let word = u64::from_le_bytes(chunk.try_into().unwrap_or_default());
        let quote = below(word ^ (ONES * u64::from(b'"')), 1);
        let backslash = below(word ^ (ONES * u64::from(b'\\')), 1);
        let stop = quote | backslash | below(word, 0x20);
        if stop != 0 {
            return at + (stop.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    let rest = &bytes[at..];
    at + rest.iter().position(|b| matches!(b, b'"' | b'\\' | 0..=0x1f)).unwrap_or(rest.len())
}

fn write_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Int(n) => out.extend_from_slice(n.to_string().as_bytes()),
        Value::Str(s) => write_string(s, out),
        Value::Array(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_value(item, out);
            }
            out.push(b']');
        }
        Value::Object(object) => write_object(object, out),
    }
}

fn write_object(object: &Object, out: &mut Vec<u8>) {
    out.push(b'{');
    for (i, (name, value)) in object.0.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_string(name, out);
        out.push(b':');
        write_value(value, out);
    }
    out.push(b'}');
}

/// Appends a string as RFC 8785 prints it, quotes included.
pub fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut from = 0;
    for (i, &b) in bytes.iter().enumerate() {
        let short: &[u8] = match b {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            8 => b"\\b",
            9 => b"\\t",
            10 => b"\\n",
            12 => b"\\f",
            13 => b"\\r",
            0..=0x1f => b"",
            _ => continue,
        };
        out.extend_from_slice(&bytes[from..i]);
        from = i + 1;
        if short.is_empty() {
            out.extend_from_slice(format!("\\u{b:04x}").as_bytes());
        } else {
            out.extend_from_slice(short);
        }
    }
    out.extend_from_slice(&bytes[from..]);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> String {
        String::from_utf8(parse(text.as_bytes()).unwrap().to_canonical()).unwrap()
    }

    fn fault(text: &str) -> (JsonFault, String) {
        let e = parse(text.as_bytes()).unwrap_err();
        (e.fault, e.pointer)
    }

    #[test]
    fn prints_as_rfc_8785() {
        assert_eq!(
            canonical("{ \"b\" : [1 , -2,null,true,false], \"a\":{} }"),
            r#"{"a":{},"b":[1,-2,null,true,false]}"#
        );
        // RFC 8785 3.2.2.2: the escapes; 3.2.3: order by UTF-16 units, so U+1F600 sorts before U+FB33.
        assert_eq!(
            canonical(r#""\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/""#),
            "\"€$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\""
        );
        assert_eq!(
            canonical("{\"\u{fb33}\":1,\"\u{1f600}\":2,\"\u{80}\":3,\"\\r\":4,\"1\":5,\"ö\":6,\"€\":7}"),
            "{\"\\r\":4,\"1\":5,\"\u{80}\":3,\"ö\":6,\"€\":7,\"\u{1f600}\":2,\"\u{fb33}\":1}"
        );
    }

    #[test]
    fn refuses_what_parsers_disagree_on_and_names_the_place() {
        assert_eq!(fault(r#"{"a":[1,1.0]}"#), (JsonFault::NotAnInteger, "/a/1".into()));
        assert_eq!(fault(r#"{"a":1e3}"#), (JsonFault::NotAnInteger, "/a".into()));
        assert_eq!(fault(r#"{"a":-0}"#), (JsonFault::NegativeZero, "/a".into()));
        assert_eq!(fault(r#"{"a":9007199254740992}"#), (JsonFault::OutOfRange, "/a".into()));
        assert_eq!(fault(r#"{"a":{"x/y":1,"x\/y":2}}"#), (JsonFault::DuplicateName, "/a/x~1y".into()));
        assert_eq!(fault(r#"{"a":"\u0000"}"#), (JsonFault::Nul, "/a".into()));
        assert_eq!(fault(r#""\ud800""#), (JsonFault::LoneSurrogate, "".into()));
        assert_eq!(fault(r#""\udc00x""#), (JsonFault::LoneSurrogate, "".into()));
        assert_eq!(fault("01").0, JsonFault::Syntax);
        assert_eq!(fault("[1,]").0, JsonFault::Syntax);
        assert_eq!(fault("{} {}").0, JsonFault::Syntax);
        assert_eq!(fault("\"a\nb\"").0, JsonFault::Syntax);
        assert_eq!(parse(b"\"\xff\"").unwrap_err().fault, JsonFault::NotUtf8);
        let deep = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert!(parse(deep(32).as_bytes()).is_ok());
        assert_eq!(fault(&deep(33)).0, JsonFault::TooDeep);
        assert_eq!(canonical("9007199254740991"), "9007199254740991");
    }

    #[test]
    fn a_string_ends_at_the_first_byte_that_is_not_plain() {
        for len in 0..20 {
            for at in 0..len {
                for byte in 0..=255u8 {
                    for around in [b'a', 0x7f, 0x80, 0xff, 0x20, 0x21, 0x23] {
                        let mut bytes = vec![around; len];
                        bytes[at] = byte;
                        // A second one behind the first.
                        if let Some(next) = bytes.get_mut(at + 1) {
                            *next = b'"';
                        }
                        let expected = bytes.iter().position(|b| matches!(b, b'"' | b'\\' | 0..=0x1f));
                        assert_eq!(plain_len(&bytes), expected.unwrap_or(len), "{bytes:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn only_the_canonical_form_passes() {
        assert!(parse_canonical(br#"{"a":1}"#).unwrap().is_some());
        assert!(parse_canonical(br#"{"a": 1}"#).unwrap().is_none());
        assert!(parse_canonical(br#"{"b":1,"a":1}"#).unwrap().is_none());
        assert!(parse_canonical(br#""\u0041""#).unwrap().is_none());
        for (text, canonical) in [
            (r#"" ""#, true),
            (r#" """#, false),
            (r#""" "#, false),
            (r#"[1, 2]"#, false),
            (r#"[1 ,2]"#, false),
            (r#"{"a" :1}"#, false),
            (r#""\/""#, false),
            (r#""\n\u000b\"\\""#, true),
            (r#""\u000B""#, false),
            (r#""\u000a""#, false),
            (r#""\u20ac""#, false),
            (r#""€\ud83d\ude00""#, false),
            (r#"{"\n":1,"a":{"b":[],"c":{}}}"#, true),
            (r#"{"a":1,"\n":1}"#, false),
        ] {
            let parsed = parse(text.as_bytes()).unwrap();
            assert_eq!(parse_canonical(text.as_bytes()).unwrap().is_some(), canonical, "{text}");
            assert_eq!(parsed.to_canonical() == text.as_bytes(), canonical, "{text}");
        }
    }
}
