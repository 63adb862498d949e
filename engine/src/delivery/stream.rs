//! Tink's streaming AEAD `AES256_GCM_HKDF_1MB`: segments of a mebibyte, each sealed under a nonce with its number and whether it is the
//! last, so that cutting off, reordering and joining are found. Memory does not grow with the artifact.
//!
//! Bytes: 40 (length of the header), salt of 32, nonce prefix of 7, then the segments, of which the first is shorter by the header. The key of
//! a stream is HKDF-SHA256(content key, salt, info = associated data); the nonce is prefix ‖ u32 big-endian number ‖ 1 if it is the last, else 0.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::digest::{self, SHA256};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};

use super::{CONTENT_KEY_BYTES, ContentKey};
use crate::hash::Hash;

/// The name of the format in entries and proofs, as Tink has it.
pub const ALGORITHM: &str = "AES256_GCM_HKDF_1MB";
/// Bytes of a sealed segment but the last one; the first one includes the header.
pub const SEGMENT_BYTES: usize = 1 << 20;
const SALT_BYTES: usize = 32;
const PREFIX_BYTES: usize = 7;
/// Bytes before the first segment.
pub const HEADER_BYTES: usize = 1 + SALT_BYTES + PREFIX_BYTES;
const TAG_BYTES: usize = 16;
/// Segments on their way between two threads.
const AHEAD: usize = 2;

/// Fresh randomness for one stream.
#[derive(Clone, Copy, Debug)]
pub struct Fresh {
    /// For its key.
    pub salt: [u8; SALT_BYTES],
    /// For its nonces.
    pub prefix: [u8; PREFIX_BYTES],
}

/// What was read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digests {
    /// SHA-256 of the artifact.
    pub plain_sha256: Hash,
    /// Its bytes.
    pub plain_bytes: u64,
    /// SHA-256 of the stream.
    pub sealed_sha256: Hash,
    /// Its bytes.
    pub sealed_bytes: u64,
}

/// Why a stream cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The disk or whatever it comes from.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Altered, cut off, of another delivery, or under another key: the format does not tell these apart.
    #[error(
        "segment {0} does not open: the file was altered or cut off, or it is of another delivery or under another key; get it again"
    )]
    Segment(u32),
    /// It does not begin as such a stream does.
    #[error("it does not begin like an AES256_GCM_HKDF_1MB stream; is this the delivered file?")]
    Header,
}

struct Length;

impl KeyType for Length {
    fn len(&self) -> usize {
        CONTENT_KEY_BYTES
    }
}

/// The AEAD of one stream.
struct Segments {
    key: LessSafeKey,
    prefix: [u8; PREFIX_BYTES],
}

impl Segments {
    fn new(key: &ContentKey, fresh: &Fresh, associated: &[u8]) -> Segments {
        let extracted = Salt::new(HKDF_SHA256, &fresh.salt).extract(&key.0[..]);
        let info = [associated];
        let mut derived = zeroize::Zeroizing::new([0; CONTENT_KEY_BYTES]);
        let key = extracted.expand(&info, Length).and_then(|okm| okm.fill(&mut derived[..]));
        let key = key.and_then(|()| UnboundKey::new(&AES_256_GCM, &derived[..]));
        match key {
            Ok(key) => Segments { key: LessSafeKey::new(key), prefix: fresh.prefix },
            Err(_) => unreachable!("32 bytes are one block of HKDF-SHA256 and a key of AES-256"),
        }
    }

    fn nonce(&self, number: u32, last: bool) -> Nonce {
        let mut nonce = [0; 12];
        nonce[..PREFIX_BYTES].copy_from_slice(&self.prefix);
        nonce[PREFIX_BYTES..11].copy_from_slice(&number.to_be_bytes());
        nonce[11] = last.into();
        Nonce::assume_unique_for_key(nonce)
    }

    fn seal(&self, segment: &mut Vec<u8>, number: u32, last: bool) -> io::Result<()> {
        self.key
            .seal_in_place_append_tag(self.nonce(number, last), Aad::empty(), segment)
            .map_err(|_| io::Error::other("AES-GCM failed"))
    }

    fn open(&self, segment: &mut Vec<u8>, number: u32, last: bool) -> Result<(), OpenError> {
        let opened = self.key.open_in_place(self.nonce(number, last), Aad::empty(), segment);
        let len = opened.map_err(|_| OpenError::Segment(number))?.len();
        segment.truncate(len);
        Ok(())
    }
}

/// Most segments of a stream: their numbers have 32 bits.
fn next(number: u32) -> io::Result<u32> {
    number.checked_add(1).ok_or_else(|| io::Error::other("the artifact is too large for the format (4 PiB)"))
}

/// Reads until the buffer has `len` bytes or there are no more.
fn fill(from: &mut impl Read, segment: &mut Vec<u8>, len: usize) -> io::Result<()> {
    segment.clear();
    segment.reserve(len + TAG_BYTES);
    from.by_ref().take(len as u64).read_to_end(segment).map(drop)
}

fn hash(context: digest::Context) -> Hash {
    Hash::from_slice(context.finish().as_ref()).unwrap_or_default()
}

/// Reads and hashes the artifact in one thread, seals, hashes and writes in another: two digests are most of the work. Nothing of `to` counts
/// unless this returns.
pub fn seal(
    key: &ContentKey,
    fresh: &Fresh,
    associated: &[u8],
    mut from: impl Read + Send,
    to: &mut impl Write,
) -> io::Result<Digests> {
    let segments = Segments::new(key, fresh, associated);
    let (plain, sealing) = sync_channel::<(Vec<u8>, bool)>(AHEAD);
    // Buffers go round.
    let (back, spare) = sync_channel::<Vec<u8>>(AHEAD + 2);
    std::thread::scope(|scope| {
        let reading = scope.spawn(move || read_plain(&mut from, &plain, &spare));
        let written = write_sealed(&segments, fresh, sealing, &back, to);
        // Where reading failed, the rest ended early.
        let (plain_sha256, plain_bytes) = reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let (sealed_sha256, sealed_bytes) = written?;
        Ok(Digests { plain_sha256, plain_bytes, sealed_sha256, sealed_bytes })
    })
}

/// Seals the segments of an artifact and forgets them: what the AEAD alone costs.
pub fn encrypt_only(key: &ContentKey, fresh: &Fresh, associated: &[u8], artifact: &[u8]) -> io::Result<()> {
    let segments = Segments::new(key, fresh, associated);
    let mut segment = Vec::with_capacity(SEGMENT_BYTES);
    for (number, plain) in (0..).zip(artifact.chunks(SEGMENT_BYTES - TAG_BYTES)) {
        segment.clear();
        segment.extend_from_slice(plain);
        segments.seal(&mut segment, number, false)?;
    }
    Ok(())
}

/// Ends without an error where the other thread has ended: that one says why.
fn read_plain(
    from: &mut impl Read,
    out: &SyncSender<(Vec<u8>, bool)>,
    spare: &Receiver<Vec<u8>>,
) -> io::Result<(Hash, u64)> {
    let (mut sha256, mut bytes, mut room) =
        (digest::Context::new(&SHA256), 0, SEGMENT_BYTES - HEADER_BYTES - TAG_BYTES);
    let mut segment = Vec::new();
    fill(from, &mut segment, room)?;
    loop {
        // A segment is the last one if nothing comes after it.
        let full = segment.len() == room;
        room = SEGMENT_BYTES - TAG_BYTES;
        let mut following = spare.try_recv().unwrap_or_default();
        if full {
            fill(from, &mut following, room)?;
        } else {
            following.clear();
        }
        let last = following.is_empty();
        sha256.update(&segment);
        bytes += segment.len() as u64;
        if out.send((segment, last)).is_err() || last {
            return Ok((hash(sha256), bytes));
        }
        segment = following;
    }
}

fn write_sealed(
    segments: &Segments,
    fresh: &Fresh,
    plain: Receiver<(Vec<u8>, bool)>,
    back: &SyncSender<Vec<u8>>,
    to: &mut impl Write,
) -> io::Result<(Hash, u64)> {
    let header = [&[HEADER_BYTES as u8], &fresh.salt[..], &fresh.prefix[..]].concat();
    let (mut sha256, mut bytes, mut number) = (digest::Context::new(&SHA256), 0, 0);
    let mut write = |piece: &[u8]| {
        sha256.update(piece);
        bytes += piece.len() as u64;
        to.write_all(piece)
    };
    write(&header)?;
    for (mut segment, last) in plain {
        segments.seal(&mut segment, number, last)?;
        write(&segment)?;
        if last {
            break;
        }
        number = next(number)?;
        // Nobody needs it where the reader has ended.
        let _ = back.try_send(segment);
    }
    Ok((hash(sha256), bytes))
}

/// Opens a stream. Nothing of `to` counts unless this returns: that the stream is whole is known at its end.
pub fn open(
    key: &ContentKey,
    associated: &[u8],
    from: &mut impl Read,
    to: &mut impl Write,
) -> Result<Digests, OpenError> {
    let mut header = Vec::new();
    fill(from, &mut header, HEADER_BYTES)?;
    let parts = header.split_first().filter(|(len, _)| usize::from(**len) == HEADER_BYTES).map(|(_, rest)| rest);
    let parts = parts.and_then(|rest| Some((rest.get(..SALT_BYTES)?, rest.get(SALT_BYTES..)?)));
    let fresh =
        parts.and_then(|(salt, prefix)| Some(Fresh { salt: salt.try_into().ok()?, prefix: prefix.try_into().ok()? }));
    let segments = Segments::new(key, &fresh.ok_or(OpenError::Header)?, associated);
    let (mut plain, mut sealed) = (digest::Context::new(&SHA256), digest::Context::new(&SHA256));
    sealed.update(&header);
    let (mut plain_bytes, mut sealed_bytes, mut number) = (0, header.len() as u64, 0);
    let (mut room, mut segment, mut following) = (SEGMENT_BYTES - HEADER_BYTES, Vec::new(), Vec::new());
    fill(from, &mut segment, room)?;
    loop {
        let full = segment.len() == room;
        room = SEGMENT_BYTES;
        following.clear();
        if full {
            fill(from, &mut following, room)?;
        }
        let last = following.is_empty();
        sealed.update(&segment);
        sealed_bytes += segment.len() as u64;
        segments.open(&mut segment, number, last)?;
        plain.update(&segment);
        plain_bytes += segment.len() as u64;
        to.write_all(&segment)?;
        if last {
            let (plain_sha256, sealed_sha256) = (hash(plain), hash(sealed));
            return Ok(Digests { plain_sha256, plain_bytes, sealed_sha256, sealed_bytes });
        }
        std::mem::swap(&mut segment, &mut following);
        number = next(number)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::sha256;

    const FRESH: Fresh = Fresh { salt: [1; SALT_BYTES], prefix: [2; PREFIX_BYTES] };
    const FIRST: usize = SEGMENT_BYTES - HEADER_BYTES - TAG_BYTES;
    const NEXT: usize = SEGMENT_BYTES - TAG_BYTES;

    fn key() -> ContentKey {
        ContentKey::new([7; 32])
    }

    fn artifact(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 31 % 251) as u8).collect()
    }

    fn sealed(plain: &[u8]) -> (Vec<u8>, Digests) {
        let mut out = Vec::new();
        let digests = seal(&key(), &FRESH, b"a", plain, &mut out).unwrap();
        (out, digests)
    }

    fn opened(stream: &[u8]) -> Result<Vec<u8>, OpenError> {
        let mut out = Vec::new();
        open(&key(), b"a", &mut &stream[..], &mut out).map(|_| out)
    }

    #[test]
    fn what_was_sealed_opens_at_every_length_about_a_segment() {
        for len in [0, 1, FIRST - 1, FIRST, FIRST + 1, FIRST + NEXT - 1, FIRST + NEXT, FIRST + NEXT + 1, 3 * NEXT] {
            let plain = artifact(len);
            let (stream, digests) = sealed(&plain);
            let segments = 1 + len.saturating_sub(FIRST).div_ceil(NEXT);
            assert_eq!(stream.len(), HEADER_BYTES + len + segments * TAG_BYTES, "{len}");
            let own = Digests {
                plain_sha256: sha256(&[&plain]),
                plain_bytes: len as u64,
                sealed_sha256: sha256(&[&stream]),
                sealed_bytes: stream.len() as u64,
            };
            assert_eq!(digests, own);
            let mut out = Vec::new();
            assert_eq!(open(&key(), b"a", &mut &stream[..], &mut out).unwrap(), own);
            assert_eq!(out, plain);
        }
    }

    #[test]
    fn what_was_cut_reordered_joined_or_altered_does_not_open() {
        let (stream, _) = sealed(&artifact(FIRST + 2 * NEXT + 5));
        for cut in [0, 1, HEADER_BYTES, SEGMENT_BYTES - 1, SEGMENT_BYTES, 2 * SEGMENT_BYTES, stream.len() - 1] {
            assert!(opened(&stream[..cut]).is_err(), "cut at {cut}");
        }
        let mut swapped = stream.clone();
        let (second, third) = swapped.split_at_mut(2 * SEGMENT_BYTES);
        second[SEGMENT_BYTES..].swap_with_slice(&mut third[..SEGMENT_BYTES]);
        assert!(matches!(opened(&swapped), Err(OpenError::Segment(1))));
        let mut twice = stream.clone();
        twice.extend_from_slice(&stream[stream.len() - 21..]);
        assert!(opened(&twice).is_err());
        for at in [0, 1, 33, HEADER_BYTES, SEGMENT_BYTES + 3, stream.len() - 1] {
            let mut altered = stream.clone();
            altered[at] ^= 1;
            assert!(opened(&altered).is_err(), "altered at {at}");
        }
        let mut out = Vec::new();
        assert!(
            matches!(open(&key(), b"b", &mut &stream[..], &mut out), Err(OpenError::Segment(0))),
            "of another delivery"
        );
        let other = ContentKey::new([8; 32]);
        assert!(matches!(open(&other, b"a", &mut &stream[..], &mut out), Err(OpenError::Segment(0))));
    }

    /// Ends in the middle, as a disk or a connection does.
    struct Broken(usize);

    impl Read for Broken {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::Error::other("gone"));
            }
            let n = buf.len().min(self.0);
            self.0 -= n;
            Ok(n)
        }
    }

    impl Write for Broken {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.read(&mut vec![0; buf.len()])
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_failure_of_either_side_ends_all_stages() {
        for len in [0, 5, 3 * SEGMENT_BYTES] {
            let e = seal(&key(), &FRESH, b"a", Broken(len), &mut io::sink()).unwrap_err();
            assert_eq!(e.to_string(), "gone");
            let e = seal(&key(), &FRESH, b"a", &artifact(9 * SEGMENT_BYTES)[..], &mut Broken(len)).unwrap_err();
            assert_eq!(e.to_string(), "gone");
        }
    }
}
