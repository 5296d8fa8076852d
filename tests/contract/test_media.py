"""Which URLs the loader that replaces vLLM's fetches for a client, and which it refuses."""

from __future__ import annotations

import asyncio
import base64
import http.server
import io
import threading
from collections.abc import Iterator
from inspect import signature
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from vllm import envs
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector

from triton_vllm.errors import RequestError
from triton_vllm.vllm_api.render import fetch as vllm_fetch
from triton_vllm.vllm_api.render.fetch import GuardedConnection, GuardedConnector, is_public

BODY = 1_100_000


def png() -> bytes:
    """Return a small image."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, "PNG")
    return buffer.getvalue()


class Pages(http.server.BaseHTTPRequestHandler):
    """Answers by the path: an image, too many bytes, too late, or a redirect to another address."""

    slow = threading.Event()

    def do_GET(self) -> None:
        if self.path == "/slow":
            self.slow.wait(30)
        self.send_response(302 if self.path == "/elsewhere" else 200)
        self.send_header("Location", "http://169.254.169.254/")
        self.end_headers()
        self.wfile.write(b"x" * BODY if self.path == "/large" else png())

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The URL of a server on the loopback interface."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        Pages.slow.set()
        server.shutdown()


def fetch(url: str, *domains: str, sync: bool = False) -> Any:
    """Load an image as vLLM's chat does."""
    connector = MEDIA_CONNECTOR_REGISTRY.load(
        envs.VLLM_MEDIA_CONNECTOR,
        media_io_kwargs=None,
        allowed_local_media_path="/",
        allowed_media_domains=list(domains),
    )
    return connector.fetch_image(url) if sync else asyncio.run(connector.fetch_image_async(url))


def size(image: Any) -> tuple[int, int]:
    return tuple(getattr(image, "media", image).size)


def test_it_stands_in_the_place_of_vllms() -> None:
    """What vLLM's own code asks its registry for is the guarded loader."""
    loaded = MEDIA_CONNECTOR_REGISTRY.load(envs.VLLM_MEDIA_CONNECTOR)
    assert isinstance(loaded, GuardedConnector)


@pytest.mark.parametrize("sync", [False, True], ids=["awaited", "in a thread"])
def test_listed_hosts_are_fetched_from(site: str, sync: bool) -> None:
    """An address in the list, even a private one, and data URLs without any list."""
    data = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    assert (4, 4) == size(fetch(f"{site}/a.png", "127.0.0.1", sync=sync))
    assert (4, 4) == size(fetch(data, sync=sync))


@pytest.mark.parametrize("sync", [False, True], ids=["awaited", "in a thread"])
@pytest.mark.parametrize(
    ("path", "domains", "expected"),
    [
        ("SITE/a.png", [], "127.0.0.1 is not in allowed_media_domains: no domain is allowed"),
        ("SITE/a.png", ["example.com"], "allowed are example.com"),
        ("SITE/elsewhere", ["127.0.0.1"], "HTTP status 302"),
        ("LOCAL/a.png", ["localhost"], "localhost is at a private address"),
        ("http://[::1]/a.png", ["localhost"], "::1 is not in allowed_media_domains"),
        ("http://127.0.0.1\\@example.com/", ["example.com"], ""),
        ("file:///etc/hostname", ["127.0.0.1"], "only http, https and data URLs"),
        ("ftp://127.0.0.1/a.png", ["127.0.0.1"], "only http, https and data URLs"),
        ("/etc/hostname", ["127.0.0.1"], "only http, https and data URLs"),
        ("data:image/png,abc", [], "base64"),
        ("data:image/png;base64,###", [], ""),
    ],
    ids=[
        "no list",
        "not listed",
        "redirect",
        "private name",
        "loopback in six",
        "back slash",
        "file",
        "other scheme",
        "path",
        "data that is no base64",
        "wrong base64",
    ],
)
def test_anything_else_is_refused(
    site: str, path: str, domains: list[str], expected: str, sync: bool
) -> None:
    """It is the client's mistake, in one line."""
    url = path.replace("SITE", site).replace("LOCAL", site.replace("127.0.0.1", "localhost"))
    with pytest.raises(RequestError) as raised:
        fetch(url, *domains, sync=sync)
    assert expected in str(raised.value)


def test_size_and_time_are_bounded(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an endless body nor a server that says nothing holds a request up."""
    monkeypatch.setenv("VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB", "1")
    with pytest.raises(RequestError, match=r"more than 1 MB \(the server's limit\)"):
        fetch(f"{site}/large", "127.0.0.1")
    monkeypatch.setenv("VLLM_IMAGE_FETCH_TIMEOUT", "1")
    with pytest.raises(RequestError, match="too long to fetch"):
        fetch(f"{site}/slow", "127.0.0.1")


def test_a_decompression_bomb_is_refused() -> None:
    """A few bytes that claim to be 900 million pixels are not unpacked."""
    header = png().replace((4).to_bytes(4, "big") * 2, (30_000).to_bytes(4, "big") * 2)
    with pytest.raises(RequestError):
        fetch(f"data:image/png;base64,{base64.b64encode(header).decode()}")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("2002:7f00:1::", False),
        ("64:ff9b::7f00:1", False),
        ("ff02::1", False),
    ],
)
def test_public_addresses(address: str, expected: bool) -> None:
    """Only addresses of the internet count, and no private one in disguise."""
    assert expected == is_public(address)


@pytest.mark.parametrize(
    ("operators", "vllms", "expected"),
    [("1", None, 2**20), ("0", None, None), ("0", BODY - 1, BODY - 1), ("1", 9, 9)],
    ids=["the operator's", "none", "vLLM's", "the smaller"],
)
def test_a_download_is_bounded_by_the_operator_and_by_vllm(
    site: str,
    monkeypatch: pytest.MonkeyPatch,
    operators: str,
    vllms: int | None,
    expected: int | None,
) -> None:
    """0 is no limit, as to vLLM; the budget of the request is charged with what has come."""
    monkeypatch.setenv("VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB", operators)
    charged: list[int] = []
    budget = SimpleNamespace(charge=charged.append)
    getting = GuardedConnection(["127.0.0.1"]).async_get_bytes(
        f"{site}/large", max_bytes=vllms, request_budget=budget
    )
    if expected is None:
        assert BODY == len(asyncio.run(getting)) == sum(charged)
    else:
        with pytest.raises(RequestError, match="the server's limit"):
            asyncio.run(getting)
        assert sum(charged) <= expected


def test_the_budgets_of_a_request_are_kept() -> None:
    """All that this vLLM passes to its loader is kept; what it does not know is refused."""
    budgets = vllm_fetch.request_budgets()
    connector = MEDIA_CONNECTOR_REGISTRY.load(envs.VLLM_MEDIA_CONNECTOR, **budgets)
    assert budgets == {name: getattr(connector, name) for name in budgets}
    ours = {"self", "media_io_kwargs", "connection"}
    ours |= {"allowed_local_media_path", "allowed_media_domains"}
    assert budgets.keys() == signature(MediaConnector.__init__).parameters.keys() - ours
    with pytest.raises(TypeError, match="no_such_budget"):
        MEDIA_CONNECTOR_REGISTRY.load(envs.VLLM_MEDIA_CONNECTOR, no_such_budget=1)
