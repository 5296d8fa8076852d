"""A receiver of OTLP traces on loopback, which keeps what Triton and vLLM send."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

# Triton's, for all requests; the receiver's address is one more.
TRACE_OPTIONS = (
    "--trace-config=mode=opentelemetry",
    "--trace-config=level=TIMESTAMPS",
    "--trace-config=rate=1",
)


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
