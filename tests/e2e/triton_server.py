"""A real tritonserver for the tests: its model repository, its start, its requests, its end."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tritonclient.grpc as grpcclient

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("TRITON_VLLM_CACHE", ROOT / ".cache"))
TRITON = Path(os.environ.get("TRITON_SERVER_DIR", CACHE / "triton/pytriton/tritonserver"))
CHECKPOINT = CACHE / "models/SmolLM2-135M-Instruct"
EXECUTION_ENV = Path(
    os.environ.get("TRITON_VLLM_ENV", CACHE / "model_repository/vllm/vllm_env")
).absolute()
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

# A server has a process group of its own, by which its whole process tree is known, orphans
# included. Not a session of its own: Linux schedules each as a group (autogroup), and then an
# engine that takes all cores kept this process from running for up to a minute (Linux 6.18).
OWN_GROUP: dict[str, Any] = (
    {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}
)

ENGINE_ARGS: dict[str, Any] = {
    "model": str(CHECKPOINT),
    "dtype": "bfloat16",
    "enforce_eager": True,
    "max_model_len": 512,
    "kv_cache_memory_bytes": 268435456,
    "max_num_seqs": 16,
    "enable_log_requests": True,
}


def add_model(repository: Path, name: str = "vllm", *, engine_args: str | None = None) -> Path:
    """Copy the model, with the execution environment in place and a small engine; return it.

    ``engine_args`` is the content of vllm_engine_args.json, default the arguments of these tests.
    """
    model = repository / name
    ignored = shutil.ignore_patterns("__pycache__", "vllm_env*", "triton_python_backend_stub")
    shutil.copytree(ROOT / "model_repository/vllm", model, ignore=ignored)
    config = model / "config.pbtxt"
    text = config.read_text()
    packed = "$$TRITON_MODEL_DIRECTORY/vllm_env.tar.gz"
    assert packed in text, "config.pbtxt names the environment in a way that these tests don't know"
    config.write_text(text.replace(packed, str(EXECUTION_ENV)))
    content = json.dumps(ENGINE_ARGS) if engine_args is None else engine_args
    (model / "vllm_engine_args.json").write_text(content)
    return model


def use_front_ends(model: Path, count: int) -> None:
    """Let several front ends serve a model."""
    config = model / "config.pbtxt"
    text = config.read_text()
    assert "count: 1" in text
    config.write_text(text.replace("count: 1", f"count: {count}"))


def use_gpus(model: Path, devices: str) -> None:
    """Place the instances of a model on sets of GPUs: "0,1;2,3"."""
    with (model / "config.pbtxt").open("a") as config:
        config.write(
            f'parameters {{ key: "gpu_device_ids" value {{ string_value: "{devices}" }} }}\n'
        )


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
        return [p for p in _group_of(self.process.pid) if title in _title(p)]

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
        return [_title(process) for process in left]


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


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback interface that are free now, and never the same one twice.

    From below those that Linux gives to outgoing connections (32768 and up): a server takes its
    port only when its models are loaded, a minute later. The workers of pytest-xdist draw from
    different ports.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = _UNUSED_PORTS.pop()
        with socket.socket() as held, contextlib.suppress(OSError):
            held.bind(("127.0.0.1", port))
            ports.append(port)
    return ports


def _ports_of_this_worker() -> list[int]:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ports = range(12_000, 32_000)[worker::workers]
    return random.sample(ports, len(ports))


_UNUSED_PORTS = _ports_of_this_worker()


def _group_of(leader: int) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) or str(process.name())
    except psutil.Error:
        return ""


@dataclass(frozen=True, slots=True)
class Response:
    """One gRPC message, with when it came (seconds after the request)."""

    seconds: float
    outputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    final: bool = False
    error: str = ""


class Request:
    """One streaming gRPC request to a model of our server, on a connection of its own.

    Use as a context manager; leaving it cancels a request that is still running.
    """

    def __init__(
        self,
        server: TritonServer,
        inputs: Mapping[str, Any],
        *,
        outputs: tuple[str, ...] = (),
        parameters: Mapping[str, Any] | None = None,
        model: str = "vllm",
        timeout: int | None = None,
    ) -> None:
        """``timeout`` is Triton's, in microseconds."""
        self._responses: queue.SimpleQueue[Response] = queue.SimpleQueue()
        self._client = grpcclient.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
        self.sent = time.monotonic()  # before anything can come, be it an error
        self._client.start_stream(self._receive)
        self._client.async_stream_infer(
            model,
            [tensor(name, value) for name, value in inputs.items()],
            outputs=[grpcclient.InferRequestedOutput(name) for name in outputs] or None,
            request_id=uuid.uuid4().hex[:8],
            enable_empty_final_response=True,
            parameters=dict(parameters or {}),
            timeout=timeout,
        )

    def __enter__(self) -> Request:
        return self

    def __exit__(self, *exception: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Cancel the request at the server, as a client that leaves does."""
        self._client.stop_stream(cancel_requests=True)
        self._client.close()

    def _receive(self, result: Any, error: Any) -> None:
        seconds = time.monotonic() - self.sent
        if error is not None:
            self._responses.put(Response(seconds, error=str(error.message())))
            return
        message = result.get_response()
        outputs = {
            output.name: tuple(
                element.decode() if isinstance(element, bytes) else str(element)
                for element in result.as_numpy(output.name).reshape(-1)
            )
            for output in message.outputs
        }
        final = message.parameters["triton_final_response"].bool_param
        self._responses.put(Response(seconds, outputs, final))

    def next(self, seconds: float = 60) -> Response:
        """Wait for one response."""
        return self._responses.get(timeout=seconds)

    def all(self, seconds: float = 60) -> list[Response]:
        """Return all responses (that ``next`` has not), once Triton has ended the stream.

        It does so after the model's FINAL flag, and after nothing else.
        """
        ending = threading.Thread(target=self._client.stop_stream, daemon=True)
        ending.start()
        ending.join(seconds)
        assert not ending.is_alive(), f"no FINAL flag within {seconds} s"
        responses = []
        while not self._responses.empty():
            responses.append(self._responses.get())
        return responses


def tensor(name: str, value: Any) -> Any:
    """Return a BOOL, INT64 or BYTES input of shape [1], or of a list's length."""
    values = value if isinstance(value, list) else [value]
    datatype, dtype = _DATATYPES.get(type(values[0]), ("BYTES", np.object_))
    encoded = [v.encode() if isinstance(v, str) else v for v in values]
    made = grpcclient.InferInput(name, [len(values)], datatype)
    made.set_data_from_numpy(np.array(encoded, dtype=dtype))
    return made


_DATATYPES: dict[type, tuple[str, type]] = {bool: ("BOOL", np.bool_), int: ("INT64", np.int64)}


def ask(
    server: TritonServer, inputs: Mapping[str, Any], seconds: float = 60, **how: Any
) -> list[Response]:
    """Send one request and return all its responses."""
    with Request(server, inputs, **how) as request:
        return request.all(seconds)


def refusal(
    server: TritonServer,
    inputs: Mapping[str, Any],
    model: str = "vllm",
    parameters: Mapping[str, Any] | None = None,
) -> tuple[str, str]:
    """Send a request that is refused; return the name of the gRPC status, and the message.

    A stream carries no status unless it is asked to: then Triton ends it with the error's own. Over
    HTTP Triton answers 400 to whatever error a model has (docs/operations/reliability.md).
    """
    ends: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with grpcclient.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        client.start_stream(
            lambda result, error: ends.put(error), headers={"triton_grpc_error": "true"}
        )
        made = [tensor(name, value) for name, value in inputs.items()]
        client.async_stream_infer(model, made, parameters=dict(parameters or {}))
        error = ends.get(timeout=60)
    assert error is not None, "it was answered"
    return str(error.status()).removeprefix("StatusCode."), str(error.message())


def sampling(**parameters: Any) -> str:
    """Return greedy sampling parameters as the tensor's JSON: the same text each time."""
    return json.dumps({"temperature": 0, "max_tokens": 8, **parameters})


def generate(server: TritonServer, prompt: str, **parameters: Any) -> str:
    """Return the greedy continuation of a prompt, not streamed, without the prompt."""
    inputs = {
        "text_input": prompt,
        "exclude_input_in_output": True,
        "sampling_parameters": sampling(**parameters),
    }
    (response,) = ask(server, inputs)
    assert not response.error, response.error
    ((text,),) = response.outputs.values()
    return text


def start_requests(
    server: TritonServer, stack: contextlib.ExitStack, *max_tokens: int
) -> list[Request]:
    """Start a streamed request for each number of tokens; return when all are running."""
    requests = []
    for number in max_tokens:
        parameters = sampling(max_tokens=number, ignore_eos=True)
        inputs = {
            "text_input": "Count to a thousand:",
            "stream": True,
            "sampling_parameters": parameters,
        }
        requests.append(stack.enter_context(Request(server, inputs)))
    for request in requests:
        assert not request.next().error
    return requests


def kill_stub(stub: psutil.Process) -> None:
    """Kill a front end that has had a moment of rest.

    One that dies inside a lock of Triton's shared memory takes tritonserver 24.10 along.
    """
    time.sleep(1)
    stub.send_signal(signal.SIGKILL)


def assert_ended_once(request: Request) -> None:
    """A request in flight got the rest of its text, and its stream has ended."""
    responses = request.all()
    last = responses[-1]
    assert last.final
    assert not last.error
    assert [] == [r for r in responses[:-1] if r.final or r.error]


def await_restart(
    server: TritonServer, front_ends: int, seconds: float = LOAD_SECONDS, since: int = 0
) -> None:
    """Wait until each front end has said, after ``since``, that it has its engine back."""
    deadline = time.monotonic() + seconds
    while server.log.read_bytes()[since:].count(b": engine restarted (") < front_ends:
        assert time.monotonic() < deadline, f"no restart within {seconds} s: {server.log_tail()}"
        time.sleep(0.2)


def check_prerequisites() -> None:
    """Raise with a line for each thing that scripts/test.sh would have put in place."""
    missing = [
        str(path)
        for path in (TRITON / "bin/tritonserver", EXECUTION_ENV / "bin/activate", CHECKPOINT)
        if not path.exists()
    ]
    if missing:
        raise RuntimeError(f"run scripts/test.sh: missing {', '.join(missing)}")
    assert sys.platform == "linux", "Triton runs on Linux"
