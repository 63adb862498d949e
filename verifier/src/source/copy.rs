//! Rows as PostgreSQL copies them out in its binary form (its manual, "COPY", "Binary Format"): they stream, and whoever reads
//! slowly slows the server's process down instead of filling a memory.

use std::error::Error;
use std::io::BufRead;

use ledger_engine::domain::projection::Cell;
use postgres::types::{FromSql, Type};

use super::misfit;

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
/// Signature, flags, and the length of an extension that there is not.
const HEADER_BYTES: usize = SIGNATURE.len() + 8;

/// Rows of a ledger are shorter, by far.
const ROW_BYTES_MAX: usize = 64 << 20;

/// What values of a column are, by its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Int,
    Text,
    Blob,
}

impl Kind {
    /// Types whose bytes are the values'. Any other would be read by code that comes with it.
    pub(super) fn of_type(oid: u32) -> Option<Kind> {
        match Type::from_oid(oid)? {
            Type::INT2 | Type::INT4 | Type::INT8 => Some(Kind::Int),
            Type::TEXT | Type::VARCHAR => Some(Kind::Text),
            Type::BYTEA => Some(Kind::Blob),
            _ => None,
        }
    }

    /// A value from the bytes that the server sends.
    pub(super) fn cell(self, column: &str, bytes: &[u8]) -> Cell {
        match (self, bytes) {
            (Kind::Int, &[a, b]) => Cell::Int(i16::from_be_bytes([a, b]).into()),
            (Kind::Int, &[a, b, c, d]) => Cell::Int(i32::from_be_bytes([a, b, c, d]).into()),
            (Kind::Int, &[a, b, c, d, e, f, g, h]) => Cell::Int(i64::from_be_bytes([a, b, c, d, e, f, g, h])),
            (Kind::Int, _) => misfit(column),
            (Kind::Text, _) => std::str::from_utf8(bytes).map_or_else(|_| misfit(column), |t| Cell::Text(t.to_owned())),
            (Kind::Blob, _) => Cell::Blob(bytes.to_vec()),
        }
    }
}

/// A value's bytes, whatever its type.
pub(super) struct Raw<'a>(pub(super) Option<&'a [u8]>);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Raw(Some(raw)))
    }

    fn from_sql_null(_: &Type) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Raw(None))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// A column's name, and what it holds; `None` where the table has no such column.
pub(super) type Column = (&'static str, Option<Kind>);

/// Parses rows.
pub(super) struct Copied<R> {
    reader: R,
    columns: Vec<Column>,
    buffer: Vec<u8>,
    /// What was parsed of the buffer.
    at: usize,
    begun: bool,
    ended: bool,
}

impl<R: BufRead> Copied<R> {
    pub(super) fn new(reader: R, columns: Vec<Column>) -> Copied<R> {
        Copied { reader, columns, buffer: Vec::new(), at: 0, begun: false, ended: false }
    }

    /// The next row; `None` once the server said that there are no more, and never because it fell silent.
    pub(super) fn next(&mut self) -> std::io::Result<Option<Vec<Cell>>> {
        while !self.ended {
            let mut rest = self.buffer.get(self.at..).unwrap_or_default();
            if !self.begun {
                if let Some((header, _)) = rest.split_at_checked(HEADER_BYTES) {
                    if !header.starts_with(SIGNATURE) || header[SIGNATURE.len()..] != [0; 8] {
                        return Err(other("the server copies in another form than PostgreSQL's binary one"));
                    }
                    self.begun = true;
                    self.at += HEADER_BYTES;
                    continue;
                }
            } else if let Some(count) = take_i16(&mut rest) {
                if count == -1 {
                    // The server may still say that it failed.
                    let more = !rest.is_empty() || !self.reader.fill_buf()?.is_empty();
                    if more {
                        return Err(other("the copy goes on after its end"));
                    }
                    self.ended = true;
                    break;
                }
                if usize::try_from(count) != Ok(self.columns.len()) {
                    return Err(other("a row has another number of columns than was asked for"));
                }
                if let Some(cells) = cells(&self.columns, &mut rest)? {
                    self.at = self.buffer.len() - rest.len();
                    return Ok(Some(cells));
                }
            }
            self.fill()?;
        }
        Ok(None)
    }

    fn fill(&mut self) -> std::io::Result<()> {
        self.buffer.drain(..self.at);
        self.at = 0;
        let read = self.reader.fill_buf()?;
        let length = read.len();
        if self.buffer.len() > ROW_BYTES_MAX {
            return Err(other("a row of more than 64 MiB, which no ledger has; find out who wrote it"));
        }
        if length == 0 {
            return Err(other("the copy ended before its last row"));
        }
        self.buffer.extend_from_slice(read);
        self.reader.consume(length);
        Ok(())
    }
}

fn other(why: &'static str) -> std::io::Error {
    std::io::Error::other(why)
}

fn take_i16(rest: &mut &[u8]) -> Option<i16> {
    let (bytes, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(i16::from_be_bytes(*bytes))
}

/// A row's values. `None`: they are not all there yet.
fn cells(columns: &[Column], rest: &mut &[u8]) -> std::io::Result<Option<Vec<Cell>>> {
    let mut cells = Vec::with_capacity(columns.len());
    for (name, kind) in columns {
        let Some((length, after)) = rest.split_first_chunk() else { return Ok(None) };
        *rest = after;
        let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
            cells.push(Cell::Null);
            continue;
        };
        let Some((bytes, after)) = rest.split_at_checked(length) else { return Ok(None) };
        *rest = after;
        let kind = kind.ok_or_else(|| other("a column that is not there has a value"))?;
        cells.push(kind.cell(name, bytes));
    }
    Ok(Some(cells))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy() -> Vec<u8> {
        let mut bytes = [SIGNATURE, &[0; 8]].concat();
        for (n, text) in [(5i32, Some("a")), (-1, None)] {
            bytes.extend([0, 3, 0, 0, 0, 4]);
            bytes.extend(n.to_be_bytes());
            bytes.extend(text.map_or(-1, |t| t.len() as i32).to_be_bytes());
            bytes.extend(text.unwrap_or_default().as_bytes());
            bytes.extend((-1i32).to_be_bytes());
        }
        bytes.extend([0xff, 0xff]);
        bytes
    }

    fn read(bytes: &[u8], piece: usize) -> std::io::Result<Vec<Vec<Cell>>> {
        let reader = std::io::BufReader::with_capacity(piece, bytes);
        let mut copied = Copied::new(reader, vec![("idx", Some(Kind::Int)), ("kid", Some(Kind::Text)), ("none", None)]);
        let mut rows = Vec::new();
        while let Some(row) = copied.next()? {
            rows.push(row);
        }
        assert!(copied.next()?.is_none());
        Ok(rows)
    }

    #[test]
    fn rows_in_any_pieces_and_nothing_less() {
        let copy = copy();
        let rows =
            vec![vec![Cell::Int(5), Cell::Text("a".into()), Cell::Null], vec![Cell::Int(-1), Cell::Null, Cell::Null]];
        for piece in 1..=copy.len() {
            assert_eq!(read(&copy, piece).unwrap(), rows);
        }
        for end in 0..copy.len() {
            assert!(read(&copy[..end], 7).is_err(), "{end}");
        }
        assert!(read(&[&copy[..], &[0]].concat(), 1000).is_err());
        for at in [0, 15, 20] {
            let mut other = copy.clone();
            other[at] ^= 1;
            assert!(read(&other, 1000).is_err(), "{at}");
        }
    }

    #[test]
    fn values_of_no_type_of_the_format() {
        assert_eq!(Kind::Int.cell("idx", &[1, 2, 3]), Cell::Blob(Vec::new()));
        assert_eq!(Kind::Text.cell("kid", &[0xff]), Cell::Blob(Vec::new()));
        assert_eq!(Kind::Text.cell("body", &[0xff]), Cell::Text(String::new()));
        assert_eq!(Kind::of_type(Type::NUMERIC.oid()), None);
    }
}
