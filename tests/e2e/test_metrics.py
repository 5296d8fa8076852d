"""Metrics: what Triton's /metrics says after known requests, and what Prometheus makes of it."""

from __future__ import annotations

import math
import re
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import chart
from tests.e2e.grpc_requests import Request, ask, generate, sampling, start_requests
from tests.e2e.openai_port import PERIOD
from tests.e2e.prometheus import MONITORING, PROGRAMS, Prometheus, dashboard_queries, scraping
from tests.e2e.triton_server import TritonServer
from tests.e2e.two_front_ends import TwoFrontEnds

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def server(two: TwoFrontEnds) -> TritonServer:
    """The server of the group: two front ends on `vllm`."""
    return two.triton


def value(server: TritonServer, name: str, **labels: str) -> float:
    """Return a metric summed over all its other labels."""
    names = {name, f"{name}_total"}  # the parser puts that behind every counter's name
    return sum(
        sample.value
        for family in text_string_to_metric_families(server.metrics())
        for sample in family.samples
        if sample.name in names and labels.items() <= sample.labels.items()
    )


def settled(server: TritonServer, name: str) -> float:
    """Return a counter once it has stood still for two seconds: earlier requests are in it."""
    last, since = value(server, name), time.monotonic()
    while time.monotonic() - since < 2:
        time.sleep(PERIOD)
        if (now := value(server, name)) != last:
            last, since = now, time.monotonic()
    return last


def await_value(server: TritonServer, expected: float, name: str, **labels: str) -> None:
    """Wait until a metric has a value; it takes a period or two."""
    deadline = time.monotonic() + 30
    while (now := value(server, name, **labels)) != expected:
        assert time.monotonic() < deadline, f"{name} {labels} is {now}, not {expected}"
        time.sleep(PERIOD)


def test_tokens_and_requests_are_counted_exactly(server: TritonServer) -> None:
    """Five requests of eight tokens are 40 tokens, five finished for length, five first tokens."""
    tokens = settled(server, "vllm:generation_tokens_total")
    finished = value(server, "vllm:request_success_total", finished_reason="length")
    first = value(server, "vllm:time_to_first_token_seconds_count")
    ok = value(server, "triton_vllm:requests_total", outcome="ok")
    for _ in range(5):
        generate(server, "One, two,", max_tokens=8, ignore_eos=True)
    await_value(server, tokens + 40, "vllm:generation_tokens_total", model="vllm", version="1")
    await_value(server, finished + 5, "vllm:request_success_total", finished_reason="length")
    await_value(server, first + 5, "vllm:time_to_first_token_seconds_count", engine="0")
    await_value(server, first + 5, "vllm:time_to_first_token_seconds_bucket", le="+Inf")
    await_value(server, ok + 5, "triton_vllm:requests_total", outcome="ok")


def test_each_outcome_has_its_counter(server: TritonServer) -> None:
    """The outcomes distinguish a wrong request from one whose client left."""
    wrong = value(server, "triton_vllm:requests_total", outcome="client_error")
    left = value(server, "triton_vllm:requests_total", outcome="cancelled")
    assert ask(server, {"text_input": "x", "sampling_parameters": '{"top_p": 7}'})[0].error
    inputs = {
        "text_input": "Count:",
        "stream": True,
        "sampling_parameters": sampling(max_tokens=400, ignore_eos=True),
    }
    with Request(server, inputs) as request:
        assert not request.next().error
    await_value(server, wrong + 1, "triton_vllm:requests_total", outcome="client_error")
    await_value(server, left + 1, "triton_vllm:requests_total", outcome="cancelled")


def test_gauges_follow_the_engine(server: TritonServer) -> None:
    """Running requests are seen while they run and gone afterwards, on whichever front end."""
    with ExitStack() as stack:
        start_requests(server, stack, *[4000] * 4)  # none ends before all four have begun
        await_value(server, 4, "vllm:num_requests_running")
        assert value(server, "vllm:kv_cache_usage_perc") > 0
    # vLLM reports with each step of the engine: after an abort, with the next request's.
    generate(server, "One, two,", max_tokens=2)
    await_value(server, 0, "vllm:num_requests_running")


def test_front_ends_and_engine_are_alive(server: TritonServer) -> None:
    """Two front ends, both with an engine, with a heartbeat of this very second."""
    await_value(server, 2, "triton_vllm:front_ends")
    assert 2 == value(server, "triton_vllm:engine_up")
    beat = value(server, "triton_vllm:heartbeat_timestamp_seconds", front_end="1")
    assert abs(time.time() - beat) < 5


def test_the_server_survives_a_metrics_storm(server: TritonServer) -> None:
    """A hundred requests on two front ends while four clients scrape: every one is counted."""
    before = value(server, "triton_vllm:requests_total", outcome="ok")
    stop = threading.Event()

    def scrape() -> int:
        number = 0
        while not stop.is_set():
            assert "vllm:generation_tokens_total" in server.metrics()
            number += 1
        return number

    with ThreadPoolExecutor(20) as pool:
        scrapers = [pool.submit(scrape) for _ in range(4)]
        texts = list(pool.map(lambda i: generate(server, f"{i}", max_tokens=1 + i % 3), range(100)))
        stop.set()
        assert all(scraper.result() > 2 for scraper in scrapers)
    assert 100 == len(texts)
    await_value(server, before + 100, "triton_vllm:requests_total", outcome="ok")


def test_prometheus_answers_every_query_of_the_dashboard(
    server: TritonServer, tmp_path: Path
) -> None:
    """Each panel's query has data under load; each alert's expression works, and none fires."""
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            generate(server, "The capital of France is", max_tokens=12)

    with (
        scraping(tmp_path, f"127.0.0.1:{server.metrics_port}") as prometheus,
        ThreadPoolExecutor(4) as pool,
    ):
        loads = [pool.submit(load) for _ in range(4)]
        try:
            prometheus.await_scrapes(8)
            empty = [(panel, q) for panel, q in dashboard_queries() if not finite(prometheus, q)]
            # Those of the Helm chart's autoscaler, without the labels that Kubernetes gives.
            scaling = chart.keda_queries(chart.rendered("all"))
            asked = [re.sub(r',namespace="[^}]*', "", query) for query in scaling]
            empty += [("autoscaling", q) for q in asked if not finite(prometheus, q)]
            rules = prometheus.get("rules")["groups"][0]["rules"]
        finally:
            stop.set()
            for each in loads:
                each.result()
    assert [] == empty
    assert 2 == len(asked)
    assert 10 == len(rules)
    assert {("ok", "inactive")} == {(rule["health"], rule["state"]) for rule in rules}


def finite(prometheus: Prometheus, query: str) -> bool:
    """Whether a query has a number as its answer."""
    result = prometheus.query(query)
    return any(math.isfinite(float(sample["value"][1])) for sample in result)


@pytest.mark.parametrize(
    "command",
    [
        ["check", "config", str(MONITORING / "prometheus.yml")],
        ["check", "rules", str(MONITORING / "alerts.yml")],
        ["test", "rules", str(Path(__file__).with_name("alerts_test.yml"))],
    ],
    ids=["configuration", "rules", "alerts fire"],
)
def test_promtool_agrees(command: list[str]) -> None:
    """Prometheus' own tool finds nothing wrong, and each critical alert fires when it should."""
    done = subprocess.run([PROGRAMS / "promtool", *command], capture_output=True, text=True)
    assert 0 == done.returncode, done.stdout + done.stderr
