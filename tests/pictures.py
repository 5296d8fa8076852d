"""Unusual images, and the site that serves the items of a request."""

from __future__ import annotations

import contextlib
import http.server
import io
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import Image


def png(width: int, height: int, color: tuple[int, int, int]) -> bytes:
    """Return an image of one color; it is small whatever its size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    compressor = zlib.compressobj(9)
    row = b"\0" + bytes(color) * width
    pixels = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def odd_images() -> dict[str, bytes]:
    """Return images that are whole, in sizes and modes that a program may have forgotten."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    frames = [Image.new("P", (40, 30), color) for color in (1, 2, 3)]
    images: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "palette": (Image.new("P", (40, 30), 7), "PNG", {}),
        "transparent palette": (Image.new("P", (40, 30)), "PNG", {"transparency": 0}),
        "one bit": (Image.new("1", (40, 30)), "PNG", {}),
        "gray": (Image.new("L", (40, 30), 90), "PNG", {}),
        "gray and alpha": (Image.new("LA", (40, 30), (90, 9)), "PNG", {}),
        "alpha": (Image.new("RGBA", (40, 30), (9, 99, 199, 0)), "PNG", {}),
        "16 bit": (Image.new("I;16", (40, 30), 40_000), "PNG", {}),
        "floats": (Image.new("F", (40, 30), 0.5), "TIFF", {}),
        "CMYK": (Image.new("CMYK", (40, 30), (1, 2, 3, 4)), "JPEG", {}),
        "turned": (Image.new("RGB", (40, 10), "red"), "JPEG", {"exif": exif}),
        "animated": (frames[0], "GIF", {"save_all": True, "append_images": frames[1:]}),
        "WebP": (Image.new("RGB", (40, 30), "red"), "WEBP", {}),
        "BMP": (Image.new("RGB", (40, 30), "red"), "BMP", {}),
        "icon": (Image.new("RGB", (16, 16), "red"), "ICO", {}),
    }
    made = {}
    for name, (image, kind, options) in images.items():
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        made[name] = buffer.getvalue()
    for width, height in ((1, 1), (1, 3), (3, 1), (3, 3), (13, 27), (1, 5000), (5000, 1)):
        made[f"{width}x{height}"] = png(width, height, (255, 0, 0))
    return made


class _Site(http.server.BaseHTTPRequestHandler):
    files: Mapping[str, bytes] = {}

    def do_GET(self) -> None:
        name = self.path[1:]
        elsewhere = name == "elsewhere"
        self.send_response(302 if elsewhere else 200 if name in self.files else 404)
        if elsewhere:
            self.send_header("Location", f"/{next(iter(self.files))}")
        self.end_headers()
        self.wfile.write(self.files.get(name, b""))

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def site(files: Mapping[str, bytes]) -> Iterator[int]:
    """Serve ``files`` by their names on the loopback interface, and redirect from ``elsewhere``.

    Yields the port.
    """
    handler = type("Site", (_Site,), {"files": files})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()
