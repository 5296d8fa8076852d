"""Stands in for `vllm-rs frontend`: serves HTTP on an inherited descriptor, and drains at SIGTERM.

fake_rust.py DESCRIPTOR [fail]
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import FrameType


class Handler(BaseHTTPRequestHandler):
    """Tells its process id, and the key that it was given; /slow takes a second."""

    def do_GET(self) -> None:
        if self.path == "/slow":
            time.sleep(1)
        body = f"{os.getpid()} {os.environ['VLLM_API_KEY']}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""


def main() -> None:
    """Serve until SIGTERM."""
    if sys.argv[2:] == ["fail"]:
        sys.exit(3)
    server = HTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket = socket.socket(fileno=int(sys.argv[1]))

    def drain(number: int, frame: FrameType | None) -> None:
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, drain)
    server.serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main()
