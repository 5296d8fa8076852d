"""The drain: running requests may finish, within a time; then Triton can unload the model.

Triton waits with that for as long as a client leaves a gRPC stream open, and at SIGTERM it never
comes to it then. So a drain that is over says so, and the engine does not wait for Triton.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from triton_vllm.errors import UnavailableError
from triton_vllm.limits.admission import OPENAI, Admission

logger = logging.getLogger(__name__)

UNLOADING = "the model is being unloaded or the server stopped"

_LEAST_SECONDS = 5.0  # for a server that was only busy to show that it has the model
_END_SECONDS = 1.0  # for requests that are being cancelled, in other front ends too


class Drain:
    """Ends the live requests of one front end before the model goes. Event loop only."""

    def __init__(self, admission: Admission, seconds: Mapping[str, float], name: str) -> None:
        """``seconds`` are what running requests of each API get, from the drain's begin.

        ``on_change`` is called with True when it begins, with False when it is cancelled.
        ``on_over`` is called once, a second after the time of all requests is over, at least six
        after the drain has begun: from then on the drain cannot be cancelled.
        """
        self._admission = admission
        self.seconds = seconds
        self.on_change: Callable[[bool], object] = lambda begun: None
        self.on_over: Callable[[], object] = lambda: None
        self._name = name
        self._ends: dict[str, asyncio.TimerHandle] = {}
        self._over: asyncio.TimerHandle | None = None
        self._is_final = False
        self._began = 0.0

    @property
    def seconds_since_begin(self) -> float:
        """For how long it has run, 0 if it has not begun. Any thread."""
        return time.monotonic() - self._began if self._ends else 0.0

    @property
    def has_begun(self) -> bool:
        """Whether new requests are refused."""
        return bool(self._ends)

    def begin(self, *, final: bool = False) -> None:
        """Refuse new requests and give live ones their time, unless the drain has begun.

        A ``final`` drain is not cancelled any more: Triton has called ``finalize``.
        """
        self._is_final |= final
        if self._ends:
            return
        why = UnavailableError(UNLOADING)
        self._admission.close(why)
        self._began = time.monotonic()
        loop = asyncio.get_running_loop()
        for api, seconds in self.seconds.items():
            self._ends[api] = loop.call_later(seconds, self._end, api, why)
        longest = max(self.seconds.values())
        self._over = loop.call_later(max(longest, _LEAST_SECONDS) + _END_SECONDS, self._be_over)
        live = self._admission.count()
        if live or not final:
            logger.info(f"{self._name}: {why}: {live} requests may run for {longest:g} s more")
        self.on_change(True)

    def cancel(self) -> None:
        """Cancel the drain: the model stays, so admit requests again and let live ones run on."""
        if self._is_final:  # it is another instance that is ready
            return
        for timer in filter(None, (*self._ends.values(), self._over)):
            timer.cancel()
        self._ends.clear()
        self._admission.reopen()
        logger.info(f"{self._name}: ready again")
        self.on_change(False)

    def time_left(self, api: str) -> float:
        """Return the seconds until all requests of ``api`` are ended, once it has begun."""
        return max(0.0, self._ends[api].when() - asyncio.get_running_loop().time())

    def _be_over(self) -> None:
        self._is_final = True
        self.on_over()

    def _end(self, api: str, why: UnavailableError) -> None:
        expired = f"{why}, and {self.seconds[api]:g} s of grace are over"
        if ended := self._admission.end_all(UnavailableError(expired), api):
            what = "OpenAI requests" if api == OPENAI else "requests"
            logger.warning(f"{self._name}: {ended} {what} aborted: {why}")
