//! Writes an export: whole commits of every chain as lines, in files with a manifest (FORMAT.md 13).
//!
//! An export is made beside its directory and renamed when it is complete and on stable storage, so a directory with a
//! manifest is a whole export. Memory is bounded: one thread reads rows and prints lines, the others compress.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use flate2::{Compress, Compression, Crc, FlushCompress, Status};
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use crate::export::{
    ChainRange, CheckpointLine, CommitLine, ExportFile, FileKind, MANIFEST_NAME, MEMBER_PLAIN_BYTES_MAX, Manifest,
    PrivateLine, member_header, write_entry,
};
use crate::genesis::Genesis;
use crate::hash::Hash;
use crate::store::{ChainHead, CheckpointRow, Entry, Store, StoreError, StoredCommit};

/// Entries after which a chain goes on in another file.
const FILE_ENTRIES: u64 = 1 << 20;
/// Bytes of lines after which a piece is compressed. With one more line it is still a member.
const PIECE_BYTES: usize = 512 << 10;
/// Pieces compressed side by side.
const PIECES: usize = 8;
/// Rows read at a time.
const PAGE: usize = 4096;
/// Chosen by measurement: higher levels save few bytes, because most are hashes.
const LEVEL: Compression = Compression::new(2);

/// How to export.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// Compress the files.
    pub gzip: bool,
    /// Leave private documents out.
    pub withhold_private: bool,
    /// When the export is made, microseconds since the Unix epoch.
    pub exported_at_us: i64,
    /// What the manifest names as the program.
    pub tool: String,
}

/// Why there is no export.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The ledger cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The export cannot be written.
    #[error("{0}: {1}; nothing was exported, check the path and the free space")]
    Io(PathBuf, #[source] std::io::Error),
    /// There is something already.
    #[error("{0} exists already; an export is never written over, name another directory")]
    Exists(PathBuf),
}

/// Exports all chains as they are now into the new directory `to`.
pub fn export_to_directory(
    store: &dyn Store,
    genesis: &Genesis,
    ledger_id: Hash,
    options: &ExportOptions,
    to: &Path,
) -> Result<Manifest, ExportError> {
    if to.exists() {
        return Err(ExportError::Exists(to.to_owned()));
    }
    let parent = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = to.file_name().unwrap_or_default().to_string_lossy().into_owned();
    fs::create_dir_all(parent).map_err(|e| ExportError::Io(parent.to_owned(), e))?;
    let building = tempfile::Builder::new().prefix(&format!(".{name}-")).tempdir_in(parent);
    let building = building.map_err(|e| ExportError::Io(parent.to_owned(), e))?;
    let heads = store.heads()?;
    let mut manifest = Manifest {
        ledger_id,
        origin: genesis.origin.clone(),
        exported_at_us: options.exported_at_us,
        tool: options.tool.clone(),
        private_withheld: options.withhold_private,
        chains: Vec::new(),
        files: Vec::new(),
    };
    for head in &heads {
        let mut export = ChainExport { store, head, options, dir: building.path() };
        let (range, files) = export.write()?;
        manifest.chains.push(range);
        manifest.files.extend(files);
    }
    let write = || -> std::io::Result<()> {
        let path = building.path().join(MANIFEST_NAME);
        let mut file = File::create(path)?;
        file.write_all(&manifest.encode())?;
        file.sync_all()?;
        File::open(building.path())?.sync_all()
    };
    write().map_err(|e| ExportError::Io(to.to_owned(), e))?;
    let made = building.keep();
    let rename = || -> std::io::Result<()> {
        fs::rename(&made, to)?;
        File::open(parent)?.sync_all()
    };
    rename().map_err(|e| {
        // The error that matters is the first one.
        let _ = fs::remove_dir_all(&made);
        ExportError::Io(to.to_owned(), e)
    })?;
    Ok(manifest)
}

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

struct ChainExport<'a> {
    store: &'a dyn Store,
    head: &'a ChainHead,
    options: &'a ExportOptions,
    dir: &'a Path,
}

impl ChainExport<'_> {
    fn write(&mut self) -> Result<(ChainRange, Vec<ExportFile>), ExportError> {
        let (sender, receiver) = sync_channel(2 * PIECES);
        std::thread::scope(|scope| {
            let this = &*self;
            let reading = scope.spawn(move || this.read(&sender));
            let written = this.write_files(&receiver);
            // A reader that waits for somebody to take its pieces must not wait forever.
            drop(receiver);
            let range = reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            // Where the writing failed, the reader only knows that nobody listens.
            let files = written?;
            Ok((range?, files))
        })
    }

    /// Reads the chain and prints its lines.
    fn read(&self, out: &SyncSender<Piece>) -> Result<ChainRange, StoreError> {
        let (chain, to) = (self.head.chain, self.head.size());
        let mut commits = Pages::new(|from| self.store.commits(chain, from, PAGE), |c: &StoredCommit| c.first_index);
        let mut entries = Pages::new(|from| self.store.entries(chain, from, PAGE), |e: &Entry| e.header.index);
        let mut checkpoints = Pages::new(|size| self.store.checkpoints(chain, size, PAGE), |c: &CheckpointRow| c.size);
        let mut private = Pages::new(|from| self.store.private_documents(chain, from, PAGE), |d: &(u64, Vec<u8>)| d.0);
        let mut range = ChainRange {
            chain,
            from: 0,
            to,
            prev_hash: Hash::ZERO,
            last_hash: self.head.hash,
            root: self.head.range.root(),
            commits: 0,
            checkpoints: 0,
        };
        let damaged =
            |what: &str, index: u64| StoreError::Corrupt(format!("chain {chain}: {what} {index}; verify the ledger"));
        let (mut lines, mut documents) = (Lines::default(), Lines::default());
        let (mut file_from, mut private_open) = (0, false);
        // Nobody listens any more: whoever stopped says why.
        let send = |piece| out.send(piece).map_err(|_| StoreError::Unavailable("the export was given up".into()));
        let flush = |kind, lines: &mut Lines, bytes_min| {
            if lines.bytes.len() > bytes_min { send(Piece::Lines(kind, std::mem::take(lines))) } else { Ok(()) }
        };
        send(Piece::File(FileKind::Entries, 0))?;
        let mut at = 0;
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
            while !self.options.withhold_private
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

    /// Takes pieces, compresses several at once, and writes them in order.
    fn write_files(&self, pieces: &Receiver<Piece>) -> Result<Vec<ExportFile>, ExportError> {
        let fail = |e| ExportError::Io(self.dir.to_owned(), e);
        let (mut open, mut files): (Vec<OpenFile>, Vec<ExportFile>) = (Vec::new(), Vec::new());
        let mut ended = false;
        while !ended {
            let mut batch = Vec::new();
            while batch.len() < PIECES {
                let Ok(piece) = pieces.recv() else {
                    ended = true;
                    break;
                };
                batch.push(piece);
            }
            let packed: Vec<Option<Vec<u8>>> = batch
                .par_iter()
                .map(|piece| match piece {
                    Piece::Lines(_, lines) if self.options.gzip => member(&lines.bytes).map(Some),
                    _ => Ok(None),
                })
                .collect::<std::io::Result<_>>()
                .map_err(fail)?;
            for (piece, packed) in batch.into_iter().zip(packed) {
                match piece {
                    Piece::File(kind, from) => {
                        let file = OpenFile::create(self.dir, kind, self.head.chain, from, self.options.gzip);
                        open.push(file.map_err(fail)?);
                    }
                    Piece::Lines(kind, lines) => {
                        let file = open.iter_mut().find(|f| f.file.kind == kind);
                        file.map_or(Ok(()), |f| f.put(&lines, packed.as_deref())).map_err(fail)?;
                    }
                    Piece::End(to) => {
                        for file in open.drain(..) {
                            files.push(file.finish(to).map_err(fail)?);
                        }
                    }
                }
            }
        }
        files.sort_by_key(|f| (f.kind, f.from));
        Ok(files)
    }
}

/// A file that is being written.
struct OpenFile {
    out: BufWriter<File>,
    file: ExportFile,
    blake3: blake3::Hasher,
    sha256: Sha256,
}

impl OpenFile {
    fn create(dir: &Path, kind: FileKind, chain: u32, from: u64, gzip: bool) -> std::io::Result<OpenFile> {
        let name = ExportFile::name_of(kind, chain, from, gzip);
        let out = BufWriter::new(File::create(dir.join(&name))?);
        let (lines, bytes, none) = (0, 0, Hash::ZERO);
        let file = ExportFile { name, kind, chain, from, to: from, lines, bytes, blake3: none, sha256: none };
        Ok(OpenFile { out, file, blake3: blake3::Hasher::new(), sha256: Sha256::new() })
    }

    fn put(&mut self, lines: &Lines, packed: Option<&[u8]>) -> std::io::Result<()> {
        self.blake3.update(&lines.bytes);
        self.sha256.update(&lines.bytes);
        self.file.lines += lines.lines;
        self.file.bytes += lines.bytes.len() as u64;
        self.out.write_all(packed.unwrap_or(&lines.bytes))
    }

    fn finish(mut self, to: u64) -> std::io::Result<ExportFile> {
        self.out.flush()?;
        self.out.get_ref().sync_all()?;
        self.file.to = to;
        self.file.blake3 = Hash(*self.blake3.finalize().as_bytes());
        self.file.sha256 = Hash(self.sha256.finalize().into());
        Ok(self.file)
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

/// Rows read page by page, one by one.
struct Pages<T, F: FnMut(u64) -> Result<Vec<T>, StoreError>, K: Fn(&T) -> u64> {
    read: F,
    key: K,
    page: std::vec::IntoIter<T>,
    /// Key from which the next page is read; `None`: there is none.
    next: Option<u64>,
}

impl<T, F: FnMut(u64) -> Result<Vec<T>, StoreError>, K: Fn(&T) -> u64> Pages<T, F, K> {
    fn new(read: F, key: K) -> Self {
        Pages { read, key, page: Vec::new().into_iter(), next: Some(0) }
    }

    fn peek(&mut self) -> Result<Option<&T>, StoreError> {
        if self.page.len() == 0
            && let Some(from) = self.next
        {
            let page = (self.read)(from)?;
            self.next = page.last().map(|row| (self.key)(row) + 1);
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
