"""A real Prometheus for the tests: it scrapes a server of ours and answers queries."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.e2e.model_folder import CACHE, ROOT
from tests.e2e.processes import free_ports
from tests.e2e.triton_server import LOGS

PROGRAMS = CACHE / "prometheus/usr/bin"
MONITORING = ROOT / "deploy/monitoring"


class Prometheus:
    """A Prometheus with our configuration and rules, on loopback."""

    def __init__(self, folder: Path, triton: str) -> None:
        """Start to scrape the metrics port ``triton`` (host:port), five times as often."""
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        config = (MONITORING / "prometheus.yml").read_text()
        assert "triton:8002" in config
        config = config.replace("triton:8002", triton).replace("interval: 5s", "interval: 1s")
        (folder / "prometheus.yml").write_text(config.replace("interval: 15s", "interval: 1s"))
        (folder / "alerts.yml").write_text((MONITORING / "alerts.yml").read_text())
        command = [
            str(PROGRAMS / "prometheus"),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with (LOGS / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def get(self, path: str, **parameters: str) -> Any:
        """Return ``data`` of an answer of the API; raise with its error."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                return json.loads(response.read())["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def query(self, expression: str) -> list[Any]:
        """Return the vector that an expression is now."""
        return list(self.get("query", query=expression)["result"])

    def await_scrapes(self, number: int, seconds: float = 60) -> None:
        """Wait until the server has been scraped so often."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError, AssertionError):
                result = self.query("count_over_time(up[5m])")
                if result and float(result[0]["value"][1]) >= number:
                    return
            assert time.monotonic() < deadline, "Prometheus did not scrape"
            time.sleep(0.3)

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(10)


@contextlib.contextmanager
def scraping(folder: Path, triton: str) -> Iterator[Prometheus]:
    """Run a Prometheus, and end it in every case."""
    prometheus = Prometheus(folder, triton)
    try:
        yield prometheus
    finally:
        prometheus.stop()


def dashboard_queries() -> list[tuple[str, str]]:
    """Return (panel, expression) for each query of the dashboard, its variables filled in."""
    text = (MONITORING / "grafana/dashboards/vllm-on-triton.json").read_text()
    return [
        (
            panel["title"],
            target["expr"].replace("$model", ".*").replace("$__rate_interval", "30s"),
        )
        for panel in json.loads(text)["panels"]
        for target in panel.get("targets", [])
    ]
