"""An issuer of tokens that shares no code with the server (PyJWT and cryptography): reads a request a line, answers a line."""

import base64
import hashlib
import hmac
import json
import sys

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

KEYS = {}
MAKE = {
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "RS256": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "RS256-1024": lambda: rsa.generate_private_key(public_exponent=65537, key_size=1024),
}


def b64(raw):
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def text(value):
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()


def key(ask):
    """Makes a key; answers its public JWK."""
    KEYS[ask["name"]] = made = MAKE[ask["alg"]]()
    alg = ask["alg"].split("-")[0]
    return json.loads(jwt.get_algorithm_by_name(alg).to_jwk(made.public_key())) | {"alg": alg}


def encode(ask):
    """A token as PyJWT makes it."""
    return jwt.encode(ask["claims"], KEYS[ask["key"]], algorithm=ask["alg"], headers=ask["header"])


def craft(ask):
    """A token whose parts are as told. `sign` is an algorithm, or HS256 with the bytes of a public key as the secret."""
    message = b64(text(ask["header"])) + b"." + b64(text(ask["claims"]))
    made = KEYS.get(ask.get("key"))
    if "secret" in ask:
        public = made.public_key()
        pem = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        der = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        raw = (serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        pkcs1 = (serialization.Encoding.DER, serialization.PublicFormat.PKCS1)
        secret = public.public_bytes(*{"pem": pem, "der": der, "raw": raw, "pkcs1": pkcs1}[ask["secret"]])
        signature = hmac.new(secret, message, hashlib.sha256).digest()
    elif made is None:
        signature = b""
    else:
        signature = jwt.get_algorithm_by_name(ask["sign"]).sign(message, made)
    return (message + b"." + b64(signature)).decode()


for line in sys.stdin:
    request = json.loads(line)
    answer = {"key": key, "encode": encode, "craft": craft}[request["op"]](request)
    print(json.dumps(answer), flush=True)
