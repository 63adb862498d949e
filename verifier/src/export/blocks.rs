//! The bytes of an export's files, in pieces of whole lines that can be worked on side by side.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use flate2::{Crc, Decompress, FlushDecompress, Status};
use ledger_engine::export::{
    LINE_BYTES_MAX, MEMBER_HEADER_BYTES, MEMBER_PLAIN_BYTES_MAX, MEMBER_TRAILER_BYTES, member_len,
};

/// Bytes of lines that are handed over at once.
const BLOCK_BYTES: usize = 512 << 10;
/// Longest member that is read: deflate adds little to what it cannot compress.
const MEMBER_BYTES_MAX: usize = MEMBER_PLAIN_BYTES_MAX + (64 << 10);

/// Whole lines, or the gzip member that holds them.
pub(super) enum Block {
    Lines(Vec<u8>),
    Member(Vec<u8>),
}

impl Block {
    /// The lines. `Err` says what is wrong with the member.
    pub(super) fn into_lines(self) -> Result<Vec<u8>, String> {
        let lines = match self {
            Block::Lines(lines) => lines,
            Block::Member(member) => inflate(&member)?,
        };
        if lines.last().is_none_or(|b| *b == b'\n') {
            Ok(lines)
        } else {
            Err("a gzip member ends within a line".to_owned())
        }
    }
}

fn inflate(member: &[u8]) -> Result<Vec<u8>, String> {
    let deflated = &member[MEMBER_HEADER_BYTES..member.len() - MEMBER_TRAILER_BYTES];
    let trailer = &member[member.len() - MEMBER_TRAILER_BYTES..];
    let word = |at: usize| trailer[at..at + 4].iter().rev().fold(0u32, |n, b| n << 8 | u32::from(*b));
    let (sum, len) = (word(0), word(4) as usize);
    if len > MEMBER_PLAIN_BYTES_MAX {
        return Err(format!("a gzip member of {len} bytes, over the limit of {MEMBER_PLAIN_BYTES_MAX}"));
    }
    // One byte more than it says, to see whether it has more.
    let mut plain = Vec::with_capacity(len + 1);
    let mut inflater = Decompress::new(false);
    let status = inflater.decompress_vec(deflated, &mut plain, FlushDecompress::Finish);
    let mut crc = Crc::new();
    crc.update(&plain);
    let whole = matches!(status, Ok(Status::StreamEnd)) && inflater.total_in() == deflated.len() as u64;
    if whole && plain.len() == len && crc.sum() == sum {
        Ok(plain)
    } else {
        Err("a gzip member is damaged: its data, length or CRC-32 do not fit".to_owned())
    }
}

/// A file's blocks in order.
pub(super) enum Blocks {
    /// Plain bytes, from the file itself or inflated one after another; lines that are not whole yet.
    Stream(Box<dyn Read + Send>, Vec<u8>),
    /// Members that say how long they are.
    Members(BufReader<File>),
}

impl Blocks {
    /// Opens a file, which is compressed if its name says so.
    pub(super) fn open(path: &Path) -> io::Result<Blocks> {
        let mut file = crate::bounded::open(path)?;
        if path.extension().is_none_or(|e| e != "gz") {
            return Ok(Blocks::Stream(Box::new(file), Vec::new()));
        }
        let mut header = [0; MEMBER_HEADER_BYTES];
        let members = read_up_to(&mut file, &mut header)? == header.len() && member_len(&header).is_some();
        file.rewind()?;
        let file = BufReader::with_capacity(1 << 20, file);
        // Somebody may have compressed it again in another way; its lines are the same.
        Ok(if members {
            Blocks::Members(file)
        } else {
            Blocks::Stream(Box::new(MultiGzDecoder::new(file)), Vec::new())
        })
    }

    /// The next block, `None` at the end; `spare` is a buffer that may be used for it. An error of kind `InvalidData` or `UnexpectedEof` is a fault of the file.
    pub(super) fn next(&mut self, spare: Vec<u8>) -> io::Result<Option<Block>> {
        let fault = |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        match self {
            Blocks::Stream(input, rest) => {
                let mut block = spare;
                block.clear();
                block.reserve(rest.len() + BLOCK_BYTES + 1);
                block.append(rest);
                loop {
                    let got = input.by_ref().take(BLOCK_BYTES as u64).read_to_end(&mut block)?;
                    if got == 0 && block.is_empty() {
                        return Ok(None);
                    }
                    if let Some(end) = memchr::memrchr(b'\n', &block) {
                        *rest = block.split_off(end + 1);
                        return Ok(Some(Block::Lines(block)));
                    }
                    if got == 0 {
                        return fault("the file ends within a line".to_owned());
                    }
                    if block.len() > LINE_BYTES_MAX {
                        return fault(format!("a line of more than {LINE_BYTES_MAX} bytes"));
                    }
                }
            }
            Blocks::Members(input) => {
                let mut member = vec![0; MEMBER_HEADER_BYTES];
                match read_up_to(input, &mut member)? {
                    0 => return Ok(None),
                    MEMBER_HEADER_BYTES => {}
                    _ => return fault("the file ends within a gzip member".to_owned()),
                }
                let header: &[u8; MEMBER_HEADER_BYTES] =
                    member.as_slice().try_into().unwrap_or(&[0; MEMBER_HEADER_BYTES]);
                let Some(len) = member_len(header) else {
                    // From here on somebody compressed it in another way.
                    input.seek_relative(-(MEMBER_HEADER_BYTES as i64))?;
                    let nothing = Blocks::Stream(Box::new(io::empty()), Vec::new());
                    if let Blocks::Members(rest) = std::mem::replace(self, nothing) {
                        *self = Blocks::Stream(Box::new(MultiGzDecoder::new(rest)), Vec::new());
                    }
                    return self.next(spare);
                };
                if len > MEMBER_BYTES_MAX {
                    return fault(format!("a gzip member of {len} bytes, over the limit of {MEMBER_BYTES_MAX}"));
                }
                member.resize(len, 0);
                if read_up_to(input, &mut member[MEMBER_HEADER_BYTES..])? + MEMBER_HEADER_BYTES < len {
                    return fault("the file ends within a gzip member".to_owned());
                }
                Ok(Some(Block::Member(member)))
            }
        }
    }
}

/// Fills `out` as far as the input goes.
fn read_up_to(input: &mut impl Read, out: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < out.len() {
        match input.read(&mut out[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}
