//! The lines of a range of a chain, in files: one thread reads rows and prints them, the others compress.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use flate2::{Compress, Compression, Crc, FlushCompress, Status};
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use super::ExportError;
use crate::export::batch::StoredFile;
use crate::export::{
    ChainRange, CheckpointLine, CommitLine, ExportFile, FileKind, MEMBER_PLAIN_BYTES_MAX, PrivateLine, member_header,
    write_entry,
};
use crate::hash::Hash;
use crate::store::{CheckpointRow, Entry, Store, StoreError, StoredCommit};

/// Entries after which a chain goes on in another file.
const FILE_ENTRIES: u64 = 1 << 20;
/// Bytes of lines after which a piece is compressed. With one more line it is still a member.
const PIECE_BYTES: usize = 512 << 10;
/// Pieces compressed side by side.
const PIECES: usize = 8;
/// Rows read at a time, at most: as many entries or private documents of the largest size are 34 MB.
const PAGE: usize = 512;
/// Bytes that a page should have, going by the rows of the one before it.
const PAGE_BYTES: usize = 4 << 20;
/// Chosen by measurement: higher levels save few bytes, because most are hashes.
const LEVEL: Compression = Compression::new(2);

/// Lines that belong together, and what they count.
#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
    lines: u64,
}

/// What the reading thread hands over.
enum Piece {
    /// Begin this file.
    File(FileKind, u64),
    /// Lines for the file of this kind.
    Lines(FileKind, Lines),
    /// The files that are open end before this index.
    End(u64),
}

/// A file that is complete and on stable storage.
pub(super) struct Finished {
    pub(super) file: ExportFile,
    pub(super) stored: StoredFile,
    pub(super) path: PathBuf,
}

/// What is done with a finished file.
pub(super) type Take<'a> = dyn FnMut(Finished) -> Result<(), ExportError> + Send + 'a;

/// One range of a chain on its way into files of `dir`.
pub(super) struct ChainExport<'a> {
    pub(super) store: &'a dyn Store,
    /// What it covers; the counts are made here.
    pub(super) range: ChainRange,
    pub(super) gzip: bool,
    pub(super) withhold_private: bool,
    pub(super) dir: &'a Path,
}

impl ChainExport<'_> {
    /// Writes the files and hands over each, in order of their end.
    pub(super) fn write(&self, take: &mut Take<'_>) -> Result<ChainRange, ExportError> {
        let (sender, receiver) = sync_channel(2 * PIECES);
        std::thread::scope(|scope| {
            let reading = scope.spawn(move || self.read(&sender));
            let written = self.write_files(&receiver, take);
            // A reader that waits for somebody to take its pieces must not wait forever.
            drop(receiver);
            let range = reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            // Where the writing failed, the reader only knows that nobody listens.
            written?;
            Ok(range?)
        })
    }

    /// Reads the chain and prints its lines.
    fn read(&self, out: &SyncSender<Piece>) -> Result<ChainRange, StoreError> {
        let mut range = self.range.clone();
        let ChainRange { chain, from, to, .. } = range;
        let store = self.store;
        let mut commits = Pages::new(from, PAGE, |from, rows| store.commits(chain, from, rows));
        let mut entries = Pages::new(from, PAGE, |from, rows| store.entries(chain, from, rows));
        // One of the size where the range begins stands after the entry before it.
        let mut checkpoints = Pages::new(from + 1, PAGE, |size, rows| store.checkpoints(chain, size, rows));
        let mut private = Pages::new(from, PAGE, |from, rows| store.private_documents(chain, from, rows));
        let damaged =
            |what: &str, index: u64| StoreError::Corrupt(format!("chain {chain}: {what} {index}; verify the ledger"));
        let (mut lines, mut documents) = (Lines::default(), Lines::default());
        let (mut file_from, mut private_open) = (from, false);
        // Nobody listens any more: whoever stopped says why.
        let send = |piece| out.send(piece).map_err(|_| StoreError::Unavailable("the export was given up".into()));
        let flush = |kind, lines: &mut Lines, bytes_min| {
            if lines.bytes.len() > bytes_min { send(Piece::Lines(kind, std::mem::take(lines))) } else { Ok(()) }
        };
        if from == to {
            return Ok(range);
        }
        send(Piece::File(FileKind::Entries, from))?;
        let mut at = from;
        while at < to {
            let commit = commits.next()?.filter(|c| c.first_index == at && c.size > 0 && c.size <= to - at);
            let commit = commit.ok_or_else(|| damaged("there is no commit of entry", at))?;
            if at - file_from >= FILE_ENTRIES {
                flush(FileKind::Entries, &mut lines, 0)?;
                flush(FileKind::Private, &mut documents, 0)?;
                send(Piece::End(at))?;
                send(Piece::File(FileKind::Entries, at))?;
                (file_from, private_open) = (at, false);
            }
            let end = at + commit.size;
            let line = CommitLine {
                chain,
                first_index: at,
                size: commit.size,
                registry_size: commit.registry_size,
                registry_head: commit.registry_head,
                signatures: commit.signatures,
            };
            line.write(&mut lines.bytes);
            lines.lines += 1;
            for index in at..end {
                let entry = entries.next()?.filter(|e| e.header.index == index);
                let entry = entry.ok_or_else(|| damaged("there is no entry", index))?;
                write_entry(&mut lines.bytes, &entry.header, &entry.entry_hash, entry.parent_index, &entry.body);
                lines.lines += 1;
                flush(FileKind::Entries, &mut lines, PIECE_BYTES)?;
            }
            while let Some(row) = checkpoints.next_if(|row| row.size <= end)? {
                // One that is recorded and not signed yet says nothing.
                let Some(note) = row.note else { continue };
                CheckpointLine { chain, size: row.size, root: row.root, note }.write(&mut lines.bytes);
                lines.lines += 1;
                range.checkpoints += 1;
            }
            while !self.withhold_private
                && let Some((index, document)) = private.next_if(|d| d.0 < end)?
            {
                if !private_open {
                    send(Piece::File(FileKind::Private, file_from))?;
                    private_open = true;
                }
                PrivateLine { chain, index, document: &document }.write(&mut documents.bytes);
                documents.lines += 1;
                flush(FileKind::Private, &mut documents, PIECE_BYTES)?;
            }
            range.commits += 1;
            at = end;
        }
        flush(FileKind::Entries, &mut lines, 0)?;
        flush(FileKind::Private, &mut documents, 0)?;
        send(Piece::End(to))?;
        Ok(range)
    }

    /// Takes pieces and compresses several at once, while another thread hashes and writes those before them.
    fn write_files(&self, pieces: &Receiver<Piece>, take: &mut Take<'_>) -> Result<(), ExportError> {
        let (sender, packed) = sync_channel(1);
        std::thread::scope(|scope| {
            let putting = scope.spawn(move || self.put_all(&packed, take));
            let compressed = self.compress(pieces, &sender);
            drop(sender);
            // Where the writing failed, compressing only knows that nobody listens.
            putting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            compressed
        })
    }

    fn compress(&self, pieces: &Receiver<Piece>, out: &SyncSender<Vec<Packed>>) -> Result<(), ExportError> {
        loop {
            let batch: Vec<Piece> = pieces.iter().take(PIECES).collect();
            if batch.is_empty() {
                return Ok(());
            }
            let pack = |piece| match piece {
                Piece::Lines(_, Lines { ref bytes, .. }) if self.gzip => Ok((Some(member(bytes)?), piece)),
                piece => Ok((None, piece)),
            };
            let packed: std::io::Result<Vec<Packed>> = batch.into_par_iter().map(pack).collect();
            if out.send(packed.map_err(|e| ExportError::Io(self.dir.to_owned(), e))?).is_err() {
                return Ok(());
            }
        }
    }

    fn put_all(&self, packed: &Receiver<Vec<Packed>>, take: &mut Take<'_>) -> Result<(), ExportError> {
        let fail = |e| ExportError::Io(self.dir.to_owned(), e);
        let mut open: Vec<OpenFile> = Vec::new();
        for (packed, piece) in packed.iter().flatten() {
            match piece {
                Piece::File(kind, from) => {
                    let file = OpenFile::create(self.dir, kind, self.range.chain, from, self.gzip);
                    open.push(file.map_err(fail)?);
                }
                Piece::Lines(kind, lines) => {
                    let file = open.iter_mut().find(|f| f.file.kind == kind);
                    file.map_or(Ok(()), |f| f.put(&lines, packed.as_deref())).map_err(fail)?;
                }
                Piece::End(to) => {
                    for file in open.drain(..) {
                        take(file.finish(to).map_err(fail)?)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// A piece, and its lines compressed if they are.
type Packed = (Option<Vec<u8>>, Piece);

/// A file that is being written.
struct OpenFile {
    out: BufWriter<File>,
    path: PathBuf,
    file: ExportFile,
    blake3: blake3::Hasher,
    sha256: Sha256,
    /// Of the bytes as they are stored, and how many.
    stored: (Sha256, u64),
}

impl OpenFile {
    fn create(dir: &Path, kind: FileKind, chain: u32, from: u64, gzip: bool) -> std::io::Result<OpenFile> {
        let name = ExportFile::name_of(kind, chain, from, gzip);
        let path = dir.join(&name);
        let mut options = File::options();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        if kind == FileKind::Private {
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        }
        let out = BufWriter::new(options.open(&path)?);
        let (lines, bytes, none) = (0, 0, Hash::ZERO);
        let file = ExportFile { name, kind, chain, from, to: from, lines, bytes, blake3: none, sha256: none };
        let (blake3, sha256, stored) = (blake3::Hasher::new(), Sha256::new(), (Sha256::new(), 0));
        Ok(OpenFile { out, path, file, blake3, sha256, stored })
    }

    fn put(&mut self, lines: &Lines, packed: Option<&[u8]>) -> std::io::Result<()> {
        self.blake3.update(&lines.bytes);
        self.sha256.update(&lines.bytes);
        self.file.lines += lines.lines;
        self.file.bytes += lines.bytes.len() as u64;
        // What is not compressed has its digest already.
        if let Some(packed) = packed {
            self.stored.0.update(packed);
            self.stored.1 += packed.len() as u64;
        }
        self.out.write_all(packed.unwrap_or(&lines.bytes))
    }

    fn finish(mut self, to: u64) -> std::io::Result<Finished> {
        self.out.flush()?;
        self.out.get_ref().sync_all()?;
        self.file.to = to;
        self.file.blake3 = Hash(*self.blake3.finalize().as_bytes());
        self.file.sha256 = Hash(self.sha256.finalize().into());
        let (sha256, bytes) = match self.file.is_gzip() {
            true => (Hash(self.stored.0.finalize().into()), self.stored.1),
            false => (self.file.sha256, self.file.bytes),
        };
        let stored = StoredFile { name: self.file.name.clone(), bytes, sha256, version: None };
        Ok(Finished { file: self.file, stored, path: self.path })
    }
}

/// One gzip member (RFC 1952) that says how long it is.
fn member(plain: &[u8]) -> std::io::Result<Vec<u8>> {
    debug_assert!(plain.len() <= MEMBER_PLAIN_BYTES_MAX, "a piece and a line are less than a member");
    let mut deflated = Vec::with_capacity(plain.len() / 2 + 1024);
    let mut compress = Compress::new(LEVEL, false);
    loop {
        let consumed = compress.total_in() as usize;
        match compress.compress_vec(&plain[consumed..], &mut deflated, FlushCompress::Finish) {
            Ok(Status::StreamEnd) => break,
            Ok(_) => deflated.reserve(deflated.capacity().max(1024)),
            Err(e) => return Err(std::io::Error::other(e)),
        }
    }
    let header = member_header(deflated.len()).ok_or_else(|| std::io::Error::other("a member over 4 GiB"))?;
    let mut crc = Crc::new();
    crc.update(plain);
    let mut out = Vec::with_capacity(header.len() + deflated.len() + 8);
    out.extend_from_slice(&header);
    out.extend_from_slice(&deflated);
    out.extend_from_slice(&crc.sum().to_le_bytes());
    out.extend_from_slice(&(plain.len() as u32).to_le_bytes());
    Ok(out)
}

/// A row of a page.
trait Paged {
    /// What pages are ordered by.
    fn key(&self) -> u64;
    /// Bytes of what has no fixed size in it.
    fn weight(&self) -> usize;
}

impl Paged for Entry {
    fn key(&self) -> u64 {
        self.header.index
    }
    fn weight(&self) -> usize {
        self.body.len()
    }
}

impl Paged for StoredCommit {
    fn key(&self) -> u64 {
        self.first_index
    }
    fn weight(&self) -> usize {
        self.signatures.iter().map(|s| s.signature.len()).sum()
    }
}

impl Paged for CheckpointRow {
    fn key(&self) -> u64 {
        self.size
    }
    fn weight(&self) -> usize {
        self.note.as_ref().map_or(0, |note| note.len())
    }
}

impl Paged for (u64, Vec<u8>) {
    fn key(&self) -> u64 {
        self.0
    }
    fn weight(&self) -> usize {
        self.1.len()
    }
}

/// Rows read page by page, one by one. Few rows are read at a time where they are large.
struct Pages<T, F> {
    read: F,
    page: std::vec::IntoIter<T>,
    /// Rows of the next page, and of any.
    rows: usize,
    rows_max: usize,
    /// Key from which the next page is read; `None`: there is none.
    next: Option<u64>,
}

impl<T: Paged, F: FnMut(u64, usize) -> Result<Vec<T>, StoreError>> Pages<T, F> {
    fn new(from: u64, rows_max: usize, read: F) -> Self {
        Pages { read, page: Vec::new().into_iter(), rows: rows_max, rows_max, next: Some(from) }
    }

    fn peek(&mut self) -> Result<Option<&T>, StoreError> {
        if self.page.len() == 0
            && let Some(from) = self.next
        {
            let page = (self.read)(from, self.rows)?;
            self.next = page.last().map(|row| row.key() + 1);
            let mean = page.iter().map(Paged::weight).sum::<usize>() / page.len().max(1);
            self.rows = (PAGE_BYTES / mean.max(1)).clamp(1, self.rows_max);
            self.page = page.into_iter();
        }
        Ok(self.page.as_slice().first())
    }

    fn next(&mut self) -> Result<Option<T>, StoreError> {
        self.next_if(|_| true)
    }

    fn next_if(&mut self, wanted: impl FnOnce(&T) -> bool) -> Result<Option<T>, StoreError> {
        let take = self.peek()?.is_some_and(wanted);
        Ok(if take { self.page.next() } else { None })
    }
}
