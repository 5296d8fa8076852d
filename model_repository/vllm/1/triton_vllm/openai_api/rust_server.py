"""OpenAI-compatible HTTP by vLLM's Rust front end, a process beside the model's front ends.

    vllm-rs frontend ── ZeroMQ ── EngineCore

It is client 0 of the engine, and a child of the leading front end, which keeps the listening socket
and answers there while the process does not. A process that dies is replaced without harm to the
engine, which greets each of its input addresses once: every start has one of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing.spawn
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from triton_vllm.errors import SettingsError, one_line
from triton_vllm.limits.admission import OPENAI
from triton_vllm.limits.drain import Drain
from triton_vllm.openai_api.server import NoOpenAIServer
from triton_vllm.openai_api.unavailable import UnavailableServer
from triton_vllm.topology import child_process
from triton_vllm.topology.front_ends import EngineAddresses

if TYPE_CHECKING:
    from triton_vllm.vllm_api import api as vllm_api
    from triton_vllm.vllm_api.rust_front_end import RustFrontEnd

logger = logging.getLogger(__name__)

_START_SECONDS = 600.0  # it may download a tokenizer
_LONGEST_PAUSE_SECONDS = 31.0  # before a restart; the first one comes at once
_END_SECONDS = 1.0  # beyond its own deadline
_ABORT_SECONDS = 5.0
_BACKLOG = 2048


class RustServer(NoOpenAIServer):
    """The Rust front end of one engine. Its methods belong to the engine's event loop."""

    def __init__(
        self,
        name: str,
        where: str,
        front_end: RustFrontEnd,
        keys: tuple[str, ...],
        drain: Drain,
        port: socket.socket,
        unavailable: UnavailableServer,
    ) -> None:
        """Use ``rust_server``."""
        super().__init__()
        self._name = name
        self._where = where
        self._front_end = front_end
        # In its environment: all users of the machine can read a command line.
        self._environment = os.environ | front_end.variables | {"VLLM_API_KEY": "".join(keys)}
        self._drain = drain
        self._port = port
        self._unavailable = unavailable
        self._engine: tuple[vllm_api.AsyncLLM, EngineAddresses] | None = None
        self._starts = 0  # with this engine
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper: asyncio.Task[None] | None = None
        drain.on_change = self._drains

    async def serve(  # noqa: D102 (as in NoOpenAIServer)
        self, llm: vllm_api.AsyncLLM, addresses: EngineAddresses | None
    ) -> None:
        assert addresses is not None, "as the engine has several clients"
        await self._front_end.settle_library(llm)
        self._port.setblocking(False)  # as two processes accept, of which one comes too late
        self._port.listen(_BACKLOG)
        self._engine, self._starts = (llm, addresses), 0
        if not self._drain.has_begun:
            await self._keep()
            host, number = self._port.getsockname()[:2]
            logger.info(
                f"{self._name}: vLLM's Rust front end serves OpenAI-compatible HTTP on "
                f"{host}:{number}, without this package's limits (docs/openai.md)"
            )

    async def _keep(self) -> None:
        """Start the process, and the task that replaces it; return when it serves."""
        await self._stop()
        serves = asyncio.get_running_loop().create_future()
        self._keeper = asyncio.create_task(self._replace(serves))
        try:
            await serves
        except asyncio.CancelledError:
            self._keeper.cancel()
            raise

    async def _replace(self, serves: asyncio.Future[None]) -> None:
        """Run one process after the other, as long as the engine has an address for it."""
        try:
            if self._engine is None:  # it has died since
                return
            llm, addresses = self._engine
            first = self._starts
            for start in range(first, len(addresses.rust_inputs)):
                if start > first:
                    self._unavailable.open()
                    await asyncio.sleep(min(2.0 ** (start - 1), _LONGEST_PAUSE_SECONDS) - 1)
                    if self._drain.has_begun:
                        return
                self._starts += 1
                self._unavailable.close()
                async with self._running(llm, addresses, start) as exited:
                    if await self._accepts(exited):
                        if serves.done():
                            logger.warning(f"{self._name}: vLLM's Rust front end serves again")
                        else:
                            serves.set_result(None)
                    code = await exited
                if self._drain.has_begun:
                    if not serves.done():
                        serves.set_result(None)
                    return
                exits = f"vLLM's Rust front end exited with {code}"
                if not serves.done():
                    serves.set_exception(SettingsError(f"{self._where}: {exits}: see its lines"))
                    return
                logger.error(f"{self._name}: {exits}, and its requests with it; it is restarted")
                await self._abort_requests(llm)
            logger.error(f"{self._name}: no restart of vLLM's Rust front end is left")
        except Exception as error:  # no descriptor or memory for it, say
            why = f"vLLM's Rust front end: {type(error).__name__}: {one_line(error)}"
            logger.error(f"{self._name}: {why}")
            if not serves.done():
                serves.set_exception(SettingsError(f"{self._where}: {why}"))
        finally:
            serves.cancel()
            self._unavailable.open()

    async def _abort_requests(self, llm: vllm_api.AsyncLLM) -> None:
        """Have the engine abort the requests of the process that died."""
        aborting = asyncio.ensure_future(self._front_end.abort_requests(llm))
        try:
            await asyncio.wait([aborting], timeout=_ABORT_SECONDS)
            why = aborting.exception() if aborting.done() else TimeoutError("no answer")
            if why:
                logger.warning(f"{self._name}: the engine may go on with them: {one_line(why)}")
        finally:
            aborting.cancel()

    @contextlib.asynccontextmanager
    async def _running(
        self, llm: vllm_api.AsyncLLM, addresses: EngineAddresses, start: int
    ) -> AsyncIterator[asyncio.Future[int]]:
        """Run the process; yield the future of its exit code. It has ended after the context."""
        loop = asyncio.get_running_loop()
        with self._front_end.command(llm, addresses, start, self._port.fileno()) as command:
            self._process = process = self._start(*command)
        exited: asyncio.Future[int] = loop.create_future()

        def exits(pidfd: int) -> None:
            loop.remove_reader(pidfd)
            code = process.wait()
            if not exited.done():
                exited.set_result(code)

        with contextlib.ExitStack() as stack:
            for address in (addresses.rust_inputs[start], addresses.rust_output):
                stack.callback(Path(address.removeprefix("ipc://")).unlink, missing_ok=True)
            stack.callback(process.wait)
            stack.callback(process.kill)
            pidfd = os.pidfd_open(process.pid)
            stack.callback(os.close, pidfd)
            loop.add_reader(pidfd, exits, pidfd)
            stack.callback(loop.remove_reader, pidfd)
            try:
                yield exited
            finally:
                self._process = None

    def _start(self, command: list[str], descriptors: list[int]) -> subprocess.Popen[bytes]:
        """Start the process, in the event loop's thread: when that ends, it is killed."""
        python = os.fsdecode(multiprocessing.spawn.get_executable())
        return subprocess.Popen(
            [python, "-I", "-S", child_process.__file__, *command],
            pass_fds=descriptors,
            env=self._environment,
            stdin=subprocess.DEVNULL,
        )

    async def _accepts(self, exited: asyncio.Future[int]) -> bool:
        """Wait until the process takes a connection; return False if it exits or hangs before."""
        probing = asyncio.create_task(_probe(*self._port.getsockname()[:2]))
        waiting = (probing, exited)
        await asyncio.wait(waiting, timeout=_START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        accepts = probing.done() and not exited.done()
        probing.cancel()
        if not accepts and self._process is not None:
            self._process.kill()
        return accepts

    def suspend(self) -> None:
        """End the process at once, and its requests with it: the engine has died."""
        self._engine = None
        if self._keeper is not None:
            self._keeper.cancel()

    def _drains(self, begun: bool) -> None:
        """Have the process exit when it has answered what it has accepted; or start another."""
        if begun and self._process is not None:
            self._process.terminate()  # it takes no more connections
            self._unavailable.open()
        elif not begun and self._engine is not None and (not self._keeper or self._keeper.done()):
            serves = asyncio.get_running_loop().create_future()
            serves.set_result(None)  # nobody waits for it: a start that fails is tried again
            self._keeper = asyncio.create_task(self._replace(serves))

    async def shut_down(self) -> None:  # noqa: D102 (as in NoOpenAIServer)
        self._drain.begin(final=True)
        if self._keeper is not None:
            await asyncio.wait([self._keeper], timeout=self._drain.time_left(OPENAI) + _END_SECONDS)
        await self._stop()
        self._unavailable.close()
        self._port.close()

    async def _stop(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)


async def _probe(host: str, port: int) -> None:
    """Wait until a process takes a connection and answers, or closes it, as with TLS."""
    reader, writer = await asyncio.open_connection(host, port)
    with contextlib.closing(writer), contextlib.suppress(ConnectionError):
        writer.write(b"GET /health HTTP/1.0\r\n\r\n")
        await reader.read(1)
