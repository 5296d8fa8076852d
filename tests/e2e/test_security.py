"""What the operator can close: restricted protocols, TLS, mutual TLS. No model is needed for it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from tests.e2e.model_folder import check_prerequisites
from tests.e2e.triton_server import TritonServer

pytestmark = pytest.mark.timeout(120)

KEY, SECRET = "admin-key", "a-long-secret"
ADMIN = "shared-memory,model-repository,model-config,statistics,trace,logging"


def make_certificate(directory: Path, name: str, issuer: str = "") -> None:
    """Write NAME.key and NAME.crt, signed by ``issuer`` or by itself."""
    key, certificate = str(directory / f"{name}.key"), str(directory / f"{name}.crt")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", f"/CN={name}", "-keyout", key, "-out", certificate]
    if issuer:
        command += ["-CA", f"{directory}/{issuer}.crt", "-CAkey", f"{directory}/{issuer}.key"]
        command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        command += ["-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate authority, a server and a client that it vouches for, and a stranger."""
    directory = tmp_path_factory.mktemp("certificates")
    for name, issuer in (("ca", ""), ("server", "ca"), ("client", "ca"), ("stranger", "")):
        make_certificate(directory, name, issuer)
    return directory


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[TritonServer]:
    """A server without models, closed as docs/operations/security.md says."""
    check_prerequisites()
    options = (
        f"--http-restricted-api={ADMIN}:{KEY}={SECRET}",
        f"--grpc-restricted-protocol={ADMIN}:{KEY}={SECRET}",
        "--grpc-use-ssl=true",
        "--grpc-use-ssl-mutual=true",
        f"--grpc-server-cert={certificates}/server.crt",
        f"--grpc-server-key={certificates}/server.key",
        f"--grpc-root-cert={certificates}/ca.crt",
    )
    server = TritonServer(tmp_path_factory.mktemp("empty"), "security", options=options)
    yield server
    server.kill()


def client(server: TritonServer, certificates: Path, name: str) -> Any:
    """Return a gRPC client that shows the certificate of ``name``; none for an empty name."""
    return grpcclient.InferenceServerClient(
        f"127.0.0.1:{server.grpc_port}",
        ssl=True,
        root_certificates=str(certificates / "ca.crt"),
        private_key=str(certificates / f"{name}.key") if name else None,
        certificate_chain=str(certificates / f"{name}.crt") if name else None,
    )


@pytest.mark.parametrize(
    "path", ["v2/repository/models/vllm/load", "v2/repository/models/vllm/unload"]
)
def test_model_control_over_http_needs_the_key(server: TritonServer, path: str) -> None:
    """Without it, or with another, the answer is 403; with it Triton looks for the model."""
    assert 403 == server.post(path, {})[0]
    assert 403 == server.post(path, {}, headers={KEY: "guess"})[0]
    status, body = server.post(path, {}, headers={KEY: SECRET})
    assert 403 != status
    assert "restricted" not in body.lower()


def test_health_over_http_needs_none(server: TritonServer) -> None:
    """Probes and load balancers ask as before."""
    server.get("v2/health/live")
    server.get("v2/health/ready")


def test_metadata_over_http_need_none(server: TritonServer) -> None:
    """The model asks for its own, to notice its end; there is none here."""
    url = f"http://127.0.0.1:{server.http_port}/v2/models/vllm/versions/1"
    assert 404 == httpx.get(url).status_code


def test_model_control_over_grpc_needs_the_key(server: TritonServer, certificates: Path) -> None:
    """The header is named after the key."""
    with client(server, certificates, "client") as admin:
        with pytest.raises(InferenceServerException, match=r"(?i)this protocol is restricted"):
            admin.load_model("vllm")
        header = {f"triton-grpc-protocol-{KEY}": SECRET}
        with pytest.raises(InferenceServerException) as error:
            admin.load_model("vllm", headers=header)
        assert "restricted" not in str(error.value).lower()


@pytest.mark.parametrize(("name", "admitted"), [("client", True), ("", False), ("stranger", False)])
def test_mutual_tls_admits_known_clients(
    server: TritonServer, certificates: Path, name: str, admitted: bool
) -> None:
    """The server admits a client whose certificate the authority signed, and no other."""
    with client(server, certificates, name) as asking:
        if admitted:
            assert asking.is_server_live(client_timeout=20)
        else:
            with pytest.raises(InferenceServerException):
                asking.is_server_live(client_timeout=5)


def test_no_tls_no_answer(server: TritonServer) -> None:
    """A plain connection is not served."""
    plain = grpcclient.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
    with plain, pytest.raises(InferenceServerException):
        plain.is_server_live(client_timeout=5)


def test_the_errors_do_not_tell_the_key(server: TritonServer) -> None:
    """The error may name the header, but not its value."""
    _, body = server.post("v2/repository/models/vllm/load", {})
    assert SECRET not in json.dumps(body)
