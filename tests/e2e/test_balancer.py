"""deploy/nginx/replicas.conf in a real nginx: who gets which request. The replicas only say who."""

from __future__ import annotations

import contextlib
import http.server
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import yaml
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.e2e.balancer import CONFIGURATION, KEY, Balancer, Replica, balancing
from tests.e2e.model_folder import ROOT

PATHS = ("/v2/models/vllm/generate", "/v1/completions")


class Named(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Triton's gRPC service, of which only the server's name can be asked."""

    def __init__(self, name: str) -> None:
        self._name = name

    def ServerMetadata(self, request: object, context: object) -> object:  # noqa: N802
        return service_pb2.ServerMetadataResponse(name=self._name)


class Echo:
    """A replica that answers with its name: HTTP on Triton's port and OpenAI's, and gRPC."""

    def __init__(self, name: str) -> None:
        self.status = 200
        self.paths: list[str] = []
        self.kinds: list[str] = []
        echo = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # the name that http.server calls
                self.rfile.read(int(self.headers["Content-Length"]))
                echo.paths.append(self.path)
                echo.kinds.append(self.headers["Content-Type"])
                self.send_response(echo.status)
                self.send_header("Content-Length", str(len(name)))
                self.end_headers()
                self.wfile.write(name.encode())

            def log_message(self, *arguments: object) -> None:
                pass

        def serve() -> http.server.ThreadingHTTPServer:
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
            return server

        self._servers = [serve(), serve()]
        http_port, openai_port = (server.server_address[1] for server in self._servers)
        self._grpc = grpc.server(ThreadPoolExecutor(4))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Named(name), self._grpc)
        grpc_port = self._grpc.add_insecure_port("127.0.0.1:0")
        self._grpc.start()
        self.ports = Replica(int(http_port), int(grpc_port), int(openai_port))

    def stop(self) -> None:
        """End it: its ports take no more connections."""
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self._servers = []
        self._grpc.stop(None)


@pytest.fixture
def echoes() -> Iterator[list[Echo]]:
    """Three replicas."""
    with contextlib.ExitStack() as stack:
        made = [Echo(name) for name in "abc"]
        for echo in made:
            stack.callback(echo.stop)
        yield made


@pytest.fixture
def ports(echoes: list[Echo], tmp_path: Path) -> Iterator[Balancer]:
    """An nginx in front of them."""
    with balancing(tmp_path, [echo.ports for echo in echoes]) as found:
        yield found


@pytest.fixture
def port(ports: Balancer) -> int:
    """Its HTTP port."""
    return ports.http


def ask(port: int, key: str = "", path: str = PATHS[0]) -> str:
    """Return the name of the replica that answered, or the status that is no 200."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=b"{}")
    if key:
        request.add_header(KEY, key)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return str(error.code)


@pytest.mark.parametrize("path", PATHS)
def test_a_key_stays_with_a_replica_and_keys_are_spread(port: int, path: str) -> None:
    """The same key reaches the same replica each time; many keys reach all of them."""
    chosen = {f"key-{n}": ask(port, f"key-{n}", path) for n in range(60)}
    assert {"a", "b", "c"} == set(chosen.values())
    assert min(Counter(chosen.values()).values()) >= 6
    assert chosen == {key: ask(port, key, path) for key in chosen}


def test_a_form_is_passed_on_as_json(port: int, echoes: list[Echo]) -> None:
    """Its content type is replaced, and every other content type is kept."""
    form, media = "application/x-www-form-urlencoded; charset=utf-8", "multipart/form-data"
    for kind in (form, media, "application/json"):
        url = f"http://127.0.0.1:{port}{PATHS[0]}"
        headers = {"Content-Type": kind, KEY: "the same"}
        urllib.request.urlopen(urllib.request.Request(url, data=b"{}", headers=headers)).close()
    (kinds,) = (echo.kinds for echo in echoes if echo.kinds)
    assert ["application/json", media, "application/json"] == kinds


def test_a_key_counts_over_grpc_too(ports: Balancer) -> None:
    """There it is metadata."""
    with grpc.insecure_channel(f"127.0.0.1:{ports.grpc}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        def name(key: str) -> str:
            metadata = [(KEY.lower(), key)]
            answer = stub.ServerMetadata(
                service_pb2.ServerMetadataRequest(), metadata=metadata, timeout=60
            )
            return str(answer.name)

        chosen = {f"key-{n}": name(f"key-{n}") for n in range(60)}
        assert {"a", "b", "c"} == set(chosen.values())
        assert chosen == {key: name(key) for key in chosen}


def test_without_a_key_every_replica_has_its_share(port: int) -> None:
    """Requests without the header go anywhere."""
    assert {"a", "b", "c"} == {ask(port) for _ in range(60)}


def test_a_lost_replica_moves_its_own_keys_only(port: int, echoes: list[Echo]) -> None:
    """Consistent hashing: the others' keys, and so their prefix caches, stay where they are."""
    keys = [f"key-{n}" for n in range(60)]
    before = {key: ask(port, key) for key in keys}
    echoes[0].stop()
    after = {key: ask(port, key) for key in keys}
    assert {"b", "c"} == set(after.values())
    moved = {key for key in keys if before[key] != after[key]}
    assert moved == {key for key in keys if before[key] == "a"}


def test_a_replica_that_refuses_is_passed_over(port: int, echoes: list[Echo]) -> None:
    """503 is what its OpenAI-compatible port says, full, draining or restarting; a 400 is final."""
    key = next(f"key-{n}" for n in range(60) if ask(port, f"key-{n}") == "a")
    echoes[0].status = 503
    assert ask(port, key) in "bc"
    for echo in echoes:
        echo.status = 400
    assert "400" == ask(port, key)


def test_only_inference_passes(port: int, echoes: list[Echo]) -> None:
    """Loading models, metrics and unknown paths are not reachable."""
    seen = [len(echo.paths) for echo in echoes]
    assert "403" == ask(port, path="/v2/repository/models/vllm/load")
    assert ["404", "404"] == [ask(port, path=path) for path in ("/metrics", "/")]
    assert seen == [len(echo.paths) for echo in echoes]


def test_the_compose_file_has_the_replicas_that_nginx_names() -> None:
    """deploy/compose mounts replicas.conf as it is; a stop waits for Triton's exit timeout."""
    folder = ROOT / "deploy/compose"
    services = yaml.safe_load((folder / "docker-compose.yml").read_text())["services"]
    text = CONFIGURATION.read_text()
    replicas = {name for name in services if f"server {name}:" in text}
    assert {"triton-0", "triton-1"} == replicas == set(services) - {"nginx"}
    (mount,) = services["nginx"]["volumes"]
    assert CONFIGURATION == (folder / mount.split(":")[0]).resolve()
    assert all(port.split(":")[2] in ("8080", "8081") for port in services["nginx"]["ports"])
    for name in replicas:
        service = services[name]
        (timeout,) = [a for a in service["command"] if a.startswith("--exit-timeout-secs=")]
        assert int(service["stop_grace_period"][:-1]) > int(timeout.split("=")[1])
        assert ["CMD", "python3", "/opt/triton_vllm/probe.py", "live"] == (
            service["healthcheck"]["test"]
        )
        assert ("1000:1000", ["ALL"]) == (service["user"], service["cap_drop"])
        assert service["read_only"]
