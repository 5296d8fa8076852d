"""The fields of a request that belong to Triton: id, own parameters, requested outputs."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from triton_vllm.config.server_options import ServerOptions
from triton_vllm.errors import RequestError
from triton_vllm.protocol.outputs import TEXTS
from triton_vllm.protocol.tensors import not_utf8

# The keys that Triton's parameters extension reserves. Its generate endpoint passes them on to the
# model, which ignores them.
_RESERVED = {"sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers"}
_RESERVED |= {"binary_data_output"}
_RESERVED_PREFIX = "triton_"
_TRACE_HEADERS = ("traceparent", "tracestate")


@dataclass(frozen=True, slots=True)
class Host:
    """Triton's view of the model.

    ``outputs`` holds the declared outputs. ``header_patterns`` holds the server's regular
    expressions for the headers that it forwards as request parameters.
    """

    outputs: frozenset[str] = frozenset(tensor.name for tensor in TEXTS)
    header_patterns: tuple[str, ...] = ()

    @classmethod
    def of(cls, model_config: str, server: ServerOptions) -> Host:
        """Read ``model_config``, the JSON in ``initialize``'s arguments."""
        outputs = json.loads(model_config).get("output", [])
        return cls(frozenset(output["name"] for output in outputs), server.header_patterns)

    def named_outputs(self, request: Any) -> frozenset[str]:
        """Return the outputs that the client names, empty for none.

        Triton fills in every output of the model where the client names none.
        """
        asked = frozenset(request.requested_output_names())
        return frozenset() if asked >= self.outputs else asked

    def model_parameters(
        self, own: Mapping[str, Any], request_id: str, known: Collection[str]
    ) -> dict[str, Any]:
        """Return the request parameters that the model reads.

        This leaves out Triton's own, the request's id, which the generate endpoint repeats among
        them, the trace context and forwarded headers. A key that differs from a ``known`` parameter
        only in hyphens and case is not a header, so that no misspelt parameter is lost.
        """
        return {
            key: value
            for key, value in own.items()
            if key not in _RESERVED
            and not key.startswith(_RESERVED_PREFIX)
            and (key, value) != ("id", request_id)
            and key not in _TRACE_HEADERS
            and not self._is_header(key, known)
        }

    def _is_header(self, key: str, known: Collection[str]) -> bool:
        return (
            any(_matches(pattern, key) for pattern in self.header_patterns)
            and key.lower().replace("-", "_") not in known
        )


def read_request_id(request: Any) -> str:
    """Return the client's id of a ``pb_utils.InferenceRequest``, empty for none."""
    try:
        return str(request.request_id())
    except UnicodeDecodeError as error:
        raise RequestError(not_utf8("id", error)) from None


def read_request_parameters(request: Any) -> dict[str, Any]:
    """Return the request parameters, Triton's among them."""
    try:
        own: dict[str, Any] = json.loads(request.parameters() or "{}")
    except UnicodeDecodeError as error:
        raise RequestError(not_utf8("parameters", error)) from None
    return own


def triton_timeout(request: Any, own: Mapping[str, Any]) -> int:
    """Return Triton's request timeout in microseconds, 0 for none.

    Over HTTP, the generate endpoint passes it on as a parameter.
    """
    given = request.timeout() or own.get("timeout", 0)
    if not isinstance(given, int) or isinstance(given, bool) or given < 0:
        raise RequestError(f"timeout: must be microseconds, an integer from 0, got {given!r}")
    return given


def trace_headers(request: Any, own: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the W3C trace context in which the request is served; empty for none.

    Triton's own span, where Triton traces (``--trace-config mode=opentelemetry``); else what the
    client sent as request parameters, or as headers that Triton forwards.
    """
    context = request.trace().get_context() if hasattr(request, "trace") else None
    carrier = json.loads(context) if context else own
    return {key: carrier[key] for key in _TRACE_HEADERS if isinstance(carrier.get(key), str)}


def _matches(pattern: str, key: str) -> bool:
    """Return whether Triton forwards a header. Its expressions ignore case by default."""
    flags = re.RegexFlag(0) if pattern.startswith("(?-i)") else re.IGNORECASE
    try:
        return re.search(pattern.removeprefix("(?-i)"), key, flags) is not None
    except re.error:  # valid for Triton's library, and not for Python's
        return True
