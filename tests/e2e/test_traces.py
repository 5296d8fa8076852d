"""Traces: Triton's span and vLLM's are one trace, at a real OTLP receiver."""

from __future__ import annotations

from tests.e2e.otlp import Collector
from tests.e2e.triton_server import TritonServer

TRACE = "0af7651916cd43dd8448eb211c80319c"
CLIENT_SPAN = "b7ad6b7169203331"
LLM_SPAN = "llm_request"


def test_vllms_span_hangs_below_tritons_and_that_below_the_clients(
    triton: TritonServer, collector: Collector
) -> None:
    """One trace: the client's span, Triton's request and compute, vLLM's llm_request."""
    body = {"text_input": "One, two,", "parameters": {"max_tokens": 3}}
    headers = {"traceparent": f"00-{TRACE}-{CLIENT_SPAN}-01"}
    status, answer = triton.post("v2/models/vllm/generate", body, headers=headers)
    assert 200 == status, answer
    llm = collector.await_span(LLM_SPAN, TRACE)
    request = collector.await_span("InferRequest", TRACE)
    assert CLIENT_SPAN == request.parent
    above_vllm = {span.id: span for span in collector.spans if span.name != LLM_SPAN}
    above = [llm.parent]
    while above[-1] in above_vllm:
        above.append(above_vllm[above[-1]].parent)
    assert request.id in above
    assert 3 == llm.attributes["gen_ai.usage.completion_tokens"]
