"""Load images, audio and video through vLLM's loader, within bounds.

vLLM's loader fetches any URL where the operator lists no domains, follows redirects to any host,
and in 0.26 limits no download. ``GuardedConnector`` replaces it for all requests of this process.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import os
import socket
from collections.abc import Collection
from typing import Any

import aiohttp
from aiohttp.abc import ResolveResult
from vllm import connections
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector, base
from yarl import URL

from triton_vllm.errors import MediaError, RequestError, one_line

_TIMEOUT = 30.0  # seconds, where vLLM names none
_CHUNK = 65536
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # may lead to any IPv4 address


class PublicResolver(aiohttp.DefaultResolver):  # type: ignore[misc]
    """Resolves names, to public addresses only: a listed name must not lead into our network."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of ``host``. Raises RequestError if one is not public."""
        found: list[ResolveResult] = await super().resolve(host, port, family)
        for each in found:
            if not is_public(each["host"]):
                raise RequestError(f"{host} is at a private address")
        return found


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the internet's, whatever form it is written in."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64 or ip.teredo:
            return False
        ip = ip.ipv4_mapped or ip.sixtofour or ip
    return ip.is_global and not ip.is_multicast


class GuardedConnection(connections.HTTPConnection):  # type: ignore[misc]
    """Fetches from listed hosts, without following redirects, in bounded size and time.

    A private address is allowed only if the list has that address itself.
    """

    def __init__(self, hosts: Collection[str]) -> None:
        super().__init__()
        self._hosts = hosts

    async def async_get_bytes(
        self,
        url: str,
        *,
        timeout: float | None = None,
        allow_redirects: bool = False,
        max_bytes: int | None = None,
        request_budget: Any = None,
    ) -> bytes:
        """Return what is at ``url``. Raises RequestError.

        ``max_bytes`` and ``request_budget``, what one request may download, are vLLM's limits, and
        hold beside the operator's. No redirect is followed, whatever ``allow_redirects`` is.
        """
        target = URL(url)
        check_host(target, self._hosts)
        limit = aiohttp.ClientTimeout(total=timeout or _TIMEOUT)
        connector = aiohttp.TCPConnector(resolver=PublicResolver())
        async with (
            aiohttp.ClientSession(connector=connector, timeout=limit) as session,
            session.get(target, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise RequestError(f"{target.host} answered with HTTP status {response.status}")
            content = bytearray()
            operators = max(0, int(os.environ.get("VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB", "256"))) << 20
            most = min(operators or math.inf, math.inf if max_bytes is None else max_bytes)
            async for chunk in response.content.iter_chunked(_CHUNK):
                content += chunk
                if len(content) > most:
                    raise RequestError(f"more than {most / 2**20:g} MB (the server's limit)")
                if request_budget is not None:
                    request_budget.charge(len(chunk))
            return bytes(content)


def request_budgets() -> dict[str, Any]:
    """Return limits for all media of one request together, as options of ``GuardedConnector``.

    vLLM has them since 0.33, and makes them for each chat; {} where it has none.
    """
    known = {
        "decoded_budget": getattr(base, "MediaDecodedBudget", None),
        "download_budget": getattr(connections, "MediaRequestDownloadBudget", None),
    }
    return {name: budget() for name, budget in known.items() if budget is not None}


def check_host(url: URL, hosts: Collection[str]) -> None:
    """Raise RequestError unless the operator has listed the URL's host."""
    if url.scheme not in ("http", "https"):
        raise RequestError(f'only http, https and data URLs are fetched, got "{url.scheme}"')
    if url.host not in hosts:
        listed = f"allowed are {', '.join(hosts)}" if hosts else "no domain is allowed"
        raise RequestError(f"{url.host} is not in allowed_media_domains: {listed}")


@MEDIA_CONNECTOR_REGISTRY.register("http")
class GuardedConnector(MediaConnector):  # type: ignore[misc]
    """vLLM's media loader, within bounds; no file is ever read. Registered in its place."""

    def __init__(
        self,
        media_io_kwargs: Any = None,
        *,
        allowed_local_media_path: str = "",
        allowed_media_domains: list[str] | None = None,
        **budgets: Any,
    ) -> None:
        """Allow the hosts of ``allowed_media_domains``, none by default.

        No file is read, whatever ``allowed_local_media_path`` is. ``budgets`` are vLLM's own.
        """
        domains = allowed_media_domains or []
        super().__init__(
            media_io_kwargs,
            connection=GuardedConnection(domains),
            allowed_media_domains=domains,
            **budgets,
        )

    async def load_from_url_async(
        self, url: str, media_io: Any, *, fetch_timeout: float | None = None
    ) -> Any:
        """Load from a data URL or a listed host. Raises MediaError, whatever is wrong with it."""
        try:
            if url[:5].lower() != "data:":
                check_host(URL(url), self.allowed_media_domains)
            elif ";base64" not in url.partition(",")[0]:
                raise RequestError("a data URL must be base64")
            loaded = await super().load_from_url_async(url, media_io, fetch_timeout=fetch_timeout)
        except ImportError as error:  # a decoder that vLLM has as an extra
            raise MediaError(missing_package(error)) from error
        except (TimeoutError, asyncio.TimeoutError):
            raise MediaError("it took too long to fetch") from None
        except Exception as error:  # of Pillow, OpenCV, aiohttp, ...: as many as there are formats
            raise MediaError(one_line(error)) from error
        if _is_empty(loaded):
            raise MediaError("it is empty: it has no samples or no frames")
        return loaded

    def load_from_url(self, url: str, media_io: Any, *, fetch_timeout: float | None = None) -> Any:
        """Do the same for those of vLLM's threads that wait."""
        return asyncio.run(self.load_from_url_async(url, media_io, fetch_timeout=fetch_timeout))


def missing_package(error: ImportError) -> str:
    """Return what the execution environment lacks, and how the operator adds it."""
    package = one_line(error)
    cause: BaseException | None = error
    while cause is not None:  # vLLM's own lines around the first one name vLLM
        package = getattr(cause, "name", None) or package
        cause = cause.__cause__ or cause.__context__
    return (
        f"this server's environment has no package {package}, which decodes it: the operator adds "
        "it with VLLM_EXTRAS=audio when building the environment"
    )


def _is_empty(loaded: Any) -> bool:
    """Return whether audio, ``(samples, rate)``, or a video, ``(frames, ...)``, holds nothing."""
    media = getattr(loaded, "media", loaded)
    content = media[0] if isinstance(media, tuple) else None
    return content is not None and 0 in content.shape
