"""The life of the Rust front end's process, with a stand-in for the binary."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import signal
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from tests.e2e.tls import self_signed
from triton_vllm.errors import EngineDownError, SettingsError
from triton_vllm.limits.admission import OPENAI, Admission
from triton_vllm.limits.drain import Drain
from triton_vllm.openai_api import rust_server, rust_settings
from triton_vllm.openai_api.rust_server import RustServer
from triton_vllm.openai_api.unavailable import UnavailableServer
from triton_vllm.topology import child_process
from triton_vllm.topology.front_ends import EngineAddresses
from triton_vllm.topology.load_balancing import NoLoadBalancer

pytestmark = pytest.mark.timeout(60)
PROGRAM = Path(__file__).with_name("fake_rust.py")


class FakeFrontEnd:
    """Says how the stand-in is started, and counts what it is asked to do with an engine."""

    def __init__(self, *options: str) -> None:
        self.options = options
        self.variables: dict[str, str] = {}
        self.engines = 0
        self.aborted = 0
        self.abort: Callable[[], Coroutine[Any, Any, None]] = lambda: asyncio.sleep(0)

    async def settle_library(self, llm: Any) -> None:
        self.engines += 1

    async def abort_requests(self, llm: Any) -> None:
        self.aborted += 1
        await self.abort()

    @contextlib.contextmanager
    def command(
        self, llm: Any, addresses: EngineAddresses, start: int, port: int
    ) -> Iterator[tuple[list[str], list[int]]]:
        for address in (addresses.rust_inputs[start], addresses.rust_output):
            Path(address.removeprefix("ipc://")).touch()  # as a bound socket's
        yield [sys.executable, str(PROGRAM), str(port), *self.options], [port]


class Port:
    """A served port, and what a test does to it."""

    def __init__(self, front_end: Any, seconds: float, folder: str) -> None:
        self.admission = Admission(0, 0, lambda: 0, NoLoadBalancer())
        self.drain = Drain(self.admission, {OPENAI: seconds}, "vllm")
        self.front_end = front_end
        self.folder = folder
        self.bound = socket.create_server(("127.0.0.1", 0))
        why = lambda: rust_settings._why(self.admission)  # noqa: E731
        unavailable = UnavailableServer(self.bound, None, why)
        self.server = RustServer(
            "vllm", "/m", front_end, ("sk-1",), self.drain, self.bound, unavailable
        )

    async def serve(self, starts: int = 3) -> None:
        inputs = [f"ipc://{self.folder}/{n}" for n in range(starts)]
        addresses = EngineAddresses([], [], None, [], inputs, f"ipc://{self.folder}/output")
        llm: Any = object()
        await self.server.serve(llm, addresses)

    async def get(self, path: str = "/") -> tuple[int, str]:
        """Ask on a connection of its own."""
        async with httpx.AsyncClient(timeout=20) as client:
            url = f"http://127.0.0.1:{self.bound.getsockname()[1]}{path}"
            answer = await client.get(url)
        return answer.status_code, answer.text

    async def pid(self) -> int:
        status, text = await self.get()
        assert status == 200, text
        return int(text.split()[0])

    async def is_up(self) -> bool:
        return (await self.get())[0] == 200

    async def refusal(self) -> str:
        """Wait until the port answers 503; return its reason."""
        while (answer := await self.get())[0] != 503:  # noqa: ASYNC110 (a process)
            await asyncio.sleep(0.02)
        return answer[1]


@contextlib.asynccontextmanager
async def port(
    monkeypatch: pytest.MonkeyPatch, *options: str, seconds: float = 5
) -> AsyncIterator[Port]:
    monkeypatch.setenv(child_process.STUB_PID, str(os.getpid()))
    with tempfile.TemporaryDirectory() as folder:
        made = Port(FakeFrontEnd(*options), seconds, folder)
        try:
            yield made
        finally:
            if made.bound.fileno() >= 0:
                await made.server.shut_down()
        assert [] == list(Path(folder).iterdir())


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop of its own."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))

    return run


async def until(condition: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    """Ask again and again, until it holds."""
    while not await condition():  # noqa: ASYNC110 (a process)
        await asyncio.sleep(0.02)


async def is_another(served: Port, pid: int) -> bool:
    """Return whether another process serves."""
    status, text = await served.get()
    return status == 200 and int(text.split()[0]) != pid


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@in_a_loop
async def test_a_process_serves_and_has_the_key_in_its_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its command line, which others can read, has no key."""
    async with port(monkeypatch) as served:
        await served.serve()
        status, text = await served.get()
        assert (200, "sk-1") == (status, text.split()[1])
        pid = int(text.split()[0])
        assert b"sk-1" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert 1 == served.front_end.engines
    assert not is_alive(pid)


@in_a_loop
async def test_a_killed_process_is_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As often as the engine has addresses; then the port says that there is no server."""
    async with port(monkeypatch) as served:
        await served.serve(starts=2)
        first = await served.pid()
        os.kill(first, signal.SIGKILL)
        await until(lambda: is_another(served, first))
        second = await served.pid()
        assert "exited with -9, and its requests with it" in caplog.text
        assert 1 == served.front_end.aborted
        os.kill(second, signal.SIGKILL)
        assert "no server behind this port" in await served.refusal()
        assert "no restart of vLLM's Rust front end is left" in caplog.text
        assert 2 == served.front_end.aborted


@in_a_loop
async def test_an_engine_that_does_not_abort_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The process is replaced, and the log says that its requests may go on."""

    async def fail() -> None:
        raise EngineDownError("gone")

    monkeypatch.setattr(rust_server, "_ABORT_SECONDS", 0.05)
    async with port(monkeypatch) as served:
        await served.serve()
        for abort, why in ((fail, "gone"), (lambda: asyncio.sleep(60), "no answer")):
            caplog.clear()
            served.front_end.abort = abort
            killed = await served.pid()
            os.kill(killed, signal.SIGKILL)
            await until(lambda killed=killed: is_another(served, killed))  # type: ignore[misc]
            assert f"the engine may go on with them: {why}" in caplog.text


@in_a_loop
async def test_a_process_that_does_not_start_fails_the_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With its exit code, in one line."""
    async with port(monkeypatch, "fail") as served:
        with pytest.raises(SettingsError, match="exited with 3"):
            await served.serve()


@in_a_loop
async def test_a_start_without_a_descriptor_fails_the_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the cause, and the process that cannot be watched is ended."""
    opened: list[int] = []

    def pidfd_open(pid: int) -> int:
        opened.append(pid)
        raise OSError(errno.EMFILE, "Too many open files")

    async with port(monkeypatch) as served:
        monkeypatch.setattr(os, "pidfd_open", pidfd_open)
        with pytest.raises(SettingsError, match=r"OSError: .* Too many open files"):
            await served.serve()
    assert not is_alive(opened[0])


@in_a_loop
async def test_a_port_without_a_descriptor_for_clients_waits() -> None:
    """It tries again in a second, and does not keep the event loop busy until then."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        tries: list[None] = []

        def accept() -> Any:
            tries.append(None)
            raise OSError(errno.EMFILE, "Too many open files")

        listener: Any = SimpleNamespace(accept=accept, fileno=bound.fileno)
        server = UnavailableServer(listener, None, lambda: "why")
        server.open()
        with socket.create_connection(bound.getsockname()):
            await asyncio.sleep(0.5)
            assert 1 == len(tries)
            while len(tries) < 2:  # noqa: ASYNC110 (it is the one that waits)
                await asyncio.sleep(0.05)
        server.close()


@in_a_loop
async def test_a_dead_engine_takes_the_process_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients are told so until there is another engine, with which a new process serves."""
    async with port(monkeypatch) as served:
        await served.serve()
        pid = await served.pid()
        served.admission.down = EngineDownError("the engine died and is being restarted")
        served.server.suspend()
        assert "the engine died and is being restarted" in await served.refusal()
        assert not is_alive(pid)
        await served.serve()
        served.admission.down = None
        assert pid != await served.pid()


@in_a_loop
async def test_a_drain_lets_requests_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """New connections are refused meanwhile."""
    async with port(monkeypatch) as served:
        await served.serve()
        slow = asyncio.create_task(served.get("/slow"))
        await asyncio.sleep(0.3)
        served.drain.begin()
        assert "unloaded" in await served.refusal()
        assert 200 == (await slow)[0]


@in_a_loop
async def test_a_drain_that_is_cancelled_starts_another_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model stays after all."""
    async with port(monkeypatch) as served:
        await served.serve()
        pid = await served.pid()
        served.drain.begin()
        await served.refusal()
        served.drain.cancel()
        await until(served.is_up)
        assert pid != await served.pid()


@in_a_loop
async def test_a_process_that_does_not_drain_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the drain's time and a second."""
    async with port(monkeypatch, seconds=0.1) as served:
        await served.serve()
        pid = await served.pid()
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        await served.server.shut_down()
        assert not is_alive(pid)
        assert time.monotonic() - began < 10
        assert -1 == served.bound.fileno(), "the port is closed"


@in_a_loop
async def test_a_port_with_tls_refuses_with_its_certificate(tmp_path: Path) -> None:
    """Its clients can read why."""
    certificate, key = self_signed(tmp_path)
    args = SimpleNamespace(ssl_certfile=str(certificate), ssl_keyfile=str(key))
    with socket.create_server(("127.0.0.1", 0)) as bound:
        bound.setblocking(False)
        server = UnavailableServer(
            bound, rust_settings._certificate(args, "/m"), lambda: "restarts"
        )
        server.open()
        trust = ssl.create_default_context(cafile=str(certificate))
        async with httpx.AsyncClient(verify=trust) as client:
            answer = await client.get(f"https://127.0.0.1:{bound.getsockname()[1]}/v1/models")
        server.close()
    assert (503, "restarts") == (answer.status_code, answer.json()["error"]["message"])
    assert rust_settings._certificate(SimpleNamespace(ssl_certfile=None), "/m") is None
