"""A real nginx with the configuration of deploy/nginx, in front of a server of ours."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import tritonclient.grpc as grpcclient

from tests.e2e.model_folder import CACHE, ROOT
from tests.e2e.processes import free_ports
from tests.e2e.tls import self_signed
from tests.e2e.triton_server import LOGS, TritonServer

PROGRAM = CACHE / "nginx/usr/sbin/nginx"
CONFIGURATION = ROOT / "deploy/nginx/triton_vllm.conf"

# What Debian's /etc/nginx/nginx.conf is for, with everything it writes in one folder.
MAIN = """
daemon off;
{user}
pid {folder}/nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/triton_vllm.conf;
}}
"""


class Nginx:
    """One TLS port on loopback. Use as a context manager."""

    def __init__(self, folder: Path, triton: TritonServer, openai_port: int) -> None:
        (self._port,) = free_ports(1)
        self.url = f"https://127.0.0.1:{self._port}"
        self._certificate, key = self_signed(folder)
        configuration = CONFIGURATION.read_text()
        for written, ours in {
            "127.0.0.1:9000": f"127.0.0.1:{openai_port}",
            "127.0.0.1:8000": f"127.0.0.1:{triton.http_port}",
            "127.0.0.1:8001": f"127.0.0.1:{triton.grpc_port}",
            "listen 443": f"listen 127.0.0.1:{self._port}",
            "/etc/nginx/tls/server.crt": str(self._certificate),
            "/etc/nginx/tls/server.key": str(key),
        }.items():
            assert 1 == configuration.count(written), f"{CONFIGURATION} has not one {written}"
            configuration = configuration.replace(written, ours)
        (folder / "triton_vllm.conf").write_text(configuration)
        user = "user root;" if os.geteuid() == 0 else ""
        (folder / "nginx.conf").write_text(MAIN.format(folder=folder, user=user))
        with (LOGS / "nginx.log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(PROGRAM), "-e", "stderr", "-c", str(folder / "nginx.conf")],
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Nginx:
        deadline = time.monotonic() + 30
        while True:
            assert self._process.poll() is None, (LOGS / "nginx.log").read_text()
            try:
                with self.http() as http:
                    http.get("/")
            except httpx.TransportError:
                assert time.monotonic() < deadline, (LOGS / "nginx.log").read_text()
                time.sleep(0.1)
            else:
                return self

    def __exit__(self, *exception: object) -> None:
        self._process.terminate()
        self._process.wait(10)

    def trust(self) -> ssl.SSLContext:
        """Return what makes a client trust our certificate."""
        return ssl.create_default_context(cafile=str(self._certificate))

    def http(self) -> httpx.Client:
        """Return a client that does."""
        return httpx.Client(base_url=self.url, verify=self.trust(), timeout=120, trust_env=False)

    def streamed_chunks(self, path: str, body: dict[str, Any], key: str = "") -> int:
        """Return in how many pieces, one after the other, a streamed answer has come."""
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        how: Any = {"content": json.dumps(body), "headers": headers}
        with self.http() as http, http.stream("POST", path, **how) as answer:
            assert 200 == answer.status_code, answer.read()
            return len(list(answer.iter_raw()))

    def grpc_models(self) -> list[str]:
        """Return the models that are ready, as Triton's gRPC tells through TLS."""
        client = grpcclient.InferenceServerClient(
            f"127.0.0.1:{self._port}", ssl=True, root_certificates=str(self._certificate)
        )
        try:
            assert client.is_model_ready("vllm")
            return [client.get_model_metadata("vllm").name]
        finally:
            client.close()
