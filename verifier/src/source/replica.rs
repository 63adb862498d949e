//! Rows of a source that cannot be asked again and again, or not in order: in a temporary database they can be judged like a ledger's.

use std::path::{Path, PathBuf};

use ledger_engine::domain::projection::Cell;
use rusqlite::{Connection, params_from_iter};

use super::{CELL_BYTES_MAX, SourceError, Sqlite, columns, misfit, value};

/// A temporary database that is being filled.
pub(crate) struct Replica {
    /// What the rows are of, for errors.
    of: PathBuf,
    conn: Connection,
    tables: Vec<&'static str>,
    file: PathBuf,
    dir: tempfile::TempDir,
}

/// A temporary database that is full.
pub(crate) struct Replicated {
    pub(crate) tables: Sqlite,
    /// Removes it.
    _dir: tempfile::TempDir,
}

impl Replica {
    pub(crate) fn begin(of: &Path, tables: Vec<&'static str>) -> Result<Replica, SourceError> {
        let dir = tempfile::tempdir().map_err(|e| failed(of, &e.to_string()))?;
        let file = dir.path().join("replica.db");
        let open = || {
            let conn = Connection::open(&file)?;
            conn.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; BEGIN")?;
            for table in &tables {
                conn.execute_batch(&format!("CREATE TABLE {table} ({})", columns(table).0.join(", ")))?;
            }
            Ok(conn)
        };
        let conn = open().map_err(|e: rusqlite::Error| failed(of, &e.to_string()))?;
        Ok(Replica { of: of.to_owned(), conn, tables, file, dir })
    }

    /// Adds a row. What of it is longer than anything of the format is cut, and stays too long.
    pub(crate) fn insert(&self, table: &str, cells: &[Cell]) -> Result<(), SourceError> {
        let (names, _) = columns(table);
        let insert = || {
            let marks = vec!["?"; cells.len()].join(", ");
            let values = cells.iter().zip(names).map(|(cell, column)| match cell {
                Cell::Blob(bytes) if bytes.len() > CELL_BYTES_MAX => {
                    value(&Cell::Blob(bytes[..CELL_BYTES_MAX].to_vec()))
                }
                Cell::Text(text) if text.len() > CELL_BYTES_MAX => value(&misfit(column)),
                cell => value(cell),
            });
            self.conn
                .prepare_cached(&format!("INSERT INTO {table} VALUES ({marks})"))?
                .execute(params_from_iter(values))
                .map(drop)
        };
        insert().map_err(|e: rusqlite::Error| failed(&self.of, &e.to_string()))
    }

    /// Makes it ready to be asked.
    pub(crate) fn finish(self) -> Result<Replicated, SourceError> {
        let Replica { of, conn, tables, file, dir } = self;
        let index = || {
            for table in tables.iter().filter(|table| **table != "ledger") {
                let (columns, key) = columns(table);
                conn.execute_batch(&format!("CREATE INDEX {table}_key ON {table} ({})", columns[..key].join(", ")))?;
            }
            conn.execute_batch("COMMIT")
        };
        index().map_err(|e: rusqlite::Error| failed(&of, &e.to_string()))?;
        drop(conn);
        Ok(Replicated { tables: Sqlite::open(&file)?, _dir: dir })
    }
}

fn failed(of: &Path, what: &str) -> SourceError {
    SourceError::Unreadable {
        path: of.to_owned(),
        reason: format!(
            "a temporary copy is needed to judge it and cannot be made: {what}; set TMPDIR to a directory with room for twice its size"
        ),
    }
}
