#!/usr/bin/env bash
# How fast an artifact is encrypted, beside what OpenSSL does on one core of the same machine in the same run: `benches/delivery.sh`.
set -euo pipefail
cd "$(dirname "$0")/.."
openssl speed -seconds 3 -bytes 1048576 -evp aes-256-gcm 2> /dev/null | tail -1
openssl speed -seconds 3 -bytes 1048576 -evp sha256 2> /dev/null | tail -1
cargo bench --quiet -p ledger-benches --bench delivery -- --noplot | grep -E '^delivery|thrpt'
openssl speed -seconds 3 -bytes 1048576 -evp aes-256-gcm 2> /dev/null | tail -1
openssl speed -seconds 3 -bytes 1048576 -evp sha256 2> /dev/null | tail -1
