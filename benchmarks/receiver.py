"""A validator that takes in the whole zip and answers at once: how long a real one thinks is nobody's merit here.

It accepts what it is sent as the sandbox's validator does, but neither unpacks it nor writes it to a disk.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ncr_worker.sandbox.process import LOOPBACK, ServerProcess, free_port, http_ok

END_OF_ZIP = b"PK\x05\x06"
CHUNK = 1 << 20


class Receiver(ServerProcess):
    name = "receiver"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = free_port()
        self.url = f"http://{LOOPBACK}:{self.port}"

    def command(self) -> Sequence[str]:
        return [sys.executable, __file__, str(self.port)]

    def ready(self) -> bool:
        return http_ok(self.url)

    def env(self) -> dict[str, str]:
        return {"VALIDATOR_URL": self.url, "VALIDATOR_API_KEY": "benchmark", "VALIDATOR_API_KEY_HEADER": "x-api-key"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer({"status": "ok"})

    def do_POST(self) -> None:
        left, room, end = int(self.headers["Content-Length"]), bytearray(CHUNK), b""
        while left and (count := self.rfile.readinto(memoryview(room)[: min(left, CHUNK)])):
            left -= count
            end = (end + bytes(room[max(count - 1024, 0) : count]))[-1024:]
        self._answer({"data": [{"result": "Valid" if END_OF_ZIP in end else "Invalid"}]})

    def _answer(self, content: object) -> None:
        body = json.dumps(content, separators=(",", ":")).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


if __name__ == "__main__":
    ThreadingHTTPServer((LOOPBACK, int(sys.argv[1])), _Handler).serve_forever()
