"""Images on the real server: base64, URLs, and what must not be fetched."""

from __future__ import annotations

import base64
import http.server
import json
import struct
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.tiny_models import TinyModels, document_lines, serve_vision
from tests.e2e.triton_server import sampling

pytestmark = pytest.mark.timeout(300)
ONE = "<image>What?"
GREEDY = sampling(temperature=0, max_tokens=8, ignore_eos=True)


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


RED, BLUE = png(30, 40, (255, 0, 0)), png(20, 20, (0, 0, 255))


def encoded(image: bytes) -> str:
    return base64.b64encode(image).decode()


class Pictures(http.server.BaseHTTPRequestHandler):
    """Serves an image, and what a client of ours must not be led by."""

    def do_GET(self) -> None:
        status = {"/red.png": 200, "/text": 200, "/elsewhere": 302}.get(self.path, 404)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/red.png")
        self.end_headers()
        if status == 200:
            self.wfile.write(RED if self.path == "/red.png" else b"no image")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def pictures() -> Iterator[int]:
    """The port of a server of images on the loopback interface."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pictures) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture(scope="module", autouse=True)
def _vision(tiny: TinyModels) -> None:
    serve_vision(tiny)


def see(tiny: TinyModels, prompt: str, images: list[str]) -> tuple[str, int]:
    """Return what the model says to images, and how many tokens the prompt has."""
    inputs = {
        "text_input": prompt,
        "image": images,
        "sampling_parameters": GREEDY,
        "exclude_input_in_output": True,
        "return_num_input_tokens": True,
    }
    response = tiny.ask("vision", inputs)
    assert not response.error, response.error
    return response.outputs["text_output"][0], int(response.outputs["num_input_tokens"][0])


def test_the_model_sees_the_images(tiny: TinyModels) -> None:
    """Each image takes its tokens in the prompt, and what is on it changes the answer."""
    red, one = see(tiny, ONE, [encoded(RED)])
    blue, _ = see(tiny, ONE, [encoded(BLUE)])
    _, two = see(tiny, f"<image>{ONE}", [encoded(RED), encoded(BLUE)])
    image = two - one
    assert len("What?") + image == one
    assert image > 1
    assert red != blue


def test_a_data_url_and_a_listed_host(tiny: TinyModels, pictures: int) -> None:
    """An image may come as a data URL, or from an address that the operator has listed."""
    expected = see(tiny, ONE, [encoded(RED)])
    assert expected == see(tiny, ONE, [f"data:image/png;base64,{encoded(RED)}"])
    assert expected == see(tiny, ONE, [f"http://127.0.0.1:{pictures}/red.png"])


def test_an_image_in_a_chat(tiny: TinyModels, pictures: int) -> None:
    """A message's image_url is fetched by the same rules."""

    def chat(url: str) -> Any:
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]
        messages = json.dumps([{"role": "user", "content": parts}])
        return tiny.ask("vision", {"messages": messages, "sampling_parameters": GREEDY})

    fetched = chat(f"http://127.0.0.1:{pictures}/red.png")
    assert not fetched.error, fetched.error
    embedded = chat(f"data:image/png;base64,{encoded(RED)}")
    assert fetched.outputs == embedded.outputs
    assert "no.such.host is not in allowed_media_domains" in chat("http://no.such.host/a.png").error
    assert "is at a private address" in chat(f"http://localhost:{pictures}/red.png").error


@pytest.mark.parametrize(
    ("prompt", "images", "expected"),
    [
        (ONE, ["?not base64?"], "image[0]:"),
        (ONE, [encoded(b"no image")], "image[0]: Failed to load image"),
        (ONE, [encoded(png(20_000, 20_000, (0, 0, 0)))], "image[0]:"),
        (f"<image><image>{ONE}", [encoded(RED)] * 3, "At most 2 image(s)"),
        ("What?", [encoded(RED)], ""),
        (ONE, ["http://169.254.169.254/latest/meta-data"], "is not in allowed_media_domains"),
        (ONE, ["http://example.com/a.png"], "example.com is not in allowed_media_domains"),
        (ONE, ["http://localhost:PORT/red.png"], "localhost is at a private address"),
        (ONE, ["http://127.0.0.1:PORT/elsewhere"], "answered with HTTP status 302"),
        (ONE, ["http://127.0.0.1:PORT/missing"], "answered with HTTP status 404"),
        (ONE, ["http://127.0.0.1:PORT/text"], "image[0]: Failed to load image"),
        (ONE, ["http://127.0.0.1@example.com/a.png"], "example.com is not in"),
        (ONE, ["file:///etc/passwd"], 'only http, https and data URLs are fetched, got "file"'),
        (ONE, ["/etc/passwd"], "image[0]:"),
    ],
    ids=[
        "not base64",
        "no image",
        "decompression bomb",
        "too many",
        "no place",
        "cloud's metadata",
        "not listed",
        "private by name",
        "redirect",
        "missing",
        "text",
        "user part",
        "file",
        "path",
    ],
)
def test_wrong_images_are_refused(
    tiny: TinyModels, pictures: int, prompt: str, images: list[str], expected: str
) -> None:
    """The error says which image, and why; the next request is served."""
    images = [image.replace("PORT", str(pictures)) for image in images]
    error = tiny.ask("vision", {"text_input": prompt, "image": images}).error
    assert error
    assert expected in error
    assert "Traceback" not in error
    see(tiny, ONE, [encoded(RED)])


def test_no_adapters_yet(tiny: TinyModels) -> None:
    """LoRA is on, and the list in the model's folder is empty."""
    error = tiny.ask("vision", {"text_input": "x"}, parameters={"lora_name": "loud"}).error
    assert 'lora_name: unknown adapter "loud", there are: none' in error


@pytest.mark.parametrize(("name", "line"), document_lines("VISION"))
def test_a_line_of_the_document(tiny: TinyModels, name: str, line: str) -> None:
    """Each is answered with a text, be it empty."""
    assert "text_output" in tiny.run_line(line, "vision")
