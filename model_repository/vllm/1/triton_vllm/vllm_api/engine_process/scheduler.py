"""vLLM's schedulers, which can also abort all requests of vLLM's Rust front end.

It invents their ids, so after its death nobody knows them; vLLM aborts by id, or everything.
``choose_scheduler`` names the classes, and the engine core imports them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from triton_vllm.vllm_api.engine_process import RUST_REQUESTS

_RUST_CLIENT = 0  # as it takes itself for


class _RustRequests:
    """What both schedulers have more than vLLM's."""

    requests: dict[str, Any]

    def finish_requests(self, request_ids: str | Iterable[str] | None, status: Any) -> Any:
        """Finish requests; for ``RUST_REQUESTS``, all those that the Rust front end has sent."""
        if not (request_ids is None or isinstance(request_ids, str)):
            request_ids = set(request_ids)
            if RUST_REQUESTS in request_ids:
                of_client = ((key, r.client_index) for key, r in self.requests.items())
                request_ids |= {key for key, client in of_client if client == _RUST_CLIENT}
        return super().finish_requests(request_ids, status)  # type: ignore[misc]


class RustScheduler(_RustRequests, Scheduler):  # type: ignore[misc]
    """vLLM's scheduler."""


class RustAsyncScheduler(_RustRequests, AsyncScheduler):  # type: ignore[misc]
    """vLLM's scheduler for asynchronous scheduling."""
