"""What the provider's own library does: signs bodies, and judges signatures.

A JSON list of tasks comes in on standard input, a list of answers goes out:
{"sign": body, "secret": s, "time": t} -> the header; {"judge": body, "header": h, "secrets": [s, ...]} -> true or false.
"""

import json
import sys

from stripe import SignatureVerificationError, WebhookSignature

TOLERANCE = 300


def judge(task):
    for secret in task["secrets"]:
        try:
            WebhookSignature.verify_header(task["judge"], task["header"], secret, TOLERANCE)
            return True
        except SignatureVerificationError:
            pass
    return False


def answer(task):
    if "sign" in task:
        return WebhookSignature.generate_signature_header(task["sign"], task["secret"], task["time"])
    return judge(task)


json.dump([answer(task) for task in json.load(sys.stdin)], sys.stdout)
