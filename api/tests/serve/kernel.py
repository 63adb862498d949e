"""kernel.py CERTIFICATE KEY CA: a Kernel behind mutual TLS. It confirms every manifest but those whose title has "withdrawn" in it; a title with
"slow" makes it think for longer than anybody waits, one with "broken" makes it answer something else."""
import json, ssl, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Kernel(BaseHTTPRequestHandler):
    def answer(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        self.answer(200 if self.path == "/kernel/health" else 404, {"ok": True})

    def do_POST(self):
        title = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["manifest"]["title"]
        if self.path != "/kernel/manifests/verify":
            return self.answer(404, {})
        if "slow" in title:
            time.sleep(30)
        if "broken" in title:
            return self.answer(200, ["?"])
        refused = "withdrawn" in title
        self.answer(200, {"valid": not refused} | ({"reason": "withdrawn by its author"} if refused else {}))

    def log_message(self, *_):
        pass


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
context.load_verify_locations(sys.argv[3])
context.verify_mode = ssl.CERT_REQUIRED
server = ThreadingHTTPServer(("127.0.0.1", 0), Kernel)
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()
