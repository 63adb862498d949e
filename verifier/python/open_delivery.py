"""Opens a delivery with the buyer's private key, written from FORMAT.md 19 alone: what was encrypted does not need the ledger's programs to be read.

It decrypts and compares digests; whether the proof is genuine, `audit-verify proof` says."""
import argparse, hashlib, json, os, sys, tempfile
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

SEGMENT, HEADER, TAG = 1 << 20, 40, 16

def content_key(private, encryption, context):
    wrapped = bytes.fromhex(encryption["encrypted_key"])
    if encryption["key_algorithm"] == "RSA-OAEP-SHA256":
        return private.decrypt(wrapped, padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None))
    if encryption["key_algorithm"] == "HPKE-X25519-HKDF-SHA256-AES-256-GCM": return hpke_open(private, wrapped, context)
    raise ValueError("no key algorithm of FORMAT.md 19")

def hpke_open(private, wrapped, info):
    """RFC 9180, base mode, DHKEM(X25519, HKDF-SHA256) 0x0020, HKDF-SHA256 0x0001, AES-256-GCM 0x0002."""
    def extract(suite, salt, label, data):
        mac = hmac.HMAC(salt or bytes(32), hashes.SHA256())
        mac.update(b"HPKE-v1" + suite + label + data)
        return mac.finalize()
    def expand(suite, secret, label, data, length):
        return HKDFExpand(hashes.SHA256(), length, length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + data).derive(secret)
    raw = serialization.Encoding.Raw, serialization.PublicFormat.Raw
    encapsulated, kem, suite = wrapped[:32], b"KEM\x00\x20", b"HPKE\x00\x20\x00\x01\x00\x02"
    shared = private.exchange(X25519PublicKey.from_public_bytes(encapsulated))
    both = encapsulated + private.public_key().public_bytes(*raw)
    secret = expand(kem, extract(kem, b"", b"eae_prk", shared), b"shared_secret", both, 32)
    schedule = b"\0" + extract(suite, b"", b"psk_id_hash", b"") + extract(suite, b"", b"info_hash", info)
    secret = extract(suite, secret, b"secret", b"")
    key, nonce = expand(suite, secret, b"key", schedule, 32), expand(suite, secret, b"base_nonce", schedule, 12)
    return AESGCM(key).decrypt(nonce, wrapped[32:], b"")

def segments(file):
    """Each sealed segment, with whether it is the last."""
    segment = file.read(SEGMENT - HEADER)
    while True:
        following = file.read(SEGMENT)
        yield segment, not following
        if not following: return
        segment = following

def decrypt(file, key, context, write):
    header = file.read(HEADER)
    if len(header) != HEADER or header[0] != HEADER: raise ValueError("no AES256_GCM_HKDF_1MB stream")
    salt, prefix = header[1:33], header[33:]
    aead, sealed, plain = AESGCM(HKDF(hashes.SHA256(), 32, salt, context).derive(key)), hashlib.sha256(header), hashlib.sha256()
    for number, (segment, last) in enumerate(segments(file)):
        opened = aead.decrypt(prefix + number.to_bytes(4, "big") + bytes([last]), segment, None)
        sealed.update(segment), plain.update(opened), write(opened)
    return sealed.hexdigest(), plain.hexdigest()

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("proof", help="the delivery proof, JSON, as GET /proofs/{id} gives it in `proof`")
    parser.add_argument("key", help="the private key, RSA or X25519, PKCS#8 PEM")
    parser.add_argument("file", help="what was downloaded")
    parser.add_argument("out", help="where the artifact goes")
    given = parser.parse_args()
    with open(given.proof, "rb") as f: proof = json.load(f)
    with open(given.key, "rb") as f: private = serialization.load_pem_private_key(f.read(), None)
    if not isinstance(private, (rsa.RSAPrivateKey, X25519PrivateKey)): sys.exit("neither an RSA nor an X25519 key")
    context = b"ledger/delivery/v1\0" + bytes.fromhex(proof["ledger_id"]) + proof["delivery_id"].encode()
    # It gets its name once all of it is right.
    with open(given.file, "rb") as source, tempfile.NamedTemporaryFile(dir=os.path.dirname(given.out) or ".") as target:
        try: found = decrypt(source, content_key(private, proof["encryption"], context), context, target.write)
        except (InvalidTag, ValueError) as e: sys.exit(f"it does not open: {e or 'another key, or not what was encrypted'}")
        if found != (proof["ciphertext_sha256"], proof["artifact_sha256"]): sys.exit("the file is not the one that the proof names")
        target.flush()
        os.link(target.name, given.out)
    print(f"opened {proof['delivery_id']}: SHA-256 {found[1]}")

if __name__ == "__main__": main()
