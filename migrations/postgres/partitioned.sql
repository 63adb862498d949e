-- Entries in ranges of their index, for ledgers that outgrow one table: run it as the owner after `ledger migrate` and
-- before the first entry, with ranges that suit. Add a range before the last one is reached.

ALTER TABLE ledger.entries RENAME TO entries_whole;
CREATE TABLE ledger.entries (LIKE ledger.entries_whole INCLUDING ALL) PARTITION BY RANGE (idx);
CREATE TABLE ledger.entries_1 PARTITION OF ledger.entries FOR VALUES FROM (MINVALUE) TO (10000000);
CREATE TABLE ledger.entries_2 PARTITION OF ledger.entries FOR VALUES FROM (10000000) TO (20000000);
CREATE TABLE ledger.entries_3 PARTITION OF ledger.entries FOR VALUES FROM (20000000) TO (MAXVALUE);

DO $$
DECLARE
    t regclass;
BEGIN
    FOREACH t IN ARRAY ARRAY['ledger.entries', 'ledger.entries_1', 'ledger.entries_2', 'ledger.entries_3']::regclass[] LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO ledger_owner', t);
        EXECUTE format('GRANT SELECT ON %s TO ledger_writer, ledger_auditor', t);
        -- A partition can be truncated by its own name.
        EXECUTE format('CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse()', t);
    END LOOP;
END
$$;
-- Triggers of rows are made for the partitions with it.
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.entries FOR EACH ROW EXECUTE FUNCTION ledger.refuse();
GRANT INSERT ON ledger.entries TO ledger_writer;

CREATE OR REPLACE VIEW ledger.readable_entries AS
SELECT chain, idx, stream, revision, event_type, to_timestamp(recorded_at_us / 1e6) AS recorded_at,
    encode(event_id, 'hex')::uuid AS event_id, convert_from(body, 'UTF8') AS body, encode(entry_hash, 'hex') AS entry_hash
FROM ledger.entries;
DROP TABLE ledger.entries_whole;
