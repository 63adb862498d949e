-- The embedded ledger, FORMAT.md section 8. Ordinary rowid tables on purpose: a row keeps its place when it is
-- updated, so the rows of orders that are open together share pages. Names are hashes, so an index of names is
-- written all over: only stream_heads has one. It leads from a name to the index of its first entry, and that
-- index, which only grows, is the key of everything else.

CREATE TABLE ledger (
    ledger_id BLOB NOT NULL PRIMARY KEY
) STRICT;

CREATE TABLE entries (
    chain          INTEGER NOT NULL,
    idx            INTEGER NOT NULL,
    prev_hash      BLOB    NOT NULL,
    stream         TEXT    NOT NULL,
    revision       INTEGER NOT NULL,
    parent_hash    BLOB    NOT NULL,
    event_id       BLOB    NOT NULL,
    event_type     TEXT    NOT NULL,
    schema_version INTEGER NOT NULL,
    recorded_at_us INTEGER NOT NULL,
    body_hash      BLOB    NOT NULL,
    body_sha256    BLOB    NOT NULL,
    entry_hash     BLOB    NOT NULL,
    parent_index   INTEGER,
    body           BLOB    NOT NULL,
    PRIMARY KEY (chain, idx)
) STRICT;

CREATE TABLE private_documents (
    chain    INTEGER NOT NULL,
    idx      INTEGER NOT NULL,
    document BLOB    NOT NULL,
    PRIMARY KEY (chain, idx)
) STRICT;

CREATE TABLE commits (
    chain         INTEGER NOT NULL,
    first_index   INTEGER NOT NULL,
    size          INTEGER NOT NULL,
    registry_size INTEGER NOT NULL,
    registry_head BLOB    NOT NULL,
    PRIMARY KEY (chain, first_index)
) STRICT;

CREATE TABLE commit_signatures (
    chain       INTEGER NOT NULL,
    first_index INTEGER NOT NULL,
    kid         TEXT    NOT NULL,
    alg         INTEGER NOT NULL,
    signature   BLOB    NOT NULL,
    PRIMARY KEY (chain, first_index, kid)
) STRICT;

CREATE TABLE checkpoints (
    chain INTEGER NOT NULL,
    size  INTEGER NOT NULL,
    root  BLOB    NOT NULL,
    note  TEXT,
    PRIMARY KEY (chain, size)
) STRICT;

CREATE TABLE chain_heads (
    chain         INTEGER NOT NULL PRIMARY KEY,
    size          INTEGER NOT NULL,
    head_hash     BLOB    NOT NULL,
    compact_range BLOB    NOT NULL
) STRICT;

CREATE TABLE stream_heads (
    chain       INTEGER NOT NULL,
    stream      TEXT    NOT NULL,
    revision    INTEGER NOT NULL,
    head_hash   BLOB    NOT NULL,
    head_index  INTEGER NOT NULL,
    first_index INTEGER NOT NULL,
    PRIMARY KEY (chain, stream)
) STRICT;

CREATE TABLE tiles (
    chain  INTEGER NOT NULL,
    level  INTEGER NOT NULL,
    n      INTEGER NOT NULL,
    hashes BLOB    NOT NULL,
    PRIMARY KEY (chain, level, n)
) STRICT;

CREATE TABLE event_id_runs (
    chain INTEGER NOT NULL,
    run   INTEGER NOT NULL,
    ids   BLOB    NOT NULL,
    PRIMARY KEY (chain, run)
) STRICT;

CREATE TABLE cursors (
    projection TEXT    NOT NULL,
    chain      INTEGER NOT NULL,
    size       INTEGER NOT NULL,
    PRIMARY KEY (projection, chain)
) STRICT;

CREATE TABLE orders (
    chain           INTEGER NOT NULL,
    idx             INTEGER NOT NULL,
    order_id        TEXT    NOT NULL,
    status          TEXT    NOT NULL,
    sku_id          TEXT    NOT NULL,
    buyer           TEXT    NOT NULL,
    amount          INTEGER NOT NULL,
    currency        TEXT    NOT NULL,
    scale           INTEGER NOT NULL,
    refunded        INTEGER NOT NULL,
    delivery_mode   TEXT    NOT NULL,
    key_fingerprint TEXT,
    ledger_proof_id TEXT,
    license_index   INTEGER,
    deliveries      INTEGER NOT NULL,
    revision        INTEGER NOT NULL,
    created_at_us   INTEGER NOT NULL,
    updated_at_us   INTEGER NOT NULL,
    PRIMARY KEY (chain, idx)
) STRICT;

CREATE TABLE deliveries (
    chain             INTEGER NOT NULL,
    idx               INTEGER NOT NULL,
    delivery_id       TEXT    NOT NULL,
    order_id          TEXT    NOT NULL,
    n                 INTEGER NOT NULL,
    status            TEXT    NOT NULL,
    mode              TEXT    NOT NULL,
    key_fingerprint   TEXT,
    artifact_sha256   TEXT,
    ciphertext_sha256 TEXT,
    proof_id          TEXT,
    proof_index       INTEGER,
    downloads         INTEGER NOT NULL,
    revision          INTEGER NOT NULL,
    updated_at_us     INTEGER NOT NULL,
    PRIMARY KEY (chain, idx)
) STRICT;

CREATE TABLE licences (
    chain      INTEGER NOT NULL,
    idx        INTEGER NOT NULL,
    license_id TEXT    NOT NULL,
    order_id   TEXT    NOT NULL,
    sku_id     TEXT    NOT NULL,
    buyer      TEXT    NOT NULL,
    PRIMARY KEY (chain, idx)
) STRICT;

CREATE TABLE delivery_proofs (
    chain       INTEGER NOT NULL,
    idx         INTEGER NOT NULL,
    proof_id    TEXT    NOT NULL,
    order_id    TEXT    NOT NULL,
    delivery_id TEXT    NOT NULL,
    PRIMARY KEY (chain, idx)
) STRICT;

CREATE TABLE skus (
    chain           INTEGER NOT NULL,
    idx             INTEGER NOT NULL,
    sku_id          TEXT    NOT NULL,
    status          TEXT    NOT NULL,
    title           TEXT    NOT NULL,
    amount          INTEGER NOT NULL,
    currency        TEXT    NOT NULL,
    scale           INTEGER NOT NULL,
    author_id       TEXT,
    version         TEXT,
    tags            TEXT,
    manifest_sha256 TEXT,
    listed_index    INTEGER NOT NULL,
    revision        INTEGER NOT NULL,
    PRIMARY KEY (chain, idx)
) STRICT;

CREATE TABLE idempotency (
    chain INTEGER NOT NULL,
    key   BLOB    NOT NULL,
    idx   INTEGER NOT NULL,
    PRIMARY KEY (chain, key)
) STRICT;

CREATE TRIGGER entries_no_update BEFORE UPDATE ON entries
BEGIN SELECT RAISE(ABORT, 'entries are append-only'); END;
CREATE TRIGGER entries_no_delete BEFORE DELETE ON entries
BEGIN SELECT RAISE(ABORT, 'entries are append-only'); END;
CREATE TRIGGER commits_no_update BEFORE UPDATE ON commits
BEGIN SELECT RAISE(ABORT, 'commits are append-only'); END;
CREATE TRIGGER commits_no_delete BEFORE DELETE ON commits
BEGIN SELECT RAISE(ABORT, 'commits are append-only'); END;
CREATE TRIGGER commit_signatures_no_update BEFORE UPDATE ON commit_signatures
BEGIN SELECT RAISE(ABORT, 'commit signatures are append-only'); END;
CREATE TRIGGER commit_signatures_no_delete BEFORE DELETE ON commit_signatures
BEGIN SELECT RAISE(ABORT, 'commit signatures are append-only'); END;
CREATE TRIGGER checkpoints_no_update BEFORE UPDATE ON checkpoints WHEN OLD.note IS NOT NULL
BEGIN SELECT RAISE(ABORT, 'a signed checkpoint is final'); END;
CREATE TRIGGER checkpoints_no_delete BEFORE DELETE ON checkpoints
BEGIN SELECT RAISE(ABORT, 'checkpoints are append-only'); END;
