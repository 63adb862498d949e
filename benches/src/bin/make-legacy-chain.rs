//! Writes a legacy chain as JSON lines, and its registry: `make-legacy-chain ROWS FILE SIGNERS [shuffled]`.

use std::fs::File;
use std::io::{BufWriter, Write};

use ledger_benches::legacy::{registry, write_chain, write_shuffled};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [rows, file, signers, rest @ ..] = arguments.as_slice() else {
        return Err("usage: make-legacy-chain ROWS FILE SIGNERS [shuffled]".into());
    };
    std::fs::write(signers, registry())?;
    let mut out = BufWriter::with_capacity(1 << 20, File::create(file)?);
    let shuffled = rest.first().is_some_and(|r| r == "shuffled");
    if shuffled {
        write_shuffled(rows.parse()?, &mut out)?
    } else {
        write_chain(rows.parse()?, &mut out)?
    }
    out.flush()?;
    Ok(())
}
