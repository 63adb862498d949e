//! The short way through an export: blocks are inflated, parsed and hashed side by side and handed over in order, while
//! digests of the files run along.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};

use ledger_engine::domain::projection::Cell;
use ledger_engine::export::{EntryLine, ExportFile, Line};
use ledger_engine::hash::Hash;

use super::blocks::{Block, Blocks};
use super::{Judged, Located, rows};
use crate::prove::{Prepared, Stop, check, suspect};
use crate::row::Digests;

/// Blocks that are worked on or wait for their turn.
const BLOCKS: usize = 8;
/// Blocks' lines that wait for the judge.
const AHEAD: usize = 4;

/// What a line says.
pub(crate) enum Item {
    /// First index, its row, and rows of its signatures.
    Commit(u64, Vec<Cell>, Vec<Vec<Cell>>),
    Entry(Box<Prepared>),
    /// Size, and its row.
    Checkpoint(u64, Vec<Cell>),
    /// The line of the item before it, for whoever takes what is judged.
    Kept(Judged),
    Private(Vec<Cell>),
    /// A file ends; the chain must have this size, and its last entry this hash where a manifest says so.
    End(u64, Option<Hash>),
}

/// What is handed over at once: items, or why there are no more.
pub(crate) type Fed = Result<Vec<Item>, Stop>;

struct Parsed {
    plain: Vec<u8>,
    items: Vec<Item>,
    lines: u64,
}

/// Hands over the items of some files of one chain and kind. The last thing sent is an error, if there is one. `keep`: with the lines themselves.
pub(crate) fn feed(files: &[Located<'_>], ledger_id: Hash, keep: bool, out: &SyncSender<Fed>) {
    for located in files {
        // Lines that are kept take twice the room.
        let (sender, receiver) = sync_channel(if keep { BLOCKS / 2 } else { BLOCKS });
        let fed = std::thread::scope(|scope| {
            // Buffers go round: new ones would have to be cleared by the kernel each time.
            let (back, spare) = std::sync::mpsc::channel();
            scope.spawn(move || read(located, (ledger_id, keep), &sender, &spare));
            collect(located, receiver, &back, out)
        });
        // A closed channel: the judge has seen enough.
        if let Err(Some(stop)) = fed {
            let _ = out.send(Err(stop));
            return;
        }
        if fed.is_err() {
            return;
        }
    }
}

type Waiting = Receiver<Result<Parsed, String>>;

/// Reads blocks and has them parsed by the pool; their results are awaited in order.
fn read(located: &Located<'_>, (ledger_id, keep): (Hash, bool), out: &SyncSender<Waiting>, spare: &Receiver<Vec<u8>>) {
    let failed = |e: std::io::Error| {
        let (sender, receiver) = sync_channel(1);
        let _ = sender.send(Err(e.to_string()));
        let _ = out.send(receiver);
    };
    let file = Arc::new(located.file.clone());
    let mut blocks = match Blocks::open(&located.path) {
        Ok(blocks) => blocks,
        Err(e) => return failed(e),
    };
    loop {
        let block = match blocks.next(spare.try_recv().unwrap_or_default()) {
            Ok(Some(block)) => block,
            Ok(None) => return,
            Err(e) => return failed(e),
        };
        let (sender, receiver) = sync_channel(1);
        if out.send(receiver).is_err() {
            return;
        }
        // Nobody waits for it if the judge has stopped.
        let file = Arc::clone(&file);
        rayon::spawn(move || drop(sender.send(parse(block, &file, &ledger_id, keep))));
    }
}

fn parse(block: Block, file: &ExportFile, ledger_id: &Hash, keep: bool) -> Result<Parsed, String> {
    let plain = block.into_lines()?;
    let mut items = Vec::with_capacity(plain.len() / 512);
    let (mut from, mut lines) = (0, 0);
    for end in memchr::memchr_iter(b'\n', &plain) {
        let line = Line::parse(&plain[from..end], ledger_id).map_err(|e| e.to_string())?;
        if !rows::is_of(&line, file) {
            return Err("a line of another place".to_owned());
        }
        item(line, keep, &mut items).ok_or("an entry's own bytes")?;
        from = end + 1;
        lines += 1;
    }
    Ok(Parsed { plain, items, lines })
}

fn item(line: Line<'_>, keep: bool, out: &mut Vec<Item>) -> Option<()> {
    match line {
        Line::Entry(entry) => {
            // The stream's name is parsed with the rest.
            entry.header.check_beside_stream().ok()?;
            let EntryLine { header, entry_hash, parent_index, body } = *entry;
            let digests = Digests::of(&header, body);
            let mut prepared = Prepared::new(&header, &digests, entry_hash, parent_index, body)?;
            prepared.kept = keep.then(|| (header.owned(), body.to_vec()));
            out.push(Item::Entry(Box::new(prepared)));
        }
        Line::Commit(commit) => {
            out.push(Item::Commit(commit.first_index, rows::commit(&commit), rows::signatures(&commit)));
            out.extend(keep.then_some(Item::Kept(Judged::Commit(commit))));
        }
        Line::Checkpoint(checkpoint) => {
            out.push(Item::Checkpoint(checkpoint.size, rows::checkpoint(&checkpoint)));
            out.extend(keep.then_some(Item::Kept(Judged::Checkpoint(checkpoint))));
        }
        Line::Private(private) => out.push(Item::Private(rows::private(&private))),
    }
    Some(())
}

/// Takes parsed blocks in order. `Err(None)`: nobody wants more.
fn collect(
    located: &Located<'_>,
    blocks: Receiver<Waiting>,
    back: &Sender<Vec<u8>>,
    out: &SyncSender<Fed>,
) -> Result<(), Option<Stop>> {
    let file = located.file;
    let (mut lines, mut bytes) = (0, 0);
    let mut blake3 = blake3::Hasher::new();
    while let Ok(waiting) = blocks.recv() {
        let parsed = match waiting.recv() {
            Ok(Ok(parsed)) => parsed,
            Ok(Err(what)) => return suspect(format!("{}: {what}", file.name)).map_err(Some),
            Err(_) => return suspect("a block was lost").map_err(Some),
        };
        blake3.update(&parsed.plain);
        lines += parsed.lines;
        bytes += parsed.plain.len() as u64;
        // More than the manifest says is not read to its end.
        check(bytes <= file.bytes, "the length of a file").map_err(Some)?;
        out.send(Ok(parsed.items)).map_err(|_| None)?;
        // The reader may have come to the end of the file.
        let _ = back.send(parsed.plain);
    }
    // One digest says it; computing the manifest's SHA-256 too would take a tenth of the time.
    let same = Hash(*blake3.finalize().as_bytes()) == file.blake3 && (lines, bytes) == (file.lines, file.bytes);
    check(same, "the digest of a file").map_err(Some)?;
    out.send(Ok(vec![Item::End(file.to, located.end)])).map_err(|_| None)
}

/// A channel of [`feed`].
pub(crate) fn channel() -> (SyncSender<Fed>, Receiver<Fed>) {
    sync_channel(AHEAD)
}
