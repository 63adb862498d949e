//! Records of one length in a temporary file: appended in order, then read by number or from the beginning on.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;

use super::Trouble;

/// Bytes that wait to be written.
const BUFFER: usize = 1 << 18;
/// Bytes that a [`Forward`] reads at a time.
const AHEAD: usize = 1 << 16;

/// Records of `N` bytes that begin with a number, little-endian, which never decreases.
#[derive(Debug, Default)]
pub(crate) struct Log<const N: usize> {
    file: Option<File>,
    buffer: Vec<u8>,
    /// Bytes in the file.
    flushed: u64,
    trouble: Trouble,
}

impl<const N: usize> Log<N> {
    pub(crate) fn new(trouble: &Trouble) -> Self {
        Log { file: None, buffer: Vec::new(), flushed: 0, trouble: trouble.clone() }
    }

    /// How many records.
    pub(crate) fn len(&self) -> u64 {
        (self.flushed + self.buffer.len() as u64) / N as u64
    }

    /// Appends a record.
    pub(crate) fn push(&mut self, record: &[u8; N]) {
        self.buffer.extend_from_slice(record);
        if self.buffer.len() >= BUFFER
            && let Err(e) = self.flush()
        {
            self.trouble.note(e);
            self.buffer.clear();
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(tempfile::tempfile()?),
        };
        file.write_all(&self.buffer)?;
        self.flushed += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// `count` records from a place on, or as many as there are.
    pub(crate) fn read(&self, from: u64, count: u64) -> Vec<[u8; N]> {
        self.trouble.or_default(self.try_read(from, count))
    }

    fn try_read(&self, from: u64, count: u64) -> io::Result<Vec<[u8; N]>> {
        let count = count.min(self.len().saturating_sub(from)) as usize;
        let mut records = vec![[0; N]; count];
        let (at, bytes) = (from * N as u64, records.as_flattened_mut());
        let in_file = usize::try_from(self.flushed.saturating_sub(at)).unwrap_or(usize::MAX).min(bytes.len());
        let (stored, waiting) = bytes.split_at_mut(in_file);
        if let Some(file) = self.file.as_ref().filter(|_| in_file > 0) {
            file.read_exact_at(stored, at)?;
        }
        let from = at.saturating_sub(self.flushed) as usize;
        waiting.copy_from_slice(&self.buffer[from..from + waiting.len()]);
        Ok(records)
    }

    /// Place of the first record whose number is at least `number`.
    fn place(&self, number: u64) -> u64 {
        let at = |place: u64| self.read(place, 1).first().map_or(u64::MAX, number_of);
        // Where no number is missing or repeated, it is its own place.
        if number < self.len() && at(number) == number && (number == 0 || at(number - 1) < number) {
            return number;
        }
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if at(middle) < number { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// The record of a number.
    pub(crate) fn at(&self, number: u64) -> Option<[u8; N]> {
        self.read(self.place(number), 1).pop().filter(|record| number_of(record) == number)
    }

    /// Records with numbers of a range. No number may be there twice.
    pub(crate) fn span(&self, numbers: std::ops::Range<u64>) -> Vec<[u8; N]> {
        let mut records = self.read(self.place(numbers.start), numbers.end.saturating_sub(numbers.start));
        records.retain(|record| number_of(record) < numbers.end);
        records
    }

    /// Reads forward from the beginning.
    pub(crate) fn forward(&self) -> Forward<'_, N> {
        Forward { log: self, next: 0, block: Vec::new().into_iter() }
    }
}

/// The number that a record begins with.
fn number_of<const N: usize>(record: &[u8; N]) -> u64 {
    record.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Reads a log forward.
pub(crate) struct Forward<'a, const N: usize> {
    log: &'a Log<N>,
    /// Place after the block.
    next: u64,
    block: std::vec::IntoIter<[u8; N]>,
}

impl<const N: usize> Forward<'_, N> {
    /// The next record, which stays.
    pub(crate) fn peek(&mut self) -> Option<&[u8; N]> {
        if self.block.as_slice().is_empty() {
            let block = self.log.read(self.next, (AHEAD / N) as u64);
            self.next += block.len() as u64;
            self.block = block.into_iter();
        }
        self.block.as_slice().first()
    }

    /// The first record of this number, which stays. Passes over all smaller ones.
    pub(crate) fn at(&mut self, number: u64) -> Option<[u8; N]> {
        while let Some(record) = self.peek() {
            let found = number_of(record);
            if found >= number {
                return (found == number).then_some(*record);
            }
            self.block.next();
        }
        None
    }
}

impl<const N: usize> Iterator for Forward<'_, N> {
    type Item = [u8; N];

    fn next(&mut self) -> Option<[u8; N]> {
        self.peek()?;
        self.block.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_back_what_it_took_from_memory_and_from_the_file() {
        for count in [0u64, 1, 1000, 50_000] {
            let trouble = Trouble::default();
            let mut log = Log::<16>::new(&trouble);
            // Every third number is missing.
            let numbers = || (0..count).map(|n| n + n / 2);
            for number in numbers() {
                let mut record = [7; 16];
                record[..8].copy_from_slice(&number.to_le_bytes());
                log.push(&record);
            }
            assert_eq!((log.len(), log.file.is_some()), (count, count == 50_000));
            let mut forward = log.forward();
            for number in 0..2 * count {
                let there = number < count + count / 2 && number % 3 != 2;
                assert_eq!(forward.at(number).map(|r| number_of(&r)), there.then_some(number), "{number}");
            }
            assert!(log.forward().map(|r| number_of(&r)).eq(numbers()));
            for from in [0, 1, 2, 16_382, 16_384, 60_000] {
                let found: Vec<u64> = log.span(from..from + 10).iter().map(number_of).collect();
                let wanted: Vec<u64> = numbers().filter(|n| (from..from + 10).contains(n)).collect();
                assert_eq!(found, wanted, "{from}");
                assert_eq!(log.at(from).map(|r| number_of(&r)), wanted.first().copied().filter(|n| *n == from));
            }
            assert!(trouble.check().is_ok());
        }
    }
}
