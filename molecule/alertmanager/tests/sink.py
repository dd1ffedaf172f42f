"""A receiver of one webhook and one mail: writes what arrives, as JSON lines, to the file named on the command line."""

import json
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

OUTPUT = Path(sys.argv[1])


def keep(record: dict) -> None:
    with OUTPUT.open("a", encoding="utf-8") as output:
        print(json.dumps(record), file=output)


class Webhook(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        """The test looks for secrets in the journal: leave none there."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        keep({"kind": "webhook", "path": self.path, "authorization": self.headers["Authorization"], "body": body})
        self.send_response(200)
        self.end_headers()


class Mail(socketserver.StreamRequestHandler):
    """As much of SMTP as a client without extensions uses."""

    def handle(self):
        self.wfile.write(b"220 sink\r\n")
        recipients = []
        while line := self.rfile.readline():
            word = line.split()[0].upper()
            if word == b"RCPT":
                recipients.append(line.decode().strip())
            if word == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                text = b""
                while (part := self.rfile.readline()) not in (b".\r\n", b""):
                    text += part
                keep({"kind": "mail", "recipients": recipients, "text": text.decode()})
            self.wfile.write(b"221 bye\r\n" if word == b"QUIT" else b"250 ok\r\n")
            if word == b"QUIT":
                return


socketserver.TCPServer.allow_reuse_address = True
mail = socketserver.ThreadingTCPServer(("127.0.0.1", 2525), Mail)
threading.Thread(target=mail.serve_forever, daemon=True).start()
HTTPServer(("127.0.0.1", 9999), Webhook).serve_forever()
