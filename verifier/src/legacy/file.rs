//! Legacy chains in files: JSON lines, an export envelope, a directory of events; plain, gzip or zstd.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use flate2::read::MultiGzDecoder;
use ledger_engine::hash::Hash;
use memchr::memchr;
use serde::de::IgnoredAny;

use super::gauge::{Gauge, Unit};
use super::row::{ROW_BYTES_MAX, RawRow, RowFault, Rows};
use super::verify::{LegacyError, Source};

/// Bytes and rows that are judged together.
const CHUNK_BYTES: usize = 8 << 20;
const CHUNK_ROWS: usize = 16 * 1024;
/// Enough to tell what a file is.
const SNIFF_BYTES: u64 = 64 << 10;
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();
/// Compressed input may expand so many times; an honest chain is mostly hashes and signatures and stays below 20.
const EXPANSION_MAX: u64 = 100;
/// No expansion is judged before so many bytes.
const EXPANSION_FREE_BYTES: u64 = 64 << 20;
/// log2 of the largest zstd window, 64 MiB.
const ZSTD_WINDOW_LOG_MAX: u32 = 26;

/// Bytes of standard input or of a pipe that are taken at once.
const PIPE_BYTES: usize = 256 << 10;
/// How long a pipe is waited for before it is looked whether the run goes on.
const PIPE_WAIT: Duration = Duration::from_millis(100);

/// How events lie in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileFormat {
    /// One event a line.
    Lines,
    /// `{"events": […]}`, or the array alone.
    Envelope,
    /// One event a file (`.json`), at any depth.
    Directory,
}

impl FileFormat {
    fn as_str(self) -> &'static str {
        match self {
            FileFormat::Lines => "JSON lines",
            FileFormat::Envelope => "export envelope",
            FileFormat::Directory => "directory of events",
        }
    }
}

/// A legacy chain in a file, a directory or standard input.
pub struct File {
    name: String,
    format: FileFormat,
    packed: &'static str,
    reader: Reader,
    gauge: Arc<Gauge>,
    chunk_bytes: usize,
    stated: Option<u64>,
    /// Files of a directory that are not events.
    passed_over: u64,
    /// Events before the damage are judged; then it is said.
    damage: Option<io::Error>,
}

enum Reader {
    Lines(LineReader),
    Envelope(Box<Envelope>),
    Directory(Walk),
}

impl File {
    /// Opens a path, or standard input for `-`. Without `format` it is detected.
    pub fn open(path: &Path, format: Option<FileFormat>) -> Result<File, LegacyError> {
        let name = path.display().to_string();
        if path.is_dir() {
            let gauge = Arc::new(Gauge::new(Unit::Files, None));
            let walk = Walk::new(path, Arc::clone(&gauge)).map_err(|e| unreadable(&name, &e))?;
            let (format, packed, reader) = (FileFormat::Directory, "", Reader::Directory(walk));
            return Ok(File {
                name,
                format,
                packed,
                reader,
                gauge,
                chunk_bytes: CHUNK_BYTES,
                stated: None,
                passed_over: 0,
                damage: None,
            });
        }
        if path == Path::new("-") {
            return File::from_pipe(name, io::stdin(), format);
        }
        let file = fs::File::open(path).map_err(|e| unreadable(&name, &e))?;
        let about = file.metadata().map_err(|e| unreadable(&name, &e))?;
        if !about.is_file() {
            return File::from_pipe(name, file, format);
        }
        let gauge = Arc::new(Gauge::new(Unit::Bytes, Some(about.len())));
        File::from_reader(name, Box::new(file), gauge, format)
    }

    /// Reads what is in memory.
    pub fn from_bytes(bytes: Vec<u8>, format: Option<FileFormat>) -> Result<File, LegacyError> {
        let gauge = Arc::new(Gauge::new(Unit::Bytes, Some(bytes.len() as u64)));
        File::from_reader("memory".to_owned(), Box::new(Cursor::new(bytes)), gauge, format)
    }

    /// Has so many bytes judged together: no verdict depends on it.
    #[must_use]
    pub fn with_chunk_bytes(self, chunk_bytes: usize) -> File {
        File { chunk_bytes: chunk_bytes.max(1), ..self }
    }

    fn from_pipe(
        name: String,
        pipe: impl Read + Send + 'static,
        format: Option<FileFormat>,
    ) -> Result<File, LegacyError> {
        let gauge = Arc::new(Gauge::new(Unit::Bytes, None));
        let pipe = Pipe::new(pipe, Arc::clone(&gauge));
        File::from_reader(name, Box::new(pipe), gauge, format)
    }

    fn from_reader(
        name: String,
        raw: Box<dyn Read + Send>,
        gauge: Arc<Gauge>,
        format: Option<FileFormat>,
    ) -> Result<File, LegacyError> {
        let fail = |e: io::Error| unreadable(&name, &e);
        let (magic, raw) = sniff(raw, 4).map_err(fail)?;
        let packed = match magic.as_slice() {
            [0x1f, 0x8b, ..] => "gzip",
            // The second is a frame that readers skip, with which some compressors begin.
            [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => "zstd",
            _ => "",
        };
        let counted = Counted { inner: raw, gauge: Arc::clone(&gauge) };
        let plain: Box<dyn Read + Send> = match packed {
            "gzip" => {
                let inner = MultiGzDecoder::new(BufReader::with_capacity(1 << 16, counted));
                Box::new(Bounded { inner, gauge: Arc::clone(&gauge), given: 0 })
            }
            "zstd" => {
                let mut inner = zstd::Decoder::new(counted).map_err(fail)?;
                inner.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(fail)?;
                Box::new(Bounded { inner, gauge: Arc::clone(&gauge), given: 0 })
            }
            _ => Box::new(counted),
        };
        let (head, mut plain) = sniff(plain, SNIFF_BYTES).map_err(fail)?;
        if head.starts_with(BYTE_ORDER_MARK) {
            // Some editors put one before UTF-8; it is no part of the first row.
            plain.read_exact(&mut [0; BYTE_ORDER_MARK.len()]).map_err(fail)?;
        }
        let mut format = format.or_else(|| detect(head.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&head)));
        if format.is_none() {
            // A long row, or an envelope whose events come late: what the first object is shows at its end. None that is longer than a row
            // is one.
            let (more, whole) = sniff(plain, ROW_BYTES_MAX as u64 + 1).map_err(fail)?;
            plain = whole;
            let longer = if more.len() > ROW_BYTES_MAX { FileFormat::Envelope } else { FileFormat::Lines };
            format = Some(detect(&more).unwrap_or(longer));
        }
        let format = format.unwrap_or(FileFormat::Lines);
        let reader = match format {
            FileFormat::Envelope => Reader::Envelope(Box::new(Envelope::new(plain))),
            FileFormat::Directory => {
                return Err(LegacyError::Source(format!("{name} is no directory; leave --format away")));
            }
            FileFormat::Lines => {
                Reader::Lines(LineReader { inner: plain, carry: Vec::new(), skipping: false, ended: false })
            }
        };
        Ok(File {
            name,
            format,
            packed,
            reader,
            gauge,
            chunk_bytes: CHUNK_BYTES,
            stated: None,
            passed_over: 0,
            damage: None,
        })
    }
}

fn unreadable(name: &str, e: &io::Error) -> LegacyError {
    LegacyError::Source(format!("{name}: {e}"))
}

/// Reads up to `count` bytes. Gives them, and the reader of all of them and what follows. An error after the first byte comes when that reader
/// is there: decompressors give theirs once, and then an end.
fn sniff<R: Read + Send + 'static>(mut reader: R, count: u64) -> io::Result<(Vec<u8>, Box<dyn Read + Send>)> {
    let mut head = Vec::new();
    let failed = match reader.by_ref().take(count).read_to_end(&mut head) {
        Err(e) if head.is_empty() => return Err(e),
        read => read.err(),
    };
    let rest = Cursor::new(head.clone());
    let rest: Box<dyn Read + Send> = match failed {
        Some(e) => Box::new(rest.chain(Failing(Some(e)))),
        None => Box::new(rest.chain(reader)),
    };
    Ok((head, rest))
}

/// Gives an error where a reader had one, and nothing after it.
struct Failing(Option<io::Error>);

impl Read for Failing {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        self.0.take().map_or(Ok(0), Err)
    }
}

/// `None`: more has to be seen.
fn detect(head: &[u8]) -> Option<FileFormat> {
    match head.trim_ascii_start().first() {
        Some(b'[') => Some(FileFormat::Envelope),
        Some(b'{') => has_events(head).map(|has| if has { FileFormat::Envelope } else { FileFormat::Lines }),
        _ => Some(FileFormat::Lines),
    }
}

/// Whether the text begins with an object that has an array `events`. A row has no such member. `None`: the object goes on beyond what can be seen.
fn has_events(head: &[u8]) -> Option<bool> {
    let (mut depth, mut at) = (0_u32, 0);
    while let Some(byte) = head.get(at) {
        match byte {
            b'"' => {
                let mut end = at + 1;
                while head.get(end).is_some_and(|b| *b != b'"') {
                    end += if head[end] == b'\\' { 2 } else { 1 };
                }
                let text = head.get(at..=end)?;
                let after = head[end + 1..].trim_ascii_start();
                let array = after.strip_prefix(b":").is_some_and(|after| after.trim_ascii_start().starts_with(b"["));
                if depth == 1 && array && serde_json::from_slice::<String>(text).is_ok_and(|name| name == "events") {
                    return Some(true);
                }
                at = end;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => match depth {
                // The first object ends.
                0 | 1 => return Some(false),
                _ => depth -= 1,
            },
            _ => {}
        }
        at += 1;
    }
    None
}

/// Reads what may never come, in a thread of its own, so that a run can be stopped meanwhile.
struct Pipe {
    pieces: Receiver<io::Result<Vec<u8>>>,
    piece: Cursor<Vec<u8>>,
    gauge: Arc<Gauge>,
}

impl Pipe {
    fn new(mut inner: impl Read + Send + 'static, gauge: Arc<Gauge>) -> Pipe {
        let (give, pieces) = sync_channel(4);
        std::thread::spawn(move || {
            loop {
                let mut piece = vec![0; PIPE_BYTES];
                let read = match inner.read(&mut piece) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    read => read,
                };
                let last = !matches!(read, Ok(1..));
                let read = read.map(|n| {
                    piece.truncate(n);
                    piece
                });
                if give.send(read).is_err() || last {
                    return;
                }
            }
        });
        Pipe { pieces, piece: Cursor::new(Vec::new()), gauge }
    }
}

impl Read for Pipe {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.piece.read(buf)? {
                0 if !buf.is_empty() => {}
                n => return Ok(n),
            }
            match self.pieces.recv_timeout(PIPE_WAIT) {
                Ok(piece) => self.piece = Cursor::new(piece?),
                Err(RecvTimeoutError::Timeout) => self.gauge.check()?,
                Err(RecvTimeoutError::Disconnected) => return Ok(0),
            }
        }
    }
}

/// Counts what the decompressor takes, and ends with an error once the run is to stop.
struct Counted<R> {
    inner: R,
    gauge: Arc<Gauge>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.gauge.check()?;
        let n = self.inner.read(buf)?;
        self.gauge.add(n as u64);
        Ok(n)
    }
}

/// Stops a decompressor that gives far too much for what it took.
struct Bounded<R> {
    inner: R,
    gauge: Arc<Gauge>,
    given: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.given += n as u64;
        let taken = self.gauge.done();
        if self.given > EXPANSION_FREE_BYTES && self.given / EXPANSION_MAX > taken {
            return Err(io::Error::other(format!(
                "{taken} compressed bytes expand to more than {EXPANSION_MAX} times as many: not read further"
            )));
        }
        Ok(n)
    }
}

enum Event {
    At(Range<usize>),
    TooLarge,
}

/// Events' texts in one buffer.
struct Texts {
    chunk_bytes: usize,
    buffer: Vec<u8>,
    events: Vec<Event>,
    /// Names for findings: empty, or one for each event.
    names: Vec<String>,
}

impl Texts {
    fn full(&self) -> bool {
        self.buffer.len() >= self.chunk_bytes || self.events.len() >= CHUNK_ROWS
    }
}

impl Rows for Texts {
    fn len(&self) -> usize {
        self.events.len()
    }

    fn row(&self, at: usize) -> Result<RawRow<'_>, RowFault> {
        let row = match &self.events[at] {
            Event::TooLarge => Err(RowFault::TooLarge),
            Event::At(range) => RawRow::from_json(&self.buffer[range.clone()]),
        };
        row.map_err(|fault| match (fault, self.names.get(at)) {
            (RowFault::Undecodable(why), Some(name)) => RowFault::Undecodable(format!("{name}: {why}")),
            (fault, _) => fault,
        })
    }
}

impl Source for File {
    fn kind(&self) -> String {
        let packed = if self.packed.is_empty() { String::new() } else { format!(", {}", self.packed) };
        format!("legacy audit events: {}{packed}", self.format.as_str())
    }

    fn gauge(&self) -> Arc<Gauge> {
        Arc::clone(&self.gauge)
    }

    fn stated_count(&self) -> Option<u64> {
        self.stated
    }

    fn remarks(&self) -> Vec<String> {
        match self.passed_over {
            0 => Vec::new(),
            1 => vec!["1 file of the directory is no .json file and was passed over".to_owned()],
            n => vec![format!("{n} files of the directory are no .json files and were passed over")],
        }
    }

    fn outside(&mut self, _: &[Hash]) -> Result<HashSet<Hash>, LegacyError> {
        Ok(HashSet::new())
    }

    #[allow(private_interfaces, reason = "sources are this crate's")]
    fn read(&mut self) -> Result<Option<Box<dyn Rows>>, LegacyError> {
        if let Some(e) = self.damage.take() {
            return Err(unreadable(&self.name, &e));
        }
        let chunk_bytes = self.chunk_bytes;
        let mut texts = Texts { chunk_bytes, buffer: Vec::new(), events: Vec::new(), names: Vec::new() };
        let read = match &mut self.reader {
            Reader::Lines(lines) => lines.read(&mut texts),
            Reader::Envelope(envelope) => {
                let read = envelope.read(&mut texts);
                self.stated = envelope.stated;
                read
            }
            Reader::Directory(walk) => {
                let read = walk.read(&mut texts);
                self.passed_over = walk.passed_over;
                read
            }
        };
        match read {
            Err(e) if texts.events.is_empty() => return Err(unreadable(&self.name, &e)),
            other => self.damage = other.err(),
        }
        Ok(if texts.events.is_empty() { None } else { Some(Box::new(texts)) })
    }
}

struct LineReader {
    inner: Box<dyn Read + Send>,
    /// The beginning of a line whose end was not read yet.
    carry: Vec<u8>,
    /// In a line that is too large, up to its end.
    skipping: bool,
    ended: bool,
}

impl LineReader {
    fn read(&mut self, texts: &mut Texts) -> io::Result<()> {
        while texts.events.is_empty() && !self.ended {
            texts.buffer = std::mem::take(&mut self.carry);
            let wanted = texts.chunk_bytes.max(texts.buffer.len()) as u64;
            let read = (&mut self.inner).take(wanted).read_to_end(&mut texts.buffer);
            self.ended = matches!(read, Ok(0));
            self.split(texts);
            read?;
        }
        Ok(())
    }

    fn split(&mut self, texts: &mut Texts) {
        let mut from = 0;
        while let Some(length) = memchr(b'\n', &texts.buffer[from..]) {
            self.line(texts, from..from + length);
            from += length + 1;
        }
        let rest = from..texts.buffer.len();
        if self.ended {
            if !rest.is_empty() {
                self.line(texts, rest);
            }
        } else if rest.len() > ROW_BYTES_MAX {
            if !std::mem::replace(&mut self.skipping, true) {
                texts.events.push(Event::TooLarge);
            }
        } else if !self.skipping {
            self.carry = texts.buffer[rest].to_vec();
        }
    }

    fn line(&mut self, texts: &mut Texts, range: Range<usize>) {
        if std::mem::take(&mut self.skipping) {
            return;
        }
        if range.len() > ROW_BYTES_MAX {
            texts.events.push(Event::TooLarge);
        } else if !texts.buffer[range.clone()].trim_ascii().is_empty() {
            texts.events.push(Event::At(range));
        }
    }
}

/// Takes events out of one large JSON text without holding it.
struct Envelope {
    input: BufReader<Box<dyn Read + Send>>,
    state: State,
    /// The events were begun.
    has_events: bool,
    stated: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    /// In the outer object, before a key.
    Members,
    /// In the array; in an outer object or alone.
    Events {
        inside: bool,
    },
    End,
}

impl Envelope {
    fn new(inner: Box<dyn Read + Send>) -> Envelope {
        Envelope {
            input: BufReader::with_capacity(1 << 18, inner),
            state: State::Start,
            has_events: false,
            stated: None,
        }
    }

    fn peek(&mut self) -> io::Result<Option<u8>> {
        loop {
            let buffer = self.input.fill_buf()?;
            if buffer.is_empty() {
                return Ok(None);
            }
            let space = buffer.iter().take_while(|b| b.is_ascii_whitespace()).count();
            let next = buffer.get(space).copied();
            self.input.consume(space);
            if next.is_some() {
                return Ok(next);
            }
        }
    }

    fn take(&mut self, byte: u8) -> io::Result<bool> {
        let found = self.peek()? == Some(byte);
        if found {
            self.input.consume(1);
        }
        Ok(found)
    }

    fn expect(&mut self, byte: u8) -> io::Result<()> {
        if self.take(byte)? { Ok(()) } else { Err(damaged(&format!("expected {:?}", char::from(byte)))) }
    }

    /// Appends one value's text; false if it was too large and passed over.
    fn value(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        self.peek()?;
        let start = out.len();
        let (mut depth, mut in_string, mut escaped, mut fits) = (0_u64, false, false, true);
        loop {
            let buffer = self.input.fill_buf()?;
            if buffer.is_empty() {
                return Err(damaged("the text ends inside a value"));
            }
            let mut used = 0;
            let mut done = false;
            for &b in buffer {
                if in_string {
                    in_string = escaped || b != b'"';
                    escaped = b == b'\\' && !escaped;
                    used += 1;
                    done = !in_string && depth == 0;
                } else {
                    match b {
                        b',' | b']' | b'}' if depth == 0 => {
                            done = true;
                            break;
                        }
                        b'"' => in_string = true,
                        b'{' | b'[' => depth += 1,
                        b'}' | b']' => {
                            depth -= 1;
                            done = depth == 0;
                        }
                        _ => {}
                    }
                    used += 1;
                }
                if done {
                    break;
                }
            }
            fits &= out.len() - start + used <= ROW_BYTES_MAX;
            if fits {
                out.extend_from_slice(&buffer[..used]);
            } else {
                out.truncate(start);
            }
            self.input.consume(used);
            if done {
                return Ok(fits);
            }
        }
    }

    fn read(&mut self, texts: &mut Texts) -> io::Result<()> {
        while !texts.full() && self.state != State::End {
            self.step(texts)?;
        }
        Ok(())
    }

    /// After a member's value.
    fn next_member(&mut self) -> io::Result<()> {
        if self.take(b',')? || self.peek()? == Some(b'}') { Ok(()) } else { Err(damaged("expected ',' or '}'")) }
    }

    fn end(&mut self) -> io::Result<()> {
        self.state = State::End;
        if !self.has_events {
            return Err(damaged("it has no member \"events\""));
        }
        if self.peek()?.is_some() { Err(damaged("text follows it")) } else { Ok(()) }
    }

    fn step(&mut self, texts: &mut Texts) -> io::Result<()> {
        match self.state {
            State::Start => {
                if self.take(b'[')? {
                    (self.state, self.has_events) = (State::Events { inside: false }, true);
                } else {
                    self.expect(b'{')?;
                    self.state = State::Members;
                }
            }
            State::Members => {
                if self.take(b'}')? {
                    return self.end();
                }
                let (mut key, mut value) = (Vec::new(), Vec::new());
                self.value(&mut key)?;
                self.expect(b':')?;
                let key: String = serde_json::from_slice(&key).map_err(|_| damaged("a member's name is no string"))?;
                // Of a member that comes twice, readers take one or the other.
                let once = match key.as_str() {
                    "events" => !std::mem::replace(&mut self.has_events, true),
                    "count" => self.stated.is_none(),
                    _ => true,
                };
                if !once {
                    return Err(damaged(&format!("its member {key:?} comes twice")));
                }
                if key == "events" {
                    if !self.take(b'[')? {
                        return Err(damaged("its member \"events\" is no array"));
                    }
                    self.state = State::Events { inside: true };
                    return Ok(());
                }
                self.value(&mut value)?;
                if key == "count" {
                    let digits = value.trim_ascii();
                    let count = std::str::from_utf8(digits).ok().filter(|v| v.bytes().all(|b| b.is_ascii_digit()));
                    let count = count.and_then(|v| v.parse().ok());
                    self.stated = Some(count.ok_or_else(|| damaged("its member \"count\" is no count"))?);
                } else {
                    // It counts for nothing, and what is no JSON is no envelope to anybody else either.
                    serde_json::from_slice::<IgnoredAny>(&value)
                        .map_err(|e| damaged(&format!("its member {key:?}: {e}")))?;
                }
                self.next_member()?;
            }
            State::Events { inside } => {
                if self.take(b']')? {
                    if !inside {
                        return self.end();
                    }
                    self.next_member()?;
                    self.state = State::Members;
                    return Ok(());
                }
                let start = texts.buffer.len();
                let fits = self.value(&mut texts.buffer)?;
                texts.events.push(if fits { Event::At(start..texts.buffer.len()) } else { Event::TooLarge });
                if !self.take(b',')? && self.peek()? != Some(b']') {
                    return Err(damaged("expected ',' or ']'"));
                }
            }
            State::End => {}
        }
        Ok(())
    }
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the envelope is damaged: {what}"))
}

/// Most names of one directory, which are sorted in memory.
const NAMES_MAX: usize = 1_000_000;

/// Names of a directory with what they are, in order.
type Listing = std::vec::IntoIter<(OsString, fs::FileType)>;

/// Walks a directory by name, one listing at each depth in memory.
struct Walk {
    root: PathBuf,
    /// With its path.
    open: Vec<(PathBuf, Listing)>,
    passed_over: u64,
    gauge: Arc<Gauge>,
}

impl Walk {
    fn new(root: &Path, gauge: Arc<Gauge>) -> io::Result<Walk> {
        Ok(Walk { root: root.to_owned(), open: vec![(root.to_owned(), list(root)?)], passed_over: 0, gauge })
    }

    fn read(&mut self, texts: &mut Texts) -> io::Result<()> {
        while !texts.full()
            && let Some((directory, listing)) = self.open.last_mut()
        {
            let Some((name, kind)) = listing.next() else {
                self.open.pop();
                continue;
            };
            let path = directory.join(name);
            self.gauge.check()?;
            self.gauge.add(1);
            let event = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
            if kind.is_dir() {
                let listing = list(&path)?;
                self.open.push((path, listing));
            } else if !event && !kind.is_symlink() {
                self.passed_over += 1;
            } else if !kind.is_file() {
                // It may lead anywhere, and around; passing it over would leave events out.
                let what = if kind.is_symlink() { "a link" } else { "no regular file" };
                let why = format!("{} is {what}: put the file itself there, or take it away", path.display());
                return Err(io::Error::other(why));
            } else {
                let start = texts.buffer.len();
                let limit = ROW_BYTES_MAX as u64 + 1;
                let size = fs::File::open(&path)?.take(limit).read_to_end(&mut texts.buffer)?;
                let marked = texts.buffer[start..].starts_with(BYTE_ORDER_MARK);
                let begin = start + if marked { BYTE_ORDER_MARK.len() } else { 0 };
                if size > ROW_BYTES_MAX {
                    texts.buffer.truncate(start);
                    texts.events.push(Event::TooLarge);
                } else {
                    texts.events.push(Event::At(begin..texts.buffer.len()));
                }
                let name = path.strip_prefix(&self.root).unwrap_or(&path).display().to_string();
                texts.names.push(super::judge::shown(&name));
            }
        }
        Ok(())
    }
}

fn list(directory: &Path) -> io::Result<Listing> {
    let entry = |e: io::Result<fs::DirEntry>| e.and_then(|e| Ok((e.file_name(), e.file_type()?)));
    let mut all: Vec<_> = fs::read_dir(directory)?.take(NAMES_MAX + 1).map(entry).collect::<io::Result<_>>()?;
    if all.len() > NAMES_MAX {
        let why = format!(
            "{} has more than {NAMES_MAX} files: spread them over directories, or write them into one file as JSON lines",
            directory.display()
        );
        return Err(io::Error::other(why));
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(all.into_iter())
}
