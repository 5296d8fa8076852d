"""Traces: Triton's span and vLLM's are one trace, at a real OTLP receiver."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tests.e2e.triton_server import (
    ENGINE_ARGS,
    TritonServer,
    add_model,
    check_prerequisites,
    running,
)

pytestmark = pytest.mark.timeout(400)

TRACE = "0af7651916cd43dd8448eb211c80319c"
CLIENT_SPAN = "b7ad6b7169203331"
LLM_SPAN = "llm_request"


@dataclass(frozen=True, slots=True)
class Span:
    """What these tests look at; ids in hexadecimal, ``attributes`` the integer ones."""

    name: str
    trace: str
    id: str
    parent: str
    attributes: Mapping[str, int]


class Collector(ThreadingHTTPServer):
    """An OTLP receiver over HTTP that keeps the spans it gets."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.spans: list[Span] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1/traces"

    def await_span(self, name: str, trace: str, seconds: float = 20) -> Span:
        """Return the span ``name`` of a trace, once it is here."""
        deadline = time.monotonic() + seconds
        while True:
            for span in list(self.spans):
                if (span.name, span.trace) == (name, trace):
                    return span
            assert time.monotonic() < deadline, [(s.name, s.trace) for s in self.spans]
            time.sleep(0.1)


class Receiver(BaseHTTPRequestHandler):
    """One export."""

    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        is_json = "json" in self.headers["Content-Type"]
        self.server.spans += spans_of_json(body) if is_json else spans_of_protobuf(body)
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def spans_of_protobuf(body: bytes) -> Iterator[Span]:
    """What vLLM sends."""
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                attributes = {a.key: a.value.int_value for a in span.attributes}
                trace, parent = span.trace_id.hex(), span.parent_span_id.hex()
                yield Span(span.name, trace, span.span_id.hex(), parent, attributes)


def spans_of_json(body: bytes) -> Iterator[Span]:
    """What Triton sends."""
    for resource in json.loads(body)["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                parent = span.get("parentSpanId", "")
                yield Span(span["name"], span["traceId"], span["spanId"], parent, {})


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever, daemon=True)
        thread.start()
        yield collector
        collector.shutdown()


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, collector: Collector
) -> Iterator[TritonServer]:
    """A server that traces every request, and whose vLLM does."""
    check_prerequisites()
    repository: Path = tmp_path_factory.mktemp("model_repository")
    args = {**ENGINE_ARGS, "otlp_traces_endpoint": collector.url}
    add_model(repository, engine_args=json.dumps(args))
    options = (
        "--trace-config=mode=opentelemetry",
        "--trace-config=level=TIMESTAMPS",
        "--trace-config=rate=1",
        f"--trace-config=opentelemetry,url={collector.url}",
    )
    variables = {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}
    with running(repository, "traces", "vllm", options=options, variables=variables) as server:
        yield server


def test_vllms_span_hangs_below_tritons_and_that_below_the_clients(
    server: TritonServer, collector: Collector
) -> None:
    """One trace: the client's span, Triton's request and compute, vLLM's llm_request."""
    body = {"text_input": "One, two,", "parameters": {"max_tokens": 3}}
    headers = {"traceparent": f"00-{TRACE}-{CLIENT_SPAN}-01"}
    status, answer = server.post("v2/models/vllm/generate", body, headers=headers)
    assert 200 == status, answer
    llm = collector.await_span(LLM_SPAN, TRACE)
    request = collector.await_span("InferRequest", TRACE)
    assert CLIENT_SPAN == request.parent
    triton = {span.id: span for span in collector.spans if span.name != LLM_SPAN}
    above = [llm.parent]
    while above[-1] in triton:
        above.append(triton[above[-1]].parent)
    assert request.id in above
    assert 3 == llm.attributes["gen_ai.usage.completion_tokens"]
