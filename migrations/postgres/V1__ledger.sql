-- The ledger in PostgreSQL, FORMAT.md section 8. Same tables and columns as the embedded one, and these differences:
-- every key begins with the chain, so that tables can be partitioned by range and distributed by chain; rights are
-- given to three roles, of which login roles are made members; triggers refuse what rights cannot.
--
-- Nothing here parses a body: no index, no constraint, no trigger.

DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['ledger_owner', 'ledger_writer', 'ledger_auditor'] LOOP
        -- Roles belong to the cluster: another database's ledger may have made them, now or a moment ago.
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;
            END;
        END IF;
    END LOOP;
    -- Whoever migrates hands the tables over, which only a member may.
    IF NOT pg_has_role(current_user, 'ledger_owner', 'MEMBER') THEN
        EXECUTE format('GRANT ledger_owner TO %I', current_user);
    END IF;
END
$$;

CREATE TABLE ledger.ledger (
    ledger_id bytea NOT NULL PRIMARY KEY
);

CREATE TABLE ledger.entries (
    chain integer NOT NULL,
    idx bigint NOT NULL,
    prev_hash bytea NOT NULL,
    stream text COLLATE "C" NOT NULL,
    revision bigint NOT NULL,
    parent_hash bytea NOT NULL,
    event_id bytea NOT NULL,
    event_type text COLLATE "C" NOT NULL,
    schema_version integer NOT NULL,
    recorded_at_us bigint NOT NULL,
    body_hash bytea NOT NULL,
    body_sha256 bytea NOT NULL,
    entry_hash bytea NOT NULL,
    parent_index bigint,
    body bytea NOT NULL,
    PRIMARY KEY (chain, idx)
);

CREATE TABLE ledger.private_documents (
    chain integer NOT NULL,
    idx bigint NOT NULL,
    document bytea NOT NULL,
    PRIMARY KEY (chain, idx)
);

CREATE TABLE ledger.commits (
    chain integer NOT NULL,
    first_index bigint NOT NULL,
    size bigint NOT NULL,
    registry_size bigint NOT NULL,
    registry_head bytea NOT NULL,
    PRIMARY KEY (chain, first_index)
);

CREATE TABLE ledger.commit_signatures (
    chain integer NOT NULL,
    first_index bigint NOT NULL,
    kid text COLLATE "C" NOT NULL,
    alg integer NOT NULL,
    signature bytea NOT NULL,
    PRIMARY KEY (chain, first_index, kid)
);

CREATE TABLE ledger.checkpoints (
    chain integer NOT NULL,
    size bigint NOT NULL,
    root bytea NOT NULL,
    note text,
    PRIMARY KEY (chain, size)
);

CREATE TABLE ledger.chain_heads (
    chain integer NOT NULL PRIMARY KEY,
    size bigint NOT NULL,
    head_hash bytea NOT NULL,
    compact_range bytea NOT NULL
) WITH (fillfactor = 10);

CREATE TABLE ledger.stream_heads (
    chain integer NOT NULL,
    stream text COLLATE "C" NOT NULL,
    revision bigint NOT NULL,
    head_hash bytea NOT NULL,
    head_index bigint NOT NULL,
    first_index bigint NOT NULL,
    PRIMARY KEY (chain, stream)
) WITH (fillfactor = 75);

CREATE TABLE ledger.tiles (
    chain integer NOT NULL,
    level integer NOT NULL,
    n bigint NOT NULL,
    hashes bytea NOT NULL,
    PRIMARY KEY (chain, level, n)
);

CREATE TABLE ledger.event_id_runs (
    chain integer NOT NULL,
    run bigint NOT NULL,
    ids bytea NOT NULL,
    PRIMARY KEY (chain, run)
);

CREATE TABLE ledger.cursors (
    projection text COLLATE "C" NOT NULL,
    chain integer NOT NULL,
    size bigint NOT NULL,
    PRIMARY KEY (chain, projection)
) WITH (fillfactor = 10);

CREATE TABLE ledger.orders (
    chain integer NOT NULL,
    idx bigint NOT NULL,
    order_id text COLLATE "C" NOT NULL,
    status text COLLATE "C" NOT NULL,
    sku_id text COLLATE "C" NOT NULL,
    buyer text COLLATE "C" NOT NULL,
    amount bigint NOT NULL,
    currency text COLLATE "C" NOT NULL,
    scale bigint NOT NULL,
    refunded bigint NOT NULL,
    delivery_mode text COLLATE "C" NOT NULL,
    key_fingerprint text COLLATE "C",
    ledger_proof_id text COLLATE "C",
    license_index bigint,
    deliveries bigint NOT NULL,
    revision bigint NOT NULL,
    created_at_us bigint NOT NULL,
    updated_at_us bigint NOT NULL,
    PRIMARY KEY (chain, idx)
) WITH (fillfactor = 75);

CREATE TABLE ledger.deliveries (
    chain integer NOT NULL,
    idx bigint NOT NULL,
    delivery_id text COLLATE "C" NOT NULL,
    order_id text COLLATE "C" NOT NULL,
    n bigint NOT NULL,
    status text COLLATE "C" NOT NULL,
    mode text COLLATE "C" NOT NULL,
    key_fingerprint text COLLATE "C",
    artifact_sha256 text COLLATE "C",
    ciphertext_sha256 text COLLATE "C",
    proof_id text COLLATE "C",
    proof_index bigint,
    downloads bigint NOT NULL,
    revision bigint NOT NULL,
    updated_at_us bigint NOT NULL,
    PRIMARY KEY (chain, idx)
) WITH (fillfactor = 75);

CREATE TABLE ledger.licences (
    chain integer NOT NULL,
    idx bigint NOT NULL,
    license_id text COLLATE "C" NOT NULL,
    order_id text COLLATE "C" NOT NULL,
    sku_id text COLLATE "C" NOT NULL,
    buyer text COLLATE "C" NOT NULL,
    PRIMARY KEY (chain, idx)
);

CREATE TABLE ledger.delivery_proofs (
    chain integer NOT NULL,
    idx bigint NOT NULL,
    proof_id text COLLATE "C" NOT NULL,
    order_id text COLLATE "C" NOT NULL,
    delivery_id text COLLATE "C" NOT NULL,
    PRIMARY KEY (chain, idx)
);

CREATE TABLE ledger.skus (
    chain integer NOT NULL,
    idx bigint NOT NULL,
    sku_id text COLLATE "C" NOT NULL,
    status text COLLATE "C" NOT NULL,
    title text COLLATE "C" NOT NULL,
    amount bigint NOT NULL,
    currency text COLLATE "C" NOT NULL,
    scale bigint NOT NULL,
    author_id text COLLATE "C",
    version text COLLATE "C",
    tags text COLLATE "C",
    manifest_sha256 text COLLATE "C",
    listed_index bigint NOT NULL,
    revision bigint NOT NULL,
    PRIMARY KEY (chain, idx)
) WITH (fillfactor = 75);

CREATE TABLE ledger.idempotency (
    chain integer NOT NULL,
    key bytea NOT NULL,
    idx bigint NOT NULL,
    PRIMARY KEY (chain, key)
);

-- One database holds one ledger.
CREATE UNIQUE INDEX ledger_is_one ON ledger.ledger ((true));

-- Hashes do not compress.
ALTER TABLE ledger.tiles ALTER COLUMN hashes SET STORAGE EXTERNAL;
ALTER TABLE ledger.event_id_runs ALTER COLUMN ids SET STORAGE EXTERNAL;

-- For reading with psql; the bytes that count are those of ledger.entries.
CREATE VIEW ledger.readable_entries AS
SELECT chain, idx, stream, revision, event_type, to_timestamp(recorded_at_us / 1e6) AS recorded_at,
    encode(event_id, 'hex')::uuid AS event_id, convert_from(body, 'UTF8') AS body, encode(entry_hash, 'hex') AS entry_hash
FROM ledger.entries;

-- A code of its own: whoever gets it had the right.
CREATE FUNCTION ledger.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'LG001';
END
$$;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.entries FOR EACH ROW EXECUTE FUNCTION ledger.refuse();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON ledger.entries FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.commits FOR EACH ROW EXECUTE FUNCTION ledger.refuse();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON ledger.commits FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.commit_signatures FOR EACH ROW EXECUTE FUNCTION ledger.refuse();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON ledger.commit_signatures FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.ledger FOR EACH ROW EXECUTE FUNCTION ledger.refuse();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON ledger.ledger FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse();
CREATE TRIGGER signed_is_final BEFORE UPDATE ON ledger.checkpoints FOR EACH ROW WHEN (OLD.note IS NOT NULL)
    EXECUTE FUNCTION ledger.refuse();
CREATE TRIGGER append_only BEFORE DELETE ON ledger.checkpoints FOR EACH ROW EXECUTE FUNCTION ledger.refuse();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON ledger.checkpoints FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse();
CREATE TRIGGER only_forward BEFORE UPDATE ON ledger.chain_heads FOR EACH ROW
    WHEN (NEW.chain <> OLD.chain OR NEW.size < OLD.size) EXECUTE FUNCTION ledger.refuse();
CREATE TRIGGER append_only BEFORE DELETE ON ledger.chain_heads FOR EACH ROW EXECUTE FUNCTION ledger.refuse();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON ledger.chain_heads FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse();

-- An owner of tables must be able to make them, and whoever hands them over need not be a superuser.
GRANT USAGE, CREATE ON SCHEMA ledger TO ledger_owner;

DO $$
DECLARE
    t regclass;
BEGIN
    FOR t IN SELECT c.oid FROM pg_class c WHERE c.relnamespace = 'ledger'::regnamespace AND c.relkind IN ('r', 'v') LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO ledger_owner', t);
    END LOOP;
END
$$;
ALTER FUNCTION ledger.refuse() OWNER TO ledger_owner;

REVOKE ALL ON SCHEMA ledger FROM PUBLIC;
GRANT USAGE ON SCHEMA ledger TO ledger_writer, ledger_auditor;
GRANT SELECT ON ALL TABLES IN SCHEMA ledger TO ledger_writer, ledger_auditor;
GRANT INSERT ON ledger.ledger, ledger.entries, ledger.commits, ledger.commit_signatures, ledger.tiles, ledger.event_id_runs
    TO ledger_writer;
GRANT INSERT, UPDATE ON ledger.chain_heads, ledger.stream_heads, ledger.cursors TO ledger_writer;
GRANT INSERT, UPDATE (note) ON ledger.checkpoints TO ledger_writer;
GRANT INSERT, DELETE ON ledger.private_documents TO ledger_writer;
-- Projections follow from the entries: they may be dropped and made again.
GRANT INSERT, UPDATE, DELETE ON ledger.orders, ledger.deliveries, ledger.licences, ledger.delivery_proofs, ledger.skus,
    ledger.idempotency TO ledger_writer;
