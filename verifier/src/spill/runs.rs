//! Sorted runs and spools in unnamed temporary files.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};

use rayon::slice::ParallelSliceMut;
use tempfile::SpooledTempFile;

/// Memory of one sorter, and so the length of a run. Bytes.
const RUN_BYTES: usize = 24 << 20;
/// Records from which on a sorter takes its memory at once.
const GROWN: usize = 1 << 14;
/// A spool stays in memory up to this. Bytes.
const SPOOL_BYTES: usize = 2 << 20;
/// Texts between two remembered offsets, which are read together.
const STRIDE: u64 = 32;
/// Strides of texts that are kept: what is asked for by turns lies in few places.
const STRIDES_KEPT: usize = 4;

/// Sorts records of `N` bytes, as byte strings, in bounded memory.
pub(crate) struct Sorter<const N: usize> {
    records: Vec<[u8; N]>,
    runs: Vec<File>,
    run_len: usize,
}

impl<const N: usize> Sorter<N> {
    pub(crate) fn new() -> Self {
        Self::with_run_len(RUN_BYTES / N)
    }

    /// With a shorter run.
    pub(crate) fn with_run_len(run_len: usize) -> Self {
        Sorter { records: Vec::new(), runs: Vec::new(), run_len }
    }

    pub(crate) fn push(&mut self, record: [u8; N]) -> io::Result<()> {
        if self.records.len() == self.run_len {
            self.spill()?;
        }
        if self.records.len() == self.records.capacity() && self.records.len() >= GROWN {
            // To double would take more than a run, and the half of it twice while it is copied.
            self.records.reserve_exact(self.run_len - self.records.len());
        }
        self.records.push(record);
        Ok(())
    }

    fn spill(&mut self) -> io::Result<()> {
        self.records.par_sort_unstable();
        let mut out = BufWriter::with_capacity(1 << 18, tempfile::tempfile()?);
        for record in &self.records {
            out.write_all(record)?;
        }
        let mut file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        self.runs.push(file);
        self.records.clear();
        Ok(())
    }

    /// All records in order.
    pub(crate) fn sorted(mut self) -> io::Result<Sorted<N>> {
        if self.runs.is_empty() {
            self.records.par_sort_unstable();
            return Ok(Sorted { memory: self.records.into_iter(), runs: Vec::new(), heads: BinaryHeap::new() });
        }
        self.spill()?;
        self.records = Vec::new();
        let mut runs: Vec<_> = self.runs.into_iter().map(|f| BufReader::with_capacity(1 << 16, f)).collect();
        let mut heads = BinaryHeap::with_capacity(runs.len());
        for (at, run) in runs.iter_mut().enumerate() {
            if let Some(record) = next_record(run)? {
                heads.push(Reverse((record, at)));
            }
        }
        Ok(Sorted { memory: Vec::new().into_iter(), runs, heads })
    }
}

fn next_record<const N: usize>(run: &mut BufReader<File>) -> io::Result<Option<[u8; N]>> {
    if run.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let mut record = [0; N];
    run.read_exact(&mut record)?;
    Ok(Some(record))
}

/// Records in order.
pub(crate) struct Sorted<const N: usize> {
    memory: std::vec::IntoIter<[u8; N]>,
    runs: Vec<BufReader<File>>,
    heads: BinaryHeap<Reverse<([u8; N], usize)>>,
}

impl<const N: usize> Sorted<N> {
    pub(crate) fn next(&mut self) -> io::Result<Option<[u8; N]>> {
        if self.runs.is_empty() {
            return Ok(self.memory.next());
        }
        let Some(Reverse((record, at))) = self.heads.pop() else { return Ok(None) };
        if let Some(following) = next_record(&mut self.runs[at])? {
            self.heads.push(Reverse((following, at)));
        }
        Ok(Some(record))
    }
}

/// Records of `N` bytes by number.
pub(crate) struct Spool<const N: usize> {
    file: SpooledTempFile,
    buffer: Vec<u8>,
    len: u64,
}

impl<const N: usize> Spool<N> {
    pub(crate) fn new() -> Self {
        Spool { file: SpooledTempFile::new(SPOOL_BYTES), buffer: Vec::new(), len: 0 }
    }

    pub(crate) fn push(&mut self, record: &[u8; N]) -> io::Result<()> {
        self.buffer.extend_from_slice(record);
        self.len += 1;
        if self.buffer.len() >= 1 << 16 { self.flush() } else { Ok(()) }
    }

    /// To be called once after the last push.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    pub(crate) fn at(&mut self, number: u64) -> io::Result<[u8; N]> {
        let mut record = [0; N];
        self.file.seek(SeekFrom::Start(number * N as u64))?;
        self.file.read_exact(&mut record)?;
        Ok(record)
    }

    /// Gives `count` records from number `from` on, in order.
    pub(crate) fn each(
        &mut self,
        from: u64,
        count: u64,
        mut give: impl FnMut(u64, &[u8; N]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(from * N as u64))?;
        let mut buffer = vec![0; N * count.min(4096) as usize];
        let mut number = from;
        while number < from + count {
            let piece = N * (from + count - number).min(4096) as usize;
            self.file.read_exact(&mut buffer[..piece])?;
            for record in buffer[..piece].as_chunks::<N>().0 {
                give(number, record)?;
                number += 1;
            }
        }
        Ok(())
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }
}

/// Texts by number, with an offset remembered now and then.
pub(crate) struct Texts {
    file: SpooledTempFile,
    buffer: Vec<u8>,
    offsets: Vec<u64>,
    written: u64,
    len: u64,
    /// Strides that were asked for, the last ones.
    kept: VecDeque<(u64, Vec<String>)>,
}

impl Texts {
    pub(crate) fn new() -> Self {
        Texts {
            file: SpooledTempFile::new(SPOOL_BYTES),
            buffer: Vec::new(),
            offsets: Vec::new(),
            written: 0,
            len: 0,
            kept: VecDeque::new(),
        }
    }

    /// Texts are below 64 KiB.
    pub(crate) fn push(&mut self, text: &str) -> io::Result<()> {
        if self.len.is_multiple_of(STRIDE) {
            self.offsets.push(self.written + self.buffer.len() as u64);
        }
        let length = u16::try_from(text.len()).map_err(|_| io::Error::other("a text of 64 KiB or more"))?;
        self.buffer.extend_from_slice(&length.to_le_bytes());
        self.buffer.extend_from_slice(text.as_bytes());
        self.len += 1;
        if self.buffer.len() >= 1 << 16 { self.flush() } else { Ok(()) }
    }

    /// To be called once after the last push.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(&self.buffer)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    pub(crate) fn at(&mut self, number: u64) -> io::Result<String> {
        let (stride, at) = (number / STRIDE, (number % STRIDE) as usize);
        if let Some((_, texts)) = self.kept.iter().find(|(kept, _)| *kept == stride) {
            return Ok(texts[at].clone());
        }
        let mut texts = Vec::with_capacity(STRIDE as usize);
        self.from(stride, STRIDE.min(self.len - stride * STRIDE), |_, text| {
            texts.push(text.to_owned());
            Ok(())
        })?;
        let found = texts[at].clone();
        self.kept.truncate(STRIDES_KEPT - 1);
        self.kept.push_front((stride, texts));
        Ok(found)
    }

    /// Gives all texts in order.
    pub(crate) fn each(&mut self, give: impl FnMut(u64, &str) -> io::Result<()>) -> io::Result<()> {
        if self.len == 0 { Ok(()) } else { self.from(0, self.len, give) }
    }

    fn from(&mut self, stride: u64, count: u64, mut give: impl FnMut(u64, &str) -> io::Result<()>) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.offsets[stride as usize]))?;
        let mut file = BufReader::new(&mut self.file);
        let mut text = Vec::new();
        for number in 0..count {
            let mut length = [0; 2];
            file.read_exact(&mut length)?;
            text.resize(usize::from(u16::from_le_bytes(length)), 0);
            file.read_exact(&mut text)?;
            give(stride * STRIDE + number, std::str::from_utf8(&text).map_err(io::Error::other)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorts_as_memory_does() {
        for (count, run_len) in [(0, 4), (1, 4), (4, 4), (5, 4), (1000, 7), (1000, 5000)] {
            let mut sorter = Sorter::<6>::with_run_len(run_len);
            let mut expected = Vec::new();
            for n in 0..count {
                let [a, b, c, d, ..] = (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
                let record = [a % 4, b, c, d, 0, 1];
                expected.push(record);
                sorter.push(record).unwrap();
            }
            expected.sort_unstable();
            let mut sorted = sorter.sorted().unwrap();
            let mut found = Vec::new();
            while let Some(record) = sorted.next().unwrap() {
                found.push(record);
            }
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn spools_give_back_what_they_took() {
        let mut spool = Spool::<8>::new();
        let mut texts = Texts::new();
        let count = 300_000;
        for n in 0_u64..count {
            spool.push(&n.to_le_bytes()).unwrap();
            texts.push(&"x".repeat((n % 17) as usize)).unwrap();
        }
        spool.flush().unwrap();
        texts.flush().unwrap();
        assert_eq!(spool.len(), count);
        for n in [0, 1, 31, 32, 33, 5_000, 0, 70_000, 90_000, 33, count - 1] {
            assert_eq!(spool.at(n).unwrap(), n.to_le_bytes());
            assert_eq!(texts.at(n).unwrap().len(), (n % 17) as usize);
        }
        let mut next = 5000_u64;
        spool
            .each(5000, 10_000, |n, record| {
                assert_eq!((n, record), (next, &next.to_le_bytes()));
                next += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!(next, 15_000);
    }
}
