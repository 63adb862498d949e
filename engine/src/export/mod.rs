//! Export lines: what an archive holds of a ledger, one canonical JSON object a line (FORMAT.md 13).
//!
//! A line has every column that its row has in a store, so one line of an entry can be verified alone. There is one way to
//! write each line and the reader accepts no other: a digest of the bytes is a digest of the rows.

pub mod batch;
mod gzip;
mod manifest;
pub mod record;

pub use gzip::{MEMBER_HEADER_BYTES, MEMBER_PLAIN_BYTES_MAX, MEMBER_TRAILER_BYTES, member_header, member_len};
pub use manifest::{
    ChainRange, ExportFile, FileKind, MANIFEST_BYTES_MAX, MANIFEST_FORMAT, MANIFEST_NAME, Manifest, ManifestError,
};

use crate::body::BODY_BYTES_MAX;
use crate::commit::{COMMIT_SIGNATURES_MAX, CommitSignature};
use crate::hash::{Hash, hex_array, to_hex};
use crate::header::{FORMAT_VERSION, Header};
use crate::json::{self, Object, Value, parse_canonical};

/// Longest line, in bytes, without its line feed: a body and the other members of an entry, or a checkpoint's note.
pub const LINE_BYTES_MAX: usize = BODY_BYTES_MAX + 4096;

/// An entry's line, read: all of the row but what the ledger id gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryLine<'a> {
    /// The header; its hashes are those that the line states.
    pub header: Header<&'a str>,
    /// The entry hash that the line states.
    pub entry_hash: Hash,
    /// Index of the stream's previous entry.
    pub parent_index: Option<u64>,
    /// The body's bytes. Whether they are a body is for [`Body::decode`](crate::body::Body::decode) to say.
    pub body: &'a [u8],
}

/// A commit's line: it stands before the lines of its entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitLine {
    /// Which chain.
    pub chain: u32,
    /// Index of the first entry.
    pub first_index: u64,
    /// How many entries.
    pub size: u64,
    /// How many entries of the key registry the signer knew.
    pub registry_size: u64,
    /// Entry hash of the last of them.
    pub registry_head: Hash,
    /// By kid, ascending.
    pub signatures: Vec<CommitSignature>,
}

/// A checkpoint's line: it stands after the last entry that it covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointLine {
    /// Which chain.
    pub chain: u32,
    /// Tree size.
    pub size: u64,
    /// RFC 6962 root.
    pub root: Hash,
    /// The signed note.
    pub note: String,
}

/// A private document's line, in a file of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrivateLine<'a> {
    /// Which chain.
    pub chain: u32,
    /// Index of the entry that names it.
    pub index: u64,
    /// Its bytes.
    pub document: &'a [u8],
}

/// A line of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// An entry.
    Entry(Box<EntryLine<'a>>),
    /// A commit.
    Commit(CommitLine),
    /// A checkpoint.
    Checkpoint(CheckpointLine),
    /// A private document.
    Private(PrivateLine<'a>),
}

/// A line that no export has: where in it reading stopped, and what should have been there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {offset}: expected {expected}")]
pub struct LineError {
    /// Byte offset in the line.
    pub offset: usize,
    /// What the format has there.
    pub expected: &'static str,
}

/// Appends an entry's line with its line feed.
pub fn write_entry<S: AsRef<str>>(
    out: &mut Vec<u8>,
    header: &Header<S>,
    entry_hash: &Hash,
    parent_index: Option<u64>,
    body: &[u8],
) {
    let mut line = Writer(out);
    line.text("{\"body\":").bytes(body);
    line.text(",\"body_hash\":\"").hex(&header.body_hash);
    line.text("\",\"body_sha256\":\"").hex(&header.body_sha256);
    line.text("\",\"chain\":").number(header.chain.into());
    line.text(",\"entry_hash\":\"").hex(&entry_hash.0);
    line.text("\",\"event_id\":\"").hex(&header.event_id);
    line.text("\",\"event_type\":\"").text(header.event_type.as_ref());
    line.text("\",\"index\":").number(header.index);
    line.text(",\"parent_hash\":\"").hex(&header.parent_hash);
    line.text("\",\"parent_index\":");
    match parent_index {
        Some(index) => line.number(index),
        None => line.text("null"),
    };
    line.text(",\"prev_hash\":\"").hex(&header.prev_hash);
    line.text("\",\"recorded_at_us\":").number(header.recorded_at_us.unsigned_abs());
    line.text(",\"revision\":").number(header.revision);
    line.text(",\"schema_version\":").number(header.schema_version.into());
    line.text(",\"stream\":\"").text(header.stream.as_ref()).text("\"}\n");
}

impl CommitLine {
    /// Appends the line with its line feed.
    pub fn write(&self, out: &mut Vec<u8>) {
        let signature = |s: &CommitSignature| {
            let object = Object::new().with("alg", i64::from(s.alg)).with("kid", s.kid.as_str());
            Value::Object(object.with("signature", to_hex(&s.signature)))
        };
        let commit = Object::new()
            .with("chain", i64::from(self.chain))
            .with("first_index", int(self.first_index))
            .with("registry_head", self.registry_head.to_hex())
            .with("registry_size", int(self.registry_size))
            .with("signatures", Value::Array(self.signatures.iter().map(signature).collect()))
            .with("size", int(self.size));
        out.extend_from_slice(&Object::new().with("commit", commit).to_canonical());
        out.push(b'\n');
    }
}

impl CheckpointLine {
    /// Appends the line with its line feed.
    pub fn write(&self, out: &mut Vec<u8>) {
        let checkpoint = Object::new()
            .with("chain", i64::from(self.chain))
            .with("note", self.note.as_str())
            .with("root", self.root.to_hex())
            .with("size", int(self.size));
        out.extend_from_slice(&Object::new().with("checkpoint", checkpoint).to_canonical());
        out.push(b'\n');
    }
}

impl PrivateLine<'_> {
    /// Appends the line with its line feed.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut line = Writer(out);
        line.text("{\"private\":{\"chain\":").number(self.chain.into());
        line.text(",\"document\":").bytes(self.document);
        line.text(",\"index\":").number(self.index).text("}}\n");
    }
}

/// A count as JSON. Counts of a real ledger are below 2^53.
pub(crate) fn int(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(json::INTEGER_MAX)
}

impl<'a> Line<'a> {
    /// Reads a line without its line feed. `ledger_id` completes the header of an entry.
    pub fn parse(line: &'a [u8], ledger_id: &Hash) -> Result<Line<'a>, LineError> {
        let err = |offset, expected| Err(LineError { offset, expected });
        if line.len() > LINE_BYTES_MAX {
            return err(LINE_BYTES_MAX, "the end of the line");
        }
        if line.starts_with(b"{\"body\":") {
            return Reader { line, at: 0 }.entry(ledger_id).map(|e| Line::Entry(Box::new(e)));
        }
        if line.starts_with(b"{\"private\":") {
            return Reader { line, at: 0 }.private().map(Line::Private);
        }
        let Ok(Some(Value::Object(mut object))) = parse_canonical(line) else {
            return err(0, "an object in canonical form (RFC 8785)");
        };
        let (commit, checkpoint) = (object.remove("commit"), object.remove("checkpoint"));
        let read = match (commit.as_ref().and_then(Value::as_object), checkpoint.as_ref().and_then(Value::as_object)) {
            (Some(commit), None) if object.is_empty() => read_commit(commit).map(Line::Commit),
            (None, Some(checkpoint)) if object.is_empty() => read_checkpoint(checkpoint).map(Line::Checkpoint),
            _ => return err(1, "one member: body and its columns, commit, checkpoint or private"),
        };
        read.ok_or(LineError { offset: 1, expected: "the members of a commit or checkpoint" })
    }
}

fn count(object: &Object, name: &str) -> Option<u64> {
    object.value(name).and_then(Value::as_int).and_then(|n| u64::try_from(n).ok())
}

fn hash(object: &Object, name: &str) -> Option<Hash> {
    object.value(name).and_then(Value::as_str).and_then(Hash::from_hex)
}

fn read_commit(commit: &Object) -> Option<CommitLine> {
    let signature = |value: &Value| {
        let object = value.as_object().filter(|o| o.len() == 3)?;
        let kid = object.value("kid")?.as_str()?.to_owned();
        let signature = json_hex(object.value("signature")?)?;
        Some(CommitSignature { kid, alg: u8::try_from(count(object, "alg")?).ok()?, signature })
    };
    let signatures = commit.value("signatures")?.as_array()?;
    if commit.len() != 6 || signatures.len() > COMMIT_SIGNATURES_MAX {
        return None;
    }
    Some(CommitLine {
        chain: u32::try_from(count(commit, "chain")?).ok()?,
        first_index: count(commit, "first_index")?,
        size: count(commit, "size")?,
        registry_size: count(commit, "registry_size")?,
        registry_head: hash(commit, "registry_head")?,
        signatures: signatures.iter().map(signature).collect::<Option<_>>()?,
    })
}

fn json_hex(value: &Value) -> Option<Vec<u8>> {
    value.as_str().and_then(crate::hash::from_hex)
}

fn read_checkpoint(checkpoint: &Object) -> Option<CheckpointLine> {
    let note = checkpoint.value("note")?.as_str()?.to_owned();
    let (size, root) = (count(checkpoint, "size")?, hash(checkpoint, "root")?);
    let chain = u32::try_from(count(checkpoint, "chain")?).ok()?;
    (checkpoint.len() == 4).then_some(CheckpointLine { chain, size, root, note })
}

/// Appends text, numbers and hex.
struct Writer<'o>(&'o mut Vec<u8>);

impl Writer<'_> {
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    fn number(&mut self, n: u64) -> &mut Self {
        self.text(&n.to_string())
    }

    fn hex(&mut self, bytes: &[u8]) -> &mut Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digits = bytes.iter().flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]);
        self.0.extend(digits);
        self
    }
}

/// Reads what [`write_entry`] and [`PrivateLine::write`] write, and nothing else.
struct Reader<'a> {
    line: &'a [u8],
    at: usize,
}

/// What follows a body, and a private document: no text after them can hold it, so the last one in the line is meant.
const AFTER_BODY: &[u8] = b",\"body_hash\":\"";
const AFTER_DOCUMENT: &[u8] = b",\"index\":";

impl<'a> Reader<'a> {
    fn entry(mut self, ledger_id: &Hash) -> Result<EntryLine<'a>, LineError> {
        self.expect(b"{\"body\":", "{\"body\":")?;
        // After a body, which is an object, the only brace is the line's last byte. What is no object is found the slow way.
        let object = self.line.get(self.at..self.line.len() - 1).and_then(|rest| memchr::memrchr(b'}', rest));
        let body = match object.map(|last| self.line[self.at..].split_at(last + 1)) {
            Some((body, rest)) if rest.starts_with(AFTER_BODY) => {
                self.at += body.len();
                body
            }
            _ => self.until_last(AFTER_BODY, ",\"body_hash\":\" after the body")?,
        };
        self.expect(AFTER_BODY, "body_hash")?;
        let body_hash = self.hex("body_hash, 64 hex characters")?;
        self.expect(b"\",\"body_sha256\":\"", "body_sha256")?;
        let body_sha256 = self.hex("body_sha256, 64 hex characters")?;
        self.expect(b"\",\"chain\":", "chain")?;
        let chain = self.number("chain, a u32").and_then(|n| self.fit(n, "chain, a u32"))?;
        self.expect(b",\"entry_hash\":\"", "entry_hash")?;
        let entry_hash = Hash(self.hex("entry_hash, 64 hex characters")?);
        self.expect(b"\",\"event_id\":\"", "event_id")?;
        let event_id = self.hex("event_id, 32 hex characters")?;
        self.expect(b"\",\"event_type\":\"", "event_type")?;
        let event_type = self.name("event_type, at most 64 of [a-z0-9_.-]")?;
        self.expect(b"\",\"index\":", "index")?;
        let index = self.number("index")?;
        self.expect(b",\"parent_hash\":\"", "parent_hash")?;
        let parent_hash = self.hex("parent_hash, 64 hex characters")?;
        self.expect(b"\",\"parent_index\":", "parent_index")?;
        let parent_index = if self.line[self.at..].starts_with(b"null") {
            self.at += 4;
            None
        } else {
            Some(self.number("parent_index")?)
        };
        self.expect(b",\"prev_hash\":\"", "prev_hash")?;
        let prev_hash = self.hex("prev_hash, 64 hex characters")?;
        self.expect(b"\",\"recorded_at_us\":", "recorded_at_us")?;
        let recorded_at_us = self.number("recorded_at_us")? as i64;
        self.expect(b",\"revision\":", "revision")?;
        let revision = self.number("revision")?;
        self.expect(b",\"schema_version\":", "schema_version")?;
        let schema_version = self.number("schema_version").and_then(|n| self.fit(n, "schema_version, a u16"))?;
        self.expect(b",\"stream\":\"", "stream")?;
        let stream = self.name("stream, at most 64 of [a-z0-9_.-]")?;
        self.expect(b"\"}", "\"} after stream")?;
        self.end()?;
        let header = Header {
            format_version: FORMAT_VERSION,
            ledger_id: ledger_id.0,
            chain,
            index,
            prev_hash,
            stream,
            revision,
            parent_hash,
            event_id,
            event_type,
            schema_version,
            recorded_at_us,
            body_hash,
            body_sha256,
        };
        Ok(EntryLine { header, entry_hash, parent_index, body })
    }

    fn private(mut self) -> Result<PrivateLine<'a>, LineError> {
        self.expect(b"{\"private\":{\"chain\":", "{\"private\":{\"chain\":")?;
        let chain = self.number("chain, a u32").and_then(|n| self.fit(n, "chain, a u32"))?;
        self.expect(b",\"document\":", "document")?;
        let document = self.until_last(AFTER_DOCUMENT, ",\"index\": after the document")?;
        self.expect(AFTER_DOCUMENT, "index")?;
        let index = self.number("index")?;
        self.expect(b"}}", "}} after index")?;
        self.end()?;
        Ok(PrivateLine { chain, index, document })
    }

    fn error<T>(&self, expected: &'static str) -> Result<T, LineError> {
        Err(LineError { offset: self.at, expected })
    }

    fn expect(&mut self, literal: &[u8], expected: &'static str) -> Result<(), LineError> {
        if !self.line[self.at..].starts_with(literal) {
            return self.error(expected);
        }
        self.at += literal.len();
        Ok(())
    }

    fn end(&self) -> Result<(), LineError> {
        if self.at == self.line.len() { Ok(()) } else { self.error("the end of the line") }
    }

    /// The bytes up to the last `mark` of the line.
    fn until_last(&mut self, mark: &[u8], expected: &'static str) -> Result<&'a [u8], LineError> {
        let rest = &self.line[self.at..];
        let Some(len) = memchr::memmem::rfind(rest, mark) else { return self.error(expected) };
        self.at += len;
        Ok(&rest[..len])
    }

    fn hex<const N: usize>(&mut self, expected: &'static str) -> Result<[u8; N], LineError> {
        let read = self.line.get(self.at..self.at + 2 * N).and_then(hex_array);
        let Some(out) = read else { return self.error(expected) };
        self.at += 2 * N;
        Ok(out)
    }

    /// An integer as RFC 8785 prints it, from 0 to 2^53 − 1.
    fn number(&mut self, expected: &'static str) -> Result<u64, LineError> {
        let rest = &self.line[self.at..];
        let len = rest.iter().take(17).take_while(|b| b.is_ascii_digit()).count();
        let digits = &rest[..len];
        let n = digits.iter().fold(0u64, |n, d| n * 10 + u64::from(d - b'0'));
        let leading_zero = len > 1 && digits[0] == b'0';
        if len == 0 || leading_zero || n > json::INTEGER_MAX as u64 {
            return self.error(expected);
        }
        self.at += len;
        Ok(n)
    }

    fn fit<T: TryFrom<u64>>(&self, n: u64, expected: &'static str) -> Result<T, LineError> {
        T::try_from(n).or_else(|_| self.error(expected))
    }

    fn name(&mut self, expected: &'static str) -> Result<&'a str, LineError> {
        let rest = &self.line[self.at..];
        let allowed = |b: &&u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-');
        let len = rest.iter().take(65).take_while(allowed).count();
        match std::str::from_utf8(&rest[..len]) {
            Ok(name) if (1..=64).contains(&len) => {
                self.at += len;
                Ok(name)
            }
            _ => self.error(expected),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header<&'static str> {
        Header {
            format_version: FORMAT_VERSION,
            ledger_id: [9; 32],
            chain: 3,
            index: 17,
            prev_hash: [1; 32],
            stream: "order-00000000000000000000000000000001",
            revision: 2,
            parent_hash: [2; 32],
            event_id: [3; 16],
            event_type: "payment.captured",
            schema_version: 1,
            recorded_at_us: 1_700_000_000_000_000,
            body_hash: [4; 32],
            body_sha256: [5; 32],
        }
    }

    fn lines() -> Vec<Vec<u8>> {
        let body = br#"{"actor_id":"a,\"body_hash\":\"","payload":{"n":[1,{}]}}"#;
        let mut all = vec![Vec::new(); 5];
        write_entry(&mut all[0], &header(), &Hash([6; 32]), Some(4), body);
        write_entry(&mut all[1], &header(), &Hash([6; 32]), None, b"{}");
        let signature = |kid: &str| CommitSignature { kid: kid.into(), alg: 1, signature: vec![7; 64] };
        CommitLine {
            chain: 3,
            first_index: 16,
            size: 2,
            registry_size: 1,
            registry_head: Hash([8; 32]),
            signatures: vec![signature("commit-1"), signature("commit-2")],
        }
        .write(&mut all[2]);
        let note = "o/3\n18\nAAAA\n\n— o/3 BBBB\n".to_owned();
        CheckpointLine { chain: 3, size: 18, root: Hash([1; 32]), note }.write(&mut all[3]);
        PrivateLine { chain: 3, index: 17, document: br#"{"index":1,"salt":",\"index\":"}"# }.write(&mut all[4]);
        all.iter_mut().for_each(|line| assert_eq!(line.pop(), Some(b'\n')));
        all
    }

    fn write_again(line: &Line<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        match line {
            Line::Entry(e) => write_entry(&mut out, &e.header, &e.entry_hash, e.parent_index, e.body),
            Line::Commit(c) => c.write(&mut out),
            Line::Checkpoint(c) => c.write(&mut out),
            Line::Private(p) => p.write(&mut out),
        }
        out.pop();
        out
    }

    #[test]
    fn a_line_is_canonical_json_and_comes_back() {
        for line in lines() {
            assert!(matches!(parse_canonical(&line), Ok(Some(_))), "{}", String::from_utf8_lossy(&line));
            let read = Line::parse(&line, &Hash([9; 32])).unwrap();
            assert_eq!(write_again(&read), line);
        }
        let all = lines();
        let Ok(Line::Entry(entry)) = Line::parse(&all[0], &Hash([9; 32])) else { panic!("an entry") };
        assert_eq!((entry.header, entry.parent_index), (header(), Some(4)));
    }

    #[test]
    fn whatever_is_accepted_is_written_the_same_way() {
        for line in lines() {
            for at in 0..line.len() {
                for byte in [line[at] ^ 1, line[at] ^ 0x20, b'"', b' ', b'0'] {
                    let mut other = line.clone();
                    other[at] = byte;
                    if let Ok(read) = Line::parse(&other, &Hash([9; 32])) {
                        assert_eq!(write_again(&read), other);
                    }
                    other.remove(at);
                    if let Ok(read) = Line::parse(&other, &Hash([9; 32])) {
                        assert_eq!(write_again(&read), other);
                    }
                }
            }
        }
    }
}
