//! The model of the disk: what is durable, and what is only waiting to be.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What a device keeps or tears is decided in units of this many bytes.
pub(crate) const SECTOR: u64 = 512;

/// Which of the changes that were never synced an image keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutMode {
    /// None of them: each file is as its last sync left it.
    LoseAllUnsynced,
    /// Each is kept, lost or torn at a sector boundary, as the seed decides.
    Random {
        /// Together with the seed given at registration it fixes every choice.
        seed: u64,
    },
}

/// A change to the content of a file.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Write { at: u64, data: Vec<u8> },
    Truncate { size: u64 },
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Change::Write { at, data } => write_at(content, *at, data),
            Change::Truncate { size } => content.resize(offset(*size), 0),
        }
    }

    /// Leaves of this change the part before or the part after one sector boundary; what crosses none is kept or lost.
    fn apply_torn(&self, content: &mut Vec<u8>, rng: &mut Rng) {
        let Change::Write { at, data } = self else {
            if rng.below(2) == 0 {
                self.apply(content);
            }
            return;
        };
        let first = at / SECTOR + 1;
        let last = (at + data.len() as u64).saturating_sub(1) / SECTOR;
        if first > last {
            if rng.below(2) == 0 {
                self.apply(content);
            }
            return;
        }
        let boundary = (first + rng.below(last - first + 1)) * SECTOR;
        let (head, tail) = data.split_at(offset(boundary - at));
        if rng.below(2) == 0 {
            write_at(content, *at, head);
        } else {
            write_at(content, boundary, tail);
        }
    }
}

fn offset(value: u64) -> usize {
    usize::try_from(value).expect("a test file fits in memory")
}

/// Writes into `content`; a gap before `at` becomes zeros, as in a sparse file.
fn write_at(content: &mut Vec<u8>, at: u64, data: &[u8]) {
    let (start, end) = (offset(at), offset(at) + data.len());
    if content.len() < end {
        content.resize(end, 0);
    }
    content[start..end].copy_from_slice(data);
}

/// How far a change has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// No sync since.
    Waiting,
    /// A sync failed and the kernel dropped it: it may have reached the device, but no later sync will bring it there.
    Dropped,
    /// Synced, but kept in the list because something before it was dropped and the order matters.
    Stored,
}

/// A file apart from its name: a deleted file that is still open goes on living.
#[derive(Clone, Debug, Default)]
struct Inode {
    durable: Vec<u8>,
    changes: Vec<(Change, Fate)>,
    handles: u32,
}

impl Inode {
    fn sync(&mut self) {
        for (_, fate) in &mut self.changes {
            if *fate == Fate::Waiting {
                *fate = Fate::Stored;
            }
        }
        let settled = self.changes.iter().take_while(|(_, fate)| *fate == Fate::Stored).count();
        for (change, _) in self.changes.drain(..settled) {
            change.apply(&mut self.durable);
        }
    }

    fn drop_waiting(&mut self) {
        for (_, fate) in &mut self.changes {
            if *fate == Fate::Waiting {
                *fate = Fate::Dropped;
            }
        }
    }

    /// The content after a cut. Order within the file is kept: a sector never goes back to an older value.
    fn after_cut(&self, rng: Option<&mut Rng>) -> Vec<u8> {
        let mut content = self.durable.clone();
        let Some(rng) = rng else {
            for (change, _) in self.changes.iter().filter(|(_, fate)| *fate == Fate::Stored) {
                change.apply(&mut content);
            }
            return content;
        };
        // A weight per file and image: else nearly every image of many changes would be about half of them.
        let keep_of_eight = rng.below(9);
        for (change, fate) in &self.changes {
            if *fate == Fate::Stored || rng.below(8) < keep_of_eight {
                change.apply(&mut content);
            } else if rng.below(2) == 0 {
                change.apply_torn(&mut content, rng);
            }
        }
        content
    }
}

/// What the disk holds and what it may hold: the model behind [`PowerCut`](crate::PowerCut).
#[derive(Debug)]
pub struct Disk {
    seed: u64,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    /// Per name, relative to the directory: what it may point to after a cut. The first is durable, the last is live.
    names: BTreeMap<PathBuf, Vec<Option<u64>>>,
}

impl Disk {
    pub(crate) fn new(seed: u64) -> Disk {
        Disk { seed, inodes: BTreeMap::new(), next_inode: 1, names: BTreeMap::new() }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.inodes.clear();
        self.names.clear();
    }

    fn live(&self, name: &Path) -> Option<u64> {
        *self.names.get(name)?.last()?
    }

    fn add_inode(&mut self, durable: Vec<u8>) -> u64 {
        let id = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(id, Inode { durable, ..Inode::default() });
        id
    }

    /// A file with this content is there and durable.
    pub(crate) fn adopt(&mut self, name: &Path, content: Vec<u8>) {
        let id = match self.live(name) {
            Some(id) => {
                if let Some(inode) = self.inodes.get_mut(&id) {
                    inode.durable = content;
                    inode.changes.clear();
                }
                id
            }
            None => self.add_inode(content),
        };
        self.names.insert(name.to_path_buf(), vec![Some(id)]);
    }

    /// Only these names are left, durably.
    pub(crate) fn retain_names(&mut self, found: impl Fn(&Path) -> bool) {
        self.names.retain(|name, _| found(name));
        self.collect();
    }

    /// Whether the model has a live file of this name.
    pub(crate) fn knows(&self, name: &Path) -> bool {
        self.live(name).is_some()
    }

    /// A handle was opened; the file is made, not yet durably, if the name is new. True in the second place if so.
    pub(crate) fn open(&mut self, name: &Path) -> (u64, bool) {
        let (id, created) = match self.live(name) {
            Some(id) => (id, false),
            None => {
                let id = self.add_inode(Vec::new());
                self.names.entry(name.to_path_buf()).or_insert_with(|| vec![None]).push(Some(id));
                (id, true)
            }
        };
        if let Some(inode) = self.inodes.get_mut(&id) {
            inode.handles += 1;
        }
        (id, created)
    }

    pub(crate) fn close(&mut self, id: u64) {
        if let Some(inode) = self.inodes.get_mut(&id) {
            inode.handles = inode.handles.saturating_sub(1);
        }
        self.collect();
    }

    pub(crate) fn change(&mut self, id: u64, change: Change) {
        if let Some(inode) = self.inodes.get_mut(&id) {
            inode.changes.push((change, Fate::Waiting));
        }
    }

    /// A sync that works: the content, and that the name exists.
    pub(crate) fn sync(&mut self, id: u64) {
        if let Some(inode) = self.inodes.get_mut(&id) {
            inode.sync();
        }
        for history in self.names.values_mut() {
            if let Some(place) = history.iter().position(|inode| *inode == Some(id)) {
                history.drain(..place);
            }
        }
        self.collect();
    }

    /// A sync that fails and loses what it was asked to store.
    pub(crate) fn sync_lost(&mut self, id: u64) {
        if let Some(inode) = self.inodes.get_mut(&id) {
            inode.drop_waiting();
        }
    }

    /// A sync of the directory that holds `name`: all that was made and deleted in it is durable.
    pub(crate) fn sync_directory_of(&mut self, name: &Path) {
        for (other, history) in &mut self.names {
            if other.parent() == name.parent() {
                history.drain(..history.len() - 1);
            }
        }
        self.collect();
    }

    pub(crate) fn delete(&mut self, name: &Path) {
        if let Some(history) = self.names.get_mut(name)
            && history.last() != Some(&None)
        {
            history.push(None);
        }
    }

    /// Forgets what no name and no handle can reach.
    fn collect(&mut self) {
        self.names.retain(|_, history| history.iter().any(Option::is_some));
        let names = &self.names;
        self.inodes.retain(|id, inode| inode.handles > 0 || names.values().any(|history| history.contains(&Some(*id))));
    }

    /// Writes into the directory `out` what the disk would hold if the power failed now.
    ///
    /// # Errors
    /// If `out` is not empty, or cannot be made or written.
    pub fn image(&self, out: &Path, mode: CutMode) -> io::Result<()> {
        fs::create_dir_all(out)?;
        if fs::read_dir(out)?.next().is_some() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} is not empty", out.display())));
        }
        let mut rng = match mode {
            CutMode::LoseAllUnsynced => None,
            CutMode::Random { seed } => Some(Rng::new(self.seed, seed)),
        };
        for (name, history) in &self.names {
            let place = rng.as_mut().map_or(0, |rng| offset(rng.below(history.len() as u64)));
            let Some(inode) = history[place].and_then(|id| self.inodes.get(&id)) else { continue };
            let path = out.join(name);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(path, inode.after_cut(rng.as_mut()))?;
        }
        Ok(())
    }
}

/// SplitMix64.
#[derive(Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(registered: u64, given: u64) -> Rng {
        let mixed = Rng(registered).next();
        Rng(mixed ^ given)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; the bias of the remainder does not matter here.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(at: u64, data: &[u8]) -> Change {
        Change::Write { at, data: data.to_vec() }
    }

    fn lose_all(disk: &Disk, name: &str) -> Option<Vec<u8>> {
        let id = disk.names.get(Path::new(name))?[0]?;
        Some(disk.inodes[&id].after_cut(None))
    }

    #[test]
    fn a_file_exists_after_its_first_sync() {
        let mut disk = Disk::new(0);
        let (id, created) = disk.open(Path::new("a"));
        assert!(created);
        disk.change(id, write(0, b"one"));
        assert_eq!(lose_all(&disk, "a"), None);
        disk.sync(id);
        disk.change(id, write(3, b"two"));
        disk.change(id, Change::Truncate { size: 1 });
        assert_eq!(lose_all(&disk, "a").unwrap(), b"one");
        disk.sync(id);
        assert_eq!(lose_all(&disk, "a").unwrap(), b"o");
    }

    #[test]
    fn a_deleted_file_comes_back_until_the_directory_is_synced() {
        let mut disk = Disk::new(0);
        let (old, _) = disk.open(Path::new("a"));
        disk.change(old, write(0, b"old"));
        disk.sync(old);
        disk.close(old);
        disk.delete(Path::new("a"));
        let (new, created) = disk.open(Path::new("a"));
        assert!(created);
        disk.change(new, write(0, b"new"));
        assert_eq!(lose_all(&disk, "a").unwrap(), b"old");
        disk.sync(new);
        assert_eq!(lose_all(&disk, "a").unwrap(), b"new");
        disk.delete(Path::new("a"));
        assert_eq!(lose_all(&disk, "a").unwrap(), b"new");
        disk.sync_directory_of(Path::new("b"));
        assert_eq!(lose_all(&disk, "a"), None);
        disk.close(new);
        assert!(disk.inodes.is_empty() && disk.names.is_empty());
    }

    #[test]
    fn what_a_failed_sync_dropped_stays_dropped() {
        let mut disk = Disk::new(0);
        let (id, _) = disk.open(Path::new("a"));
        disk.change(id, write(0, b"aaaa"));
        disk.sync(id);
        disk.change(id, write(0, b"bb"));
        disk.sync_lost(id);
        disk.change(id, write(3, b"c"));
        disk.sync(id);
        assert_eq!(lose_all(&disk, "a").unwrap(), b"aaac");
        // At random the dropped write may have reached the device, but never over a later one.
        let mut seen: Vec<_> =
            (0..64).map(|seed| disk.inodes[&id].after_cut(Some(&mut Rng::new(0, seed)))).collect::<Vec<_>>();
        seen.sort();
        seen.dedup();
        assert_eq!(seen, [b"aaac".to_vec(), b"bbac".to_vec()]);
    }

    #[test]
    fn tearing_keeps_whole_sectors_and_touches_nothing_outside_the_write() {
        let mut torn_heads = 0;
        let mut torn_tails = 0;
        for seed in 0..400 {
            let mut content = vec![0; 3000];
            write(100, &[1; 2000]).apply_torn(&mut content, &mut Rng::new(7, seed));
            assert!(content[..100].iter().chain(&content[2100..]).all(|byte| *byte == 0));
            let changes: Vec<_> = (100..2100).filter(|at| *at > 100 && content[*at] != content[at - 1]).collect();
            assert_eq!(changes.len(), 1, "one boundary");
            assert_eq!(changes[0] as u64 % SECTOR, 0);
            if content[100] == 1 {
                torn_heads += 1;
            } else {
                torn_tails += 1;
            }
        }
        assert!(torn_heads > 100 && torn_tails > 100);
    }

    #[test]
    fn a_write_within_one_sector_is_never_torn() {
        for seed in 0..50 {
            for (at, len) in [(0, 512), (24, 100), (512, 1), (1000, 24)] {
                let mut content = vec![0; 2048];
                write(at, &vec![1; len]).apply_torn(&mut content, &mut Rng::new(7, seed));
                let written = content.iter().filter(|byte| **byte == 1).count();
                assert!(written == 0 || written == len);
            }
        }
    }

    #[test]
    fn the_same_seeds_give_the_same_image() {
        let mut disk = Disk::new(3);
        let (id, _) = disk.open(Path::new("sub/a"));
        disk.sync(id);
        for n in 0..50_u8 {
            disk.change(id, write(u64::from(n) * 700, &[n; 1500]));
        }
        let dir = tempfile::tempdir().unwrap();
        let read = |out: &str, seed| {
            let out = dir.path().join(out);
            disk.image(&out, CutMode::Random { seed }).unwrap();
            fs::read(out.join("sub/a")).ok()
        };
        assert_eq!(read("x", 9), read("y", 9));
        assert!((0..8).any(|seed| read(&format!("z{seed}"), seed) != read(&format!("w{seed}"), seed + 100)));
        assert!(disk.image(&dir.path().join("x"), CutMode::LoseAllUnsynced).is_err(), "not over an older image");
    }
}
