-- Entries in ranges of their index, for ledgers that outgrow one table: run it as a member of ledger_owner after `ledger migrate`
-- and before the first entry, with ranges that suit. Where the last range ends, so does the ledger: its chains take no more
-- entries until there is another one. Add it before, at any time; writers wait for as long as that takes:
--
--     SELECT ledger.add_range(40000000);

ALTER TABLE ledger.entries RENAME TO entries_whole;
CREATE TABLE ledger.entries (LIKE ledger.entries_whole INCLUDING ALL) PARTITION BY RANGE (idx);
ALTER TABLE ledger.entries OWNER TO ledger_owner;
GRANT SELECT, INSERT ON ledger.entries TO ledger_writer;
GRANT SELECT ON ledger.entries TO ledger_auditor;
-- Triggers of rows are made for the ranges with it.
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.entries FOR EACH ROW EXECUTE FUNCTION ledger.refuse();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON ledger.entries FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse();

-- Adds the range from the end of the last one to below an index, and gives its table's name.
CREATE FUNCTION ledger.add_range(below bigint) RETURNS regclass LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    ranges bigint;
    start bigint;
    made text;
BEGIN
    LOCK TABLE ledger.entries IN ACCESS EXCLUSIVE MODE;
    SELECT count(*), coalesce(max(substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \(''?(\d+)')::bigint), 0)
        INTO ranges, start FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'ledger.entries'::regclass;
    made := format('ledger.entries_%s', ranges + 1);
    EXECUTE format('CREATE TABLE %s PARTITION OF ledger.entries FOR VALUES FROM (%s) TO (%s)', made, start, below);
    EXECUTE format('ALTER TABLE %s OWNER TO ledger_owner', made);
    EXECUTE format('GRANT SELECT ON %s TO ledger_writer, ledger_auditor', made);
    -- It can be truncated by its own name.
    EXECUTE format('CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse()', made);
    RETURN made::regclass;
END
$$;
ALTER FUNCTION ledger.add_range(bigint) OWNER TO ledger_owner;
REVOKE ALL ON FUNCTION ledger.add_range(bigint) FROM PUBLIC;

SELECT ledger.add_range(10000000);
SELECT ledger.add_range(20000000);
SELECT ledger.add_range(30000000);

CREATE OR REPLACE VIEW ledger.readable_entries AS
SELECT chain, idx, stream, revision, event_type, to_timestamp(recorded_at_us / 1e6) AS recorded_at,
    encode(event_id, 'hex')::uuid AS event_id, convert_from(body, 'UTF8') AS body, encode(entry_hash, 'hex') AS entry_hash
FROM ledger.entries;
DROP TABLE ledger.entries_whole;
