-- The current schema, which the steps lead to; a test compares them. For reading, and for tools that compare schemas: `ledger migrate`
-- makes it, with the roles that it needs.

CREATE SCHEMA ledger;

ALTER SCHEMA ledger OWNER TO postgres;

CREATE FUNCTION ledger.refuse() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'LG001';
END
$$;

ALTER FUNCTION ledger.refuse() OWNER TO ledger_owner;

CREATE TABLE ledger.chain_heads (
    chain integer NOT NULL,
    size bigint NOT NULL,
    head_hash bytea NOT NULL,
    compact_range bytea NOT NULL
)
WITH (fillfactor='10');

ALTER TABLE ledger.chain_heads OWNER TO ledger_owner;

CREATE TABLE ledger.checkpoints (
    chain integer NOT NULL,
    size bigint NOT NULL,
    root bytea NOT NULL,
    note text
);

ALTER TABLE ledger.checkpoints OWNER TO ledger_owner;

CREATE TABLE ledger.commit_signatures (
    chain integer NOT NULL,
    first_index bigint NOT NULL,
    kid text NOT NULL COLLATE pg_catalog."C",
    alg integer NOT NULL,
    signature bytea NOT NULL
);

ALTER TABLE ledger.commit_signatures OWNER TO ledger_owner;

CREATE TABLE ledger.commits (
    chain integer NOT NULL,
    first_index bigint NOT NULL,
    size bigint NOT NULL,
    registry_size bigint NOT NULL,
    registry_head bytea NOT NULL
);

ALTER TABLE ledger.commits OWNER TO ledger_owner;

CREATE TABLE ledger.cursors (
    projection text NOT NULL COLLATE pg_catalog."C",
    chain integer NOT NULL,
    size bigint NOT NULL
)
WITH (fillfactor='10');

ALTER TABLE ledger.cursors OWNER TO ledger_owner;

CREATE TABLE ledger.deliveries (
    chain integer NOT NULL,
    idx bigint NOT NULL,
    delivery_id text NOT NULL COLLATE pg_catalog."C",
    order_id text NOT NULL COLLATE pg_catalog."C",
    n bigint NOT NULL,
    status text NOT NULL COLLATE pg_catalog."C",
    mode text NOT NULL COLLATE pg_catalog."C",
    key_fingerprint text COLLATE pg_catalog."C",
    artifact_sha256 text COLLATE pg_catalog."C",
    ciphertext_sha256 text COLLATE pg_catalog."C",
    proof_id text COLLATE pg_catalog."C",
    proof_index bigint,
    downloads bigint NOT NULL,
    revision bigint NOT NULL,
    updated_at_us bigint NOT NULL
)
WITH (fillfactor='75');

ALTER TABLE ledger.deliveries OWNER TO ledger_owner;

CREATE TABLE ledger.delivery_proofs (
    chain integer NOT NULL,
    idx bigint NOT NULL,
    proof_id text NOT NULL COLLATE pg_catalog."C",
    order_id text NOT NULL COLLATE pg_catalog."C",
    delivery_id text NOT NULL COLLATE pg_catalog."C"
);

ALTER TABLE ledger.delivery_proofs OWNER TO ledger_owner;

CREATE TABLE ledger.entries (
    chain integer NOT NULL,
    idx bigint NOT NULL,
    prev_hash bytea NOT NULL,
    stream text NOT NULL COLLATE pg_catalog."C",
    revision bigint NOT NULL,
    parent_hash bytea NOT NULL,
    event_id bytea NOT NULL,
    event_type text NOT NULL COLLATE pg_catalog."C",
    schema_version integer NOT NULL,
    recorded_at_us bigint NOT NULL,
    body_hash bytea NOT NULL,
    body_sha256 bytea NOT NULL,
    entry_hash bytea NOT NULL,
    parent_index bigint,
    body bytea NOT NULL
);

ALTER TABLE ledger.entries OWNER TO ledger_owner;

CREATE TABLE ledger.event_id_runs (
    chain integer NOT NULL,
    run bigint NOT NULL,
    ids bytea NOT NULL
);
ALTER TABLE ONLY ledger.event_id_runs ALTER COLUMN ids SET STORAGE EXTERNAL;

ALTER TABLE ledger.event_id_runs OWNER TO ledger_owner;

CREATE TABLE ledger.idempotency (
    chain integer NOT NULL,
    key bytea NOT NULL,
    idx bigint NOT NULL
);

ALTER TABLE ledger.idempotency OWNER TO ledger_owner;

CREATE TABLE ledger.ledger (
    ledger_id bytea NOT NULL
);

ALTER TABLE ledger.ledger OWNER TO ledger_owner;

CREATE TABLE ledger.licences (
    chain integer NOT NULL,
    idx bigint NOT NULL,
    license_id text NOT NULL COLLATE pg_catalog."C",
    order_id text NOT NULL COLLATE pg_catalog."C",
    sku_id text NOT NULL COLLATE pg_catalog."C",
    buyer text NOT NULL COLLATE pg_catalog."C"
);

ALTER TABLE ledger.licences OWNER TO ledger_owner;

CREATE TABLE ledger.orders (
    chain integer NOT NULL,
    idx bigint NOT NULL,
    order_id text NOT NULL COLLATE pg_catalog."C",
    status text NOT NULL COLLATE pg_catalog."C",
    sku_id text NOT NULL COLLATE pg_catalog."C",
    buyer text NOT NULL COLLATE pg_catalog."C",
    amount bigint NOT NULL,
    currency text NOT NULL COLLATE pg_catalog."C",
    scale bigint NOT NULL,
    refunded bigint NOT NULL,
    delivery_mode text NOT NULL COLLATE pg_catalog."C",
    key_fingerprint text COLLATE pg_catalog."C",
    ledger_proof_id text COLLATE pg_catalog."C",
    license_index bigint,
    deliveries bigint NOT NULL,
    revision bigint NOT NULL,
    created_at_us bigint NOT NULL,
    updated_at_us bigint NOT NULL
)
WITH (fillfactor='75');

ALTER TABLE ledger.orders OWNER TO ledger_owner;

CREATE TABLE ledger.private_documents (
    chain integer NOT NULL,
    idx bigint NOT NULL,
    document bytea NOT NULL
);

ALTER TABLE ledger.private_documents OWNER TO ledger_owner;

CREATE VIEW ledger.readable_entries AS
 SELECT entries.chain,
    entries.idx,
    entries.stream,
    entries.revision,
    entries.event_type,
    to_timestamp((((entries.recorded_at_us)::numeric / '1000000'::numeric))::double precision) AS recorded_at,
    (encode(entries.event_id, 'hex'::text))::uuid AS event_id,
    convert_from(entries.body, 'UTF8'::name) AS body,
    encode(entries.entry_hash, 'hex'::text) AS entry_hash
   FROM ledger.entries;

ALTER TABLE ledger.readable_entries OWNER TO ledger_owner;

CREATE TABLE ledger.schema_history (
    version integer NOT NULL,
    name character varying(255),
    applied_on character varying(255),
    checksum character varying(255)
);

ALTER TABLE ledger.schema_history OWNER TO ledger_owner;

CREATE TABLE ledger.skus (
    chain integer NOT NULL,
    idx bigint NOT NULL,
    sku_id text NOT NULL COLLATE pg_catalog."C",
    status text NOT NULL COLLATE pg_catalog."C",
    title text NOT NULL COLLATE pg_catalog."C",
    amount bigint NOT NULL,
    currency text NOT NULL COLLATE pg_catalog."C",
    scale bigint NOT NULL,
    author_id text COLLATE pg_catalog."C",
    version text COLLATE pg_catalog."C",
    tags text COLLATE pg_catalog."C",
    manifest_sha256 text COLLATE pg_catalog."C",
    listed_index bigint NOT NULL,
    revision bigint NOT NULL
)
WITH (fillfactor='75');

ALTER TABLE ledger.skus OWNER TO ledger_owner;

CREATE TABLE ledger.stream_heads (
    chain integer NOT NULL,
    stream text NOT NULL COLLATE pg_catalog."C",
    revision bigint NOT NULL,
    head_hash bytea NOT NULL,
    head_index bigint NOT NULL,
    first_index bigint NOT NULL
)
WITH (fillfactor='75');

ALTER TABLE ledger.stream_heads OWNER TO ledger_owner;

CREATE TABLE ledger.tiles (
    chain integer NOT NULL,
    level integer NOT NULL,
    n bigint NOT NULL,
    hashes bytea NOT NULL
);
ALTER TABLE ONLY ledger.tiles ALTER COLUMN hashes SET STORAGE EXTERNAL;

ALTER TABLE ledger.tiles OWNER TO ledger_owner;

ALTER TABLE ONLY ledger.chain_heads
    ADD CONSTRAINT chain_heads_pkey PRIMARY KEY (chain);

ALTER TABLE ONLY ledger.checkpoints
    ADD CONSTRAINT checkpoints_pkey PRIMARY KEY (chain, size);

ALTER TABLE ONLY ledger.commit_signatures
    ADD CONSTRAINT commit_signatures_pkey PRIMARY KEY (chain, first_index, kid);

ALTER TABLE ONLY ledger.commits
    ADD CONSTRAINT commits_pkey PRIMARY KEY (chain, first_index);

ALTER TABLE ONLY ledger.cursors
    ADD CONSTRAINT cursors_pkey PRIMARY KEY (chain, projection);

ALTER TABLE ONLY ledger.deliveries
    ADD CONSTRAINT deliveries_pkey PRIMARY KEY (chain, idx);

ALTER TABLE ONLY ledger.delivery_proofs
    ADD CONSTRAINT delivery_proofs_pkey PRIMARY KEY (chain, idx);

ALTER TABLE ONLY ledger.entries
    ADD CONSTRAINT entries_pkey PRIMARY KEY (chain, idx);

ALTER TABLE ONLY ledger.event_id_runs
    ADD CONSTRAINT event_id_runs_pkey PRIMARY KEY (chain, run);

ALTER TABLE ONLY ledger.idempotency
    ADD CONSTRAINT idempotency_pkey PRIMARY KEY (chain, key);

ALTER TABLE ONLY ledger.ledger
    ADD CONSTRAINT ledger_pkey PRIMARY KEY (ledger_id);

ALTER TABLE ONLY ledger.licences
    ADD CONSTRAINT licences_pkey PRIMARY KEY (chain, idx);

ALTER TABLE ONLY ledger.orders
    ADD CONSTRAINT orders_pkey PRIMARY KEY (chain, idx);

ALTER TABLE ONLY ledger.private_documents
    ADD CONSTRAINT private_documents_pkey PRIMARY KEY (chain, idx);

ALTER TABLE ONLY ledger.schema_history
    ADD CONSTRAINT schema_history_pkey PRIMARY KEY (version);

ALTER TABLE ONLY ledger.skus
    ADD CONSTRAINT skus_pkey PRIMARY KEY (chain, idx);

ALTER TABLE ONLY ledger.stream_heads
    ADD CONSTRAINT stream_heads_pkey PRIMARY KEY (chain, stream);

ALTER TABLE ONLY ledger.tiles
    ADD CONSTRAINT tiles_pkey PRIMARY KEY (chain, level, n);

CREATE UNIQUE INDEX ledger_is_one ON ledger.ledger USING btree ((true));

CREATE TRIGGER append_only BEFORE DELETE ON ledger.chain_heads FOR EACH ROW EXECUTE FUNCTION ledger.refuse();

CREATE TRIGGER append_only BEFORE DELETE ON ledger.checkpoints FOR EACH ROW EXECUTE FUNCTION ledger.refuse();

CREATE TRIGGER append_only BEFORE DELETE OR UPDATE ON ledger.commit_signatures FOR EACH ROW EXECUTE FUNCTION ledger.refuse();

CREATE TRIGGER append_only BEFORE DELETE OR UPDATE ON ledger.commits FOR EACH ROW EXECUTE FUNCTION ledger.refuse();

CREATE TRIGGER append_only BEFORE DELETE OR UPDATE ON ledger.entries FOR EACH ROW EXECUTE FUNCTION ledger.refuse();

CREATE TRIGGER append_only BEFORE DELETE OR UPDATE ON ledger.ledger FOR EACH ROW EXECUTE FUNCTION ledger.refuse();

CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON ledger.chain_heads FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse();

CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON ledger.checkpoints FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse();

CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON ledger.commit_signatures FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse();

CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON ledger.commits FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse();

CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON ledger.entries FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse();

CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON ledger.ledger FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse();

CREATE TRIGGER only_forward BEFORE UPDATE ON ledger.chain_heads FOR EACH ROW WHEN (((new.chain <> old.chain) OR (new.size < old.size))) EXECUTE FUNCTION ledger.refuse();

CREATE TRIGGER signed_is_final BEFORE UPDATE ON ledger.checkpoints FOR EACH ROW WHEN ((old.note IS NOT NULL)) EXECUTE FUNCTION ledger.refuse();

GRANT ALL ON SCHEMA ledger TO ledger_owner;
GRANT USAGE ON SCHEMA ledger TO ledger_writer;
GRANT USAGE ON SCHEMA ledger TO ledger_auditor;

GRANT SELECT,INSERT,UPDATE ON TABLE ledger.chain_heads TO ledger_writer;
GRANT SELECT ON TABLE ledger.chain_heads TO ledger_auditor;

GRANT SELECT,INSERT ON TABLE ledger.checkpoints TO ledger_writer;
GRANT SELECT ON TABLE ledger.checkpoints TO ledger_auditor;

GRANT UPDATE(note) ON TABLE ledger.checkpoints TO ledger_writer;

GRANT SELECT,INSERT ON TABLE ledger.commit_signatures TO ledger_writer;
GRANT SELECT ON TABLE ledger.commit_signatures TO ledger_auditor;

GRANT SELECT,INSERT ON TABLE ledger.commits TO ledger_writer;
GRANT SELECT ON TABLE ledger.commits TO ledger_auditor;

GRANT SELECT,INSERT,UPDATE ON TABLE ledger.cursors TO ledger_writer;
GRANT SELECT ON TABLE ledger.cursors TO ledger_auditor;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE ledger.deliveries TO ledger_writer;
GRANT SELECT ON TABLE ledger.deliveries TO ledger_auditor;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE ledger.delivery_proofs TO ledger_writer;
GRANT SELECT ON TABLE ledger.delivery_proofs TO ledger_auditor;

GRANT SELECT,INSERT ON TABLE ledger.entries TO ledger_writer;
GRANT SELECT ON TABLE ledger.entries TO ledger_auditor;

GRANT SELECT,INSERT ON TABLE ledger.event_id_runs TO ledger_writer;
GRANT SELECT ON TABLE ledger.event_id_runs TO ledger_auditor;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE ledger.idempotency TO ledger_writer;
GRANT SELECT ON TABLE ledger.idempotency TO ledger_auditor;

GRANT SELECT,INSERT ON TABLE ledger.ledger TO ledger_writer;
GRANT SELECT ON TABLE ledger.ledger TO ledger_auditor;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE ledger.licences TO ledger_writer;
GRANT SELECT ON TABLE ledger.licences TO ledger_auditor;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE ledger.orders TO ledger_writer;
GRANT SELECT ON TABLE ledger.orders TO ledger_auditor;

GRANT SELECT,INSERT,DELETE ON TABLE ledger.private_documents TO ledger_writer;
GRANT SELECT ON TABLE ledger.private_documents TO ledger_auditor;

GRANT SELECT ON TABLE ledger.readable_entries TO ledger_writer;
GRANT SELECT ON TABLE ledger.readable_entries TO ledger_auditor;

GRANT SELECT ON TABLE ledger.schema_history TO ledger_writer;
GRANT SELECT ON TABLE ledger.schema_history TO ledger_auditor;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE ledger.skus TO ledger_writer;
GRANT SELECT ON TABLE ledger.skus TO ledger_auditor;

GRANT SELECT,INSERT,UPDATE ON TABLE ledger.stream_heads TO ledger_writer;
GRANT SELECT ON TABLE ledger.stream_heads TO ledger_auditor;

GRANT SELECT,INSERT ON TABLE ledger.tiles TO ledger_writer;
GRANT SELECT ON TABLE ledger.tiles TO ledger_auditor;
