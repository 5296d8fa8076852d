"""The drain: running requests may finish, within a time; then Triton can unload the model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from triton_vllm.errors import UnavailableError
from triton_vllm.limits.admission import OPENAI, Admission

logger = logging.getLogger(__name__)

UNLOADING = "the model is being unloaded or the server stopped"


class Drain:
    """Ends the live requests of one front end before the model goes. Event loop only."""

    def __init__(self, admission: Admission, seconds: Mapping[str, float], name: str) -> None:
        """``seconds`` are what running requests of each API get, from the drain's begin.

        ``on_change`` is called with True when it begins, with False when it is cancelled.
        """
        self._admission = admission
        self.seconds = seconds
        self.on_change: Callable[[bool], object] = lambda begun: None
        self._name = name
        self._ends: dict[str, asyncio.TimerHandle] = {}
        self._is_final = False

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
        loop = asyncio.get_running_loop()
        for api, seconds in self.seconds.items():
            self._ends[api] = loop.call_later(seconds, self._end, api, why)
        live = self._admission.count()
        if live or not final:
            longest = max(self.seconds.values())
            logger.info(f"{self._name}: {why}: {live} requests may run for {longest:g} s more")
        self.on_change(True)

    def cancel(self) -> None:
        """Admit requests again and let live ones run on: the model stays after all."""
        if self._is_final:  # another instance of the model is what is ready
            return
        for timer in self._ends.values():
            timer.cancel()
        self._ends.clear()
        self._admission.reopen()
        logger.info(f"{self._name}: ready again")
        self.on_change(False)

    def time_left(self, api: str) -> float:
        """Return the seconds until all requests of ``api`` are ended, once it has begun."""
        return max(0.0, self._ends[api].when() - asyncio.get_running_loop().time())

    def _end(self, api: str, why: UnavailableError) -> None:
        expired = f"{why}, and {self.seconds[api]:g} s of grace are over"
        if ended := self._admission.end_all(UnavailableError(expired), api):
            what = "OpenAI requests" if api == OPENAI else "requests"
            logger.warning(f"{self._name}: {ended} {what} aborted: {why}")
