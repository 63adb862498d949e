//! Files compressed in members that can be read side by side (FORMAT.md 13).
//!
//! A gzip file is a sequence of members (RFC 1952 2.2). Those of an export hold whole lines, and the extra field of each
//! says how long the member is, so that a reader finds the next one without inflating. Any gunzip reads such a file.

/// Length of a member's header.
pub const MEMBER_HEADER_BYTES: usize = 20;
/// CRC-32 and length after the compressed data.
pub const MEMBER_TRAILER_BYTES: usize = 8;
/// Most bytes that a member holds before compression. A line may be longer than a writer's usual piece, never than this.
pub const MEMBER_PLAIN_BYTES_MAX: usize = 1 << 20;

/// Magic, deflate, the extra field only; no time, unknown system; eight bytes of extra field: subfield "LE", four bytes.
const HEAD: [u8; 16] = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 8, 0, b'L', b'E', 4, 0];

/// The header of a member whose compressed data has `deflated` bytes. `None`: too long for its field.
pub fn member_header(deflated: usize) -> Option<[u8; MEMBER_HEADER_BYTES]> {
    let len = u32::try_from(MEMBER_HEADER_BYTES + deflated + MEMBER_TRAILER_BYTES).ok()?;
    let mut header = [0; MEMBER_HEADER_BYTES];
    header[..HEAD.len()].copy_from_slice(&HEAD);
    header[HEAD.len()..].copy_from_slice(&len.to_le_bytes());
    Some(header)
}

/// Length of the member that begins so, header and trailer included. `None`: it does not say.
pub fn member_len(header: &[u8; MEMBER_HEADER_BYTES]) -> Option<usize> {
    let (head, len) = header.split_at(HEAD.len());
    // Modification time and system may be anything.
    let same = head[..4] == HEAD[..4] && head[10..] == HEAD[10..];
    let len = u32::from_le_bytes(len.try_into().ok()?) as usize;
    (same && len >= MEMBER_HEADER_BYTES + MEMBER_TRAILER_BYTES).then_some(len)
}
