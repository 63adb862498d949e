//! What keeps entries from being rewritten: the schema's triggers, and that its roles have no right to. Anyone may have
//! taken them away since the migration.

use super::session::{Session, failed};
use crate::store::StoreError;

/// A line for each trigger that is missing, disabled, or another one. `kind` are the bits of `pg_trigger.tgtype`: 1 for each row,
/// 2 before, 8 DELETE, 16 UPDATE, 32 TRUNCATE. A table in ranges can be reached by the names of these.
const TRIGGERS: &str = "WITH ranges AS (SELECT 'ledger.entries'::regclass t UNION SELECT relid FROM pg_partition_tree('ledger.entries')), \
     wanted (t, name, kind, always) AS (\
     SELECT t, name, kind, true FROM ranges, (VALUES ('append_only', 27), ('append_only_truncate', 34)) v (name, kind) UNION ALL \
     SELECT t::regclass, name, kind, always FROM (VALUES \
     ('ledger.commits', 'append_only', 27, true), ('ledger.commits', 'append_only_truncate', 34, true), \
     ('ledger.commit_signatures', 'append_only', 27, true), ('ledger.commit_signatures', 'append_only_truncate', 34, true), \
     ('ledger.ledger', 'append_only', 27, true), ('ledger.ledger', 'append_only_truncate', 34, true), \
     ('ledger.checkpoints', 'append_only', 11, true), ('ledger.checkpoints', 'append_only_truncate', 34, true), \
     ('ledger.checkpoints', 'signed_is_final', 19, false), \
     ('ledger.chain_heads', 'append_only', 11, true), ('ledger.chain_heads', 'append_only_truncate', 34, true), \
     ('ledger.chain_heads', 'only_forward', 19, false)) v (t, name, kind, always)) \
     SELECT format('trigger %s of %s is missing, disabled or changed', name, t) FROM wanted w WHERE NOT EXISTS (\
     SELECT FROM pg_trigger g WHERE g.tgrelid = w.t AND g.tgname = w.name AND g.tgtype = w.kind AND g.tgenabled IN ('O', 'A') \
     AND (g.tgqual IS NULL) = w.always AND g.tgattr::text = '' AND g.tgfoid = 'ledger.refuse()'::regprocedure) ORDER BY 1";

/// A line for each right that neither writers nor auditors may have, of their own or as everybody's.
const RIGHTS: &str = "WITH tables (t, may_update) AS (\
     SELECT 'ledger.entries'::regclass, false UNION SELECT relid, false FROM pg_partition_tree('ledger.entries') UNION \
     SELECT t::regclass, may_update FROM (VALUES ('ledger.commits', false), ('ledger.commit_signatures', false), \
     ('ledger.ledger', false), ('ledger.checkpoints', true), ('ledger.chain_heads', true)) v (t, may_update)), \
     roles (role) AS (VALUES ('ledger_writer'), ('ledger_auditor')) \
     SELECT format('%s has the right to %s %s', role, forbidden, t) FROM tables, roles, \
     (VALUES ('UPDATE'), ('DELETE'), ('TRUNCATE')) f (forbidden) \
     WHERE NOT (may_update AND forbidden = 'UPDATE') AND (has_table_privilege(role, t, forbidden) \
     OR forbidden = 'UPDATE' AND has_any_column_privilege(role, t, forbidden)) ORDER BY 1";

/// Refuses a database where something else could rewrite entries.
pub(super) async fn check(session: &Session) -> Result<(), StoreError> {
    let mut wrong: Vec<String> = Vec::new();
    for text in [TRIGGERS, RIGHTS] {
        for row in session.query(text, &[]).await.map_err(failed)? {
            wrong.push(row.try_get(0).map_err(failed)?);
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(StoreError::Unusable(format!(
        "the database does not keep entries from being rewritten: {}; find out who changed that and verify the ledger, then have its \
         owner ENABLE or make the trigger as the schema has it, and REVOKE the right",
        wrong.join("; ")
    )))
}
