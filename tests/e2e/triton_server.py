"""A real tritonserver for the tests: its start, its log, its HTTP API, its models and its end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import tritonclient.grpc as grpcclient

from tests.e2e.model_folder import ROOT, TRITON
from tests.e2e.processes import OWN_GROUP, free_ports, group_of, title_of

LOGS = ROOT / ".cache/test-logs"

HAS_GPU = shutil.which("nvidia-smi") is not None  # where vLLM's engines run on it

STARTS = 3  # where Triton itself fails
START_SECONDS = 400  # vLLM takes 40 to 60 on two idle cores
LOAD_SECONDS = 400
HANG_SECONDS = 30
# Limits for a machine that has other work, too: on an idle one they are a second or less.
TOLD_SECONDS = 6.0  # until clients hear of a death
GONE_SECONDS = 20.0  # until processes that were ended are gone
EXIT_TIMEOUT_SECONDS = 30  # what Triton gives the models, its own default
STOP_SECONDS = EXIT_TIMEOUT_SECONDS + 15


class TritonFaultError(RuntimeError):
    """Triton itself failed to start, for a reason that is gone at the next try.

    On an overloaded machine Triton 24.10 gives up on a stub that shows no sign of life for a
    second, and then waits for its end for ever; or it aborts when it cannot lock its shared memory
    within ten (docs/known-issues.md). And each version takes its ports only after the models have
    loaded, when another program may have them.
    """


class TritonServer:
    """A tritonserver of our own on loopback, in explicit model control mode."""

    def __init__(
        self,
        repository: Path,
        name: str,
        *models: str,
        options: tuple[str, ...] = (),
        variables: Mapping[str, str] | None = None,
        prefix: tuple[str, ...] = (),
    ) -> None:
        """Start and wait until ``models`` are ready. Raises with the log's tail if they do not.

        ``options`` are further ones of tritonserver, ``variables`` of its environment; ``prefix``
        is a command that becomes what follows it.
        """
        self.repository = repository
        self._models, self._options, self._prefix = models, options, prefix
        self._connection: Any = None
        LOGS.mkdir(parents=True, exist_ok=True)
        self.log = LOGS / f"{name}.log"
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        environment |= variables or {}
        for again in reversed(range(STARTS)):
            self.http_port, self.grpc_port, self.metrics_port = free_ports(3)
            self._shm_prefix = f"triton_vllm_test_{os.getpid()}_{self.http_port}_"
            try:
                self._start(self._command(), environment)
                break
            except TritonFaultError as fault:
                if not again:
                    raise
                print(f"tritonserver is started again: {fault}", file=sys.stderr)

    def _command(self) -> list[str]:
        return [
            *self._prefix,
            str(TRITON / "bin/tritonserver"),
            f"--model-store={self.repository}",
            f"--backend-directory={TRITON / 'backends'}",
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in self._models),
            f"--http-port={self.http_port}",
            f"--grpc-port={self.grpc_port}",
            "--http-address=127.0.0.1",
            "--grpc-address=127.0.0.1",
            f"--metrics-port={self.metrics_port}",
            "--metrics-address=127.0.0.1",
            "--log-info=true",
            f"--exit-timeout-secs={EXIT_TIMEOUT_SECONDS}",
            f"--backend-config=python,shm-region-prefix-name={self._shm_prefix}",
            *self._options,
        ]

    def _start(self, command: list[str], environment: Mapping[str, str]) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, **OWN_GROUP
            )
        try:
            self._await_ready()
        except BaseException:
            self.kill()
            raise
        self._stay_connected()

    def _stay_connected(self) -> None:
        """Keep a gRPC connection open, which all clients of this process then share.

        On a machine with a load of ten a new connection takes the real server seconds.
        """
        self._connection = grpcclient.InferenceServerClient(f"127.0.0.1:{self.grpc_port}")
        with contextlib.suppress(grpcclient.InferenceServerException):  # one that wants TLS, say
            self._connection.is_server_live(client_timeout=30)

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and (ended := self.process.poll()) is None:
            with contextlib.suppress(OSError):
                self.get("v2/health/ready")
                return
            if self._hangs():
                raise TritonFaultError("a model that is ready was not taken")
            time.sleep(0.2)
        if ended is not None and ended < 0:
            raise TritonFaultError(f"it was killed by signal {-ended}")
        if ended and self._lost_a_port():
            raise TritonFaultError("another program took one of its ports while the models loaded")
        what = f"not ready in {START_SECONDS} s" if ended is None else f"ended with {ended}"
        self.show_stacks()
        raise RuntimeError(f"tritonserver {what}; {self.log} ends with:\n{self.log_tail(120)}")

    def _lost_a_port(self) -> bool:
        ports = (self.http_port, self.grpc_port, self.metrics_port)
        return any(f":{port}' already in use" in self.log_tail(200) for port in ports)

    def _hangs(self) -> bool:
        """Return whether a model's initialize has ended, and the log with it."""
        silent = time.time() - self.log.stat().st_mtime
        return silent > HANG_SECONDS and ": ready (" in self.log_tail(1)

    def show_stacks(self) -> None:
        """Make each stub write to the log where its threads stand."""
        for stub in self.processes("triton_python_backend_stub"):
            stub.send_signal(signal.SIGUSR1)
        time.sleep(1)

    def log_tail(self, lines: int = 40) -> str:
        """Return the end of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def log_size(self) -> int:
        """Return how long the log is now, to look only at what follows."""
        return self.log.stat().st_size

    def await_log(self, text: str, *, since: int = 0, seconds: float = 30) -> str:
        """Return the first line after ``since`` that holds ``text``; raise if none comes."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            new = self.log.read_bytes()[since:].decode(errors="replace")
            for line in new.splitlines():
                if text in line:
                    return line
            time.sleep(0.1)
        raise AssertionError(f"not in {self.log} within {seconds} s: {text}")

    def get(self, path: str) -> bytes:
        """GET a path of the HTTP port."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/{path}", timeout=5) as r:
            return bytes(r.read())

    def metrics(self) -> str:
        """Return what a Prometheus server would scrape."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=5) as response:
            return str(response.read().decode())

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        seconds: float = 60,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, str]:
        """POST a JSON object; return the status and the whole body."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http_port}/{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **(headers or {})},
        )
        try:
            with urllib.request.urlopen(request, timeout=seconds) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def load(self, model: str, seconds: float = LOAD_SECONDS) -> str:
        """Load a model; return Triton's error, empty when it is ready.

        Raises TimeoutError, and TritonFaultError where it is Triton that has stopped.
        """
        try:
            status, body = self.post(f"v2/repository/models/{model}/load", {}, seconds)
        except TimeoutError:
            if self._hangs():
                raise TritonFaultError(f"{model} is ready and was not taken") from None
            raise
        return "" if status == 200 else str(json.loads(body)["error"])

    def unload(self, model: str) -> None:
        """Ask Triton to unload a model, which goes on after the answer."""
        status, body = self.post(f"v2/repository/models/{model}/unload", {})
        assert status == 200, body

    def state_of(self, model: str) -> str:
        """Return a model's state, such as READY, UNLOADING or UNAVAILABLE."""
        _, body = self.post("v2/repository/index", {})
        states = {entry["name"]: entry.get("state", "") for entry in json.loads(body)}
        return str(states[model])

    def await_state(self, model: str, state: str, seconds: float = 90) -> None:
        """Wait until a model is in a state."""
        deadline = time.monotonic() + seconds
        while self.state_of(model) != state:
            assert time.monotonic() < deadline, f"{model} is {self.state_of(model)}, not {state}"
            time.sleep(0.1)

    def processes(self, title: str = "") -> list[psutil.Process]:
        """Return the live processes of this server, whoever their parent is now.

        ``title`` is a part of their command line: all are found by an empty one.
        """
        return [p for p in group_of(self.process.pid) if title in title_of(p)]

    def terminate(self) -> int:
        """Stop the server as an operator does; return its exit code. Raises if it hangs."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)

    def kill(self) -> None:
        """End whatever is left, by force."""
        if self._connection is not None:
            self._connection.close()
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        for left in Path("/dev/shm").glob(f"{self._shm_prefix}*"):
            left.unlink()

    def stop(self) -> None:
        """Stop the server; raise unless it exits with 0 and leaves nothing behind."""
        try:
            code = self.process.poll()
            code = self.terminate() if code is None else code
            left = self.await_no_processes(GONE_SECONDS)
            shared_memory = sorted(Path("/dev/shm").glob(f"{self._shm_prefix}*"))
        finally:
            self.kill()
        assert (code, left, shared_memory) == (0, [], []), self.log_tail()

    def await_no_processes(self, seconds: float, title: str = "") -> list[str]:
        """Wait until no process with ``title`` is left; return the titles of those that stay."""
        deadline = time.monotonic() + seconds
        while (left := self.processes(title)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return [title_of(process) for process in left]


@contextlib.contextmanager
def running(repository: Path, name: str, *models: str, **how: Any) -> Iterator[TritonServer]:
    """Run a server, and end it in every case."""
    server = TritonServer(repository, name, *models, **how)
    try:
        yield server
    except BaseException:
        server.kill()
        raise
    server.stop()


def await_restart(
    server: TritonServer, front_ends: int, seconds: float = LOAD_SECONDS, since: int = 0
) -> None:
    """Wait until each front end has said, after ``since``, that it has its engine back."""
    deadline = time.monotonic() + seconds
    while server.log.read_bytes()[since:].count(b": engine restarted (") < front_ends:
        assert time.monotonic() < deadline, f"no restart within {seconds} s: {server.log_tail()}"
        time.sleep(0.2)
