//! Values by name: the ones used last in memory, the others in a temporary file.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::io::{self, Write as _};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt as _;

use lru::LruCache;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of the file's write buffer.
const BUFFER: usize = 4 << 20;

/// Bounded memory for any number of values, but for 16 bytes of each that is in the file.
pub(crate) struct Shelf<K, V> {
    hot: LruCache<K, Box<V>>,
    capacity: usize,
    /// Where in the file a value lies, by a hash of its name under a secret of this run.
    cold: HashMap<u64, u64>,
    secret: RandomState,
    file: Option<File>,
    buffer: Vec<u8>,
    /// Bytes in the file.
    flushed: u64,
}

impl<K: Hash + Eq + Copy + Serialize + DeserializeOwned, V: Serialize + DeserializeOwned> Shelf<K, V> {
    /// `capacity`: how many stay in memory.
    pub(crate) fn new(capacity: usize) -> Self {
        Shelf {
            hot: LruCache::new(NonZeroUsize::new(capacity + 1).unwrap_or(NonZeroUsize::MIN)),
            capacity,
            cold: HashMap::new(),
            secret: RandomState::new(),
            file: None,
            buffer: Vec::new(),
            flushed: 0,
        }
    }

    /// Whether there is a value of this name.
    pub(crate) fn has(&self, name: &K) -> bool {
        self.hot.contains(name) || self.cold.contains_key(&self.secret.hash_one(name))
    }

    /// A value that is in memory.
    pub(crate) fn hot(&mut self, name: &K) -> Option<&mut V> {
        self.hot.get_mut(name).map(Box::as_mut)
    }

    /// Takes a value out, wherever it is.
    pub(crate) fn take(&mut self, name: &K) -> io::Result<Option<Box<V>>> {
        match self.hot.pop(name) {
            Some(value) => Ok(Some(value)),
            None => self.take_cold(*name),
        }
    }

    /// Takes a value out of the file.
    pub(crate) fn take_cold(&mut self, name: K) -> io::Result<Option<Box<V>>> {
        match self.cold.remove(&self.secret.hash_one(name)) {
            Some(at) => self.read(at, &name).map(Some),
            None => Ok(None),
        }
    }

    /// How many have to leave memory before one more comes: none, or a part of all.
    pub(crate) fn surplus(&self, part: usize) -> usize {
        if self.hot.len() >= self.capacity { (self.capacity / part).max(1) } else { 0 }
    }

    /// Puts a value into memory.
    pub(crate) fn put(&mut self, name: K, value: Box<V>) {
        self.hot.put(name, value);
    }

    /// Takes the value out of memory that was not used for longest.
    pub(crate) fn pop(&mut self) -> Option<(K, Box<V>)> {
        self.hot.pop_lru()
    }

    /// Puts a value into the file.
    pub(crate) fn store(&mut self, item: &(K, Box<V>)) -> io::Result<()> {
        let at = self.flushed + self.buffer.len() as u64;
        let bytes = postcard::to_allocvec(item).map_err(io::Error::other)?;
        self.buffer.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        self.buffer.extend_from_slice(&bytes);
        if self.cold.insert(self.secret.hash_one(item.0), at).is_some() {
            return Err(same_hash());
        }
        if self.buffer.len() >= BUFFER {
            let file = match &mut self.file {
                Some(file) => file,
                None => self.file.insert(tempfile::tempfile()?),
            };
            file.write_all(&self.buffer)?;
            self.flushed += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Puts a value into memory, after room was made for it.
    pub(crate) fn insert(&mut self, name: K, value: Box<V>) -> io::Result<()> {
        for _ in 0..self.surplus(4) {
            let Some(item) = self.pop() else { break };
            self.store(&item)?;
        }
        self.put(name, value);
        Ok(())
    }

    /// A value, a new one where there is none of this name.
    pub(crate) fn get_or(&mut self, name: K, new: impl FnOnce() -> V) -> io::Result<&mut V> {
        if !self.hot.contains(&name) {
            let value = self.take_cold(name)?.unwrap_or_else(|| Box::new(new()));
            self.insert(name, value)?;
        }
        self.hot(&name).ok_or_else(|| io::Error::other("a value was lost"))
    }

    /// Gives every value, in no order.
    pub(crate) fn each(&self, mut give: impl FnMut(&K, &V)) -> io::Result<()> {
        for (name, value) in &self.hot {
            give(name, value);
        }
        // In the order of the file, which is read forward then.
        let mut places: Vec<u64> = self.cold.values().copied().collect();
        places.sort_unstable();
        for at in places {
            let (name, value): (K, Box<V>) = self.record(at)?;
            give(&name, &value);
        }
        Ok(())
    }

    fn read(&self, at: u64, name: &K) -> io::Result<Box<V>> {
        let (found, value): (K, Box<V>) = self.record(at)?;
        if found == *name { Ok(value) } else { Err(same_hash()) }
    }

    fn record(&self, at: u64) -> io::Result<(K, Box<V>)> {
        let mut len = [0; 4];
        self.read_exact(at, &mut len)?;
        let mut bytes = vec![0; u32::from_le_bytes(len) as usize];
        self.read_exact(at + 4, &mut bytes)?;
        postcard::from_bytes(&bytes).map_err(io::Error::other)
    }

    fn read_exact(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        let lost = || io::Error::other("a value is not in the temporary file");
        // A record is in the file or in the buffer, never in both.
        if let Some(at) = at.checked_sub(self.flushed) {
            let from = at as usize;
            out.copy_from_slice(self.buffer.get(from..from + out.len()).ok_or_else(lost)?);
            return Ok(());
        }
        self.file.as_ref().ok_or_else(lost)?.read_exact_at(out, at)
    }
}

/// Two names with one hash under a secret of this run: another run has another secret.
fn same_hash() -> io::Error {
    io::Error::other("two names have one hash, which another run will not see again: run again")
}
