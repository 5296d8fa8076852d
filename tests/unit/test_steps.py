"""The engine's steps, from the metrics of a server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from peers.steps import Steps, between, steps_of

METRICS = """\
# HELP vllm:iteration_tokens_total Histogram of number of tokens per engine_step.
# TYPE vllm:iteration_tokens_total histogram
vllm:iteration_tokens_total_bucket{engine="0",le="64.0",model_name="bench"} 10
vllm:iteration_tokens_total_bucket{engine="0",le="128.0",model_name="bench"} 15.0
vllm:iteration_tokens_total_bucket{engine="0",le="+Inf",model_name="bench"} 16.0
vllm:iteration_tokens_total_count{engine="0",model_name="bench"} 16.0
vllm:iteration_tokens_total_sum{engine="0",model_name="bench"} 900.0
vllm:iteration_tokens_total_bucket{model="bench",version="1",engine="1",le="64.0"} 20
vllm:iteration_tokens_total_bucket{model="bench",version="1",engine="1",le="128.0"} 20
vllm:iteration_tokens_total_bucket{model="bench",version="1",engine="1",le="+Inf"} 24
vllm:iteration_tokens_total_count{model="bench",version="1",engine="1"} 24
vllm:generation_tokens_total{engine="0",model_name="bench"} 900.0
"""


class _Metrics(BaseHTTPRequestHandler):
    text = ""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where a server shows the metrics that are the test's parameter."""
    server = HTTPServer(("127.0.0.1", 0), type("Handler", (_Metrics,), {"text": request.param}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("address", [METRICS], indirect=True)
def test_steps_of_all_engines_are_added(address: str) -> None:
    """As `vllm serve` and Triton show them, with their own labels in their own order."""
    steps = steps_of(address)
    assert steps is not None
    assert 40 == steps.total
    assert [10, 5] == [steps.above(64), steps.above(128)]
    assert 5 == steps.above(65), "the next bucket"
    assert 0 == steps.above(10**6)


@pytest.mark.parametrize("address", ["nv_inference_count{} 1\n"], indirect=True)
def test_a_server_may_not_tell(address: str) -> None:
    """Nor does one without metrics."""
    assert steps_of(address) is None
    assert steps_of("127.0.0.1:1") is None
    assert steps_of("") is None


def test_a_measurement_has_the_steps_between_two_looks() -> None:
    """And none where a look found nothing, or a server counts from zero again."""
    before, after = Steps(10, {64.0: 8, 128.0: 9}), Steps(110, {64.0: 88, 128.0: 99})
    assert {"engine_steps": 100, "prompt_steps": 20} == between(before, after, 64)
    assert {} == between(None, after, 64) == between(before, None, 64) == between(after, before, 64)
