//! Values by ever larger numbers, written once and then read once in order.

use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom, Write as _};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::SpooledTempFile;

/// Bytes kept in memory before a file is made.
const SPOOL_BYTES: usize = 1 << 20;

/// Values being written.
pub(crate) struct Records<T> {
    file: SpooledTempFile,
    buffer: Vec<u8>,
    /// The last value, which may still be forgotten.
    last: Option<(u64, T)>,
    written: u64,
}

impl<T: Serialize + DeserializeOwned> Default for Records<T> {
    fn default() -> Self {
        Records::new()
    }
}

impl<T: Serialize + DeserializeOwned> Records<T> {
    pub(crate) fn new() -> Self {
        Records { file: SpooledTempFile::new(SPOOL_BYTES), buffer: Vec::new(), last: None, written: 0 }
    }

    /// Takes a value whose number is larger than that of every value before.
    pub(crate) fn push(&mut self, number: u64, value: T) -> io::Result<()> {
        self.settle()?;
        self.last = Some((number, value));
        Ok(())
    }

    /// Drops the last value if it has this number.
    pub(crate) fn forget(&mut self, number: u64) {
        self.last.take_if(|(last, _)| *last == number);
    }

    fn settle(&mut self) -> io::Result<()> {
        let Some(last) = self.last.take() else { return Ok(()) };
        let bytes = postcard::to_allocvec(&last).map_err(io::Error::other)?;
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.buffer.extend_from_slice(&length.to_le_bytes());
        self.buffer.extend_from_slice(&bytes);
        self.written += 1;
        if self.buffer.len() < 1 << 16 {
            return Ok(());
        }
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// All values in order.
    pub(crate) fn forward(mut self) -> io::Result<RecordReader<T>> {
        self.settle()?;
        self.flush()?;
        self.file.seek(SeekFrom::Start(0))?;
        let mut reader = RecordReader { file: BufReader::new(self.file), left: self.written, ahead: None };
        reader.advance()?;
        Ok(reader)
    }
}

/// Values being read.
pub(crate) struct RecordReader<T> {
    file: BufReader<SpooledTempFile>,
    left: u64,
    ahead: Option<(u64, T)>,
}

impl<T: DeserializeOwned> RecordReader<T> {
    fn advance(&mut self) -> io::Result<()> {
        self.ahead = None;
        if self.left == 0 {
            return Ok(());
        }
        self.left -= 1;
        let mut length = [0; 4];
        self.file.read_exact(&mut length)?;
        let mut bytes = vec![0; u32::from_le_bytes(length) as usize];
        self.file.read_exact(&mut bytes)?;
        self.ahead = Some(postcard::from_bytes(&bytes).map_err(io::Error::other)?);
        Ok(())
    }

    /// The value of a number. Passes over all smaller ones.
    pub(crate) fn at(&mut self, number: u64) -> io::Result<Option<T>> {
        while let Some((found, value)) = self.next_below(number + 1)? {
            if found == number {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// The next value, if its number is below `end`.
    pub(crate) fn next_below(&mut self, end: u64) -> io::Result<Option<(u64, T)>> {
        let Some(next) = self.ahead.take_if(|(number, _)| *number < end) else { return Ok(None) };
        self.advance()?;
        Ok(Some(next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_in_order_without_the_forgotten() {
        let mut records = Records::<String>::new();
        for n in 0..50_000_u64 {
            records.push(n * 3, format!("value {n}")).unwrap();
            records.forget(1);
            if n % 10 == 0 {
                records.forget(n * 3);
            }
        }
        let mut reader = records.forward().unwrap();
        let mut n = 0;
        for end in (0..200_000).step_by(7) {
            while let Some((number, value)) = reader.next_below(end).unwrap() {
                n += u64::from(n % 10 == 0);
                assert_eq!((number, value), (n * 3, format!("value {n}")));
                n += 1;
            }
        }
        assert_eq!(n, 50_000);
        let mut records = Records::new();
        (0..9).for_each(|n| records.push(n * 3, n).unwrap());
        let mut reader = records.forward().unwrap();
        let found = [0, 1, 6, 7, 8, 24, 25].map(|number| reader.at(number).unwrap());
        assert_eq!(found, [Some(0), None, Some(2), None, None, Some(8), None]);
        assert!(Records::<String>::new().forward().unwrap().next_below(u64::MAX).unwrap().is_none());
    }
}
