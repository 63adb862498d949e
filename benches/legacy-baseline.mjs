// What verifying a legacy chain costs in plain single-threaded Node: SELECT all (or read a file of JSON lines), print the
// canonical form, SHA-256, crypto.verify for each row. Usage: node legacy-baseline.mjs FILE|postgres://… SIGNERS
import { createHash, createPublicKey, verify } from 'node:crypto';
import { readFileSync } from 'node:fs';

const [source, signersFile] = process.argv.slice(2);
const began = performance.now();

const keys = new Map();
for (const [kid, raw] of Object.entries(JSON.parse(readFileSync(signersFile, 'utf8')))) {
  const spki = Buffer.concat([Buffer.from('302a300506032b6570032100', 'hex'), Buffer.from(raw, 'base64')]);
  keys.set(kid, createPublicKey({ key: spki, format: 'der', type: 'spki' }));
}

function canonical(value) {
  if (Array.isArray(value)) return '[' + value.map(canonical).join(',') + ']';
  if (value === null || typeof value !== 'object') return JSON.stringify(value);
  const members = Object.keys(value).sort().map((key) => JSON.stringify(key) + ':' + canonical(value[key]));
  return '{' + members.join(',') + '}';
}

async function readRows() {
  if (!source.startsWith('postgres')) {
    return readFileSync(source, 'utf8').split('\n').filter(Boolean).map((line) => JSON.parse(line));
  }
  const { default: pg } = await import('pg');
  const client = new pg.Client({ connectionString: source });
  await client.connect();
  const { rows } = await client.query('SELECT * FROM audit_events ORDER BY created_at, id');
  await client.end();
  return rows;
}

const rows = await readRows();
let previous = null;
for (const row of rows) {
  if (row.prev_hash !== previous) throw new Error(`broken link at ${row.id}`);
  const hash = createHash('sha256').update(canonical(row.payload ?? null), 'utf8');
  if (previous) hash.update(Buffer.from(previous, 'hex'));
  const digest = hash.digest();
  if (!verify(null, digest, keys.get(row.signer_kid), Buffer.from(row.signature, 'base64'))) {
    throw new Error(`bad signature at ${row.id}`);
  }
  previous = digest.toString('hex');
}
const seconds = (performance.now() - began) / 1000;
console.log(JSON.stringify({ rows: rows.length, seconds, rate: Math.round(rows.length / seconds), head: previous }));
