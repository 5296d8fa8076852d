"""Who is let in, who is refused, and with which words."""

from __future__ import annotations

import asyncio

import pytest

from triton_vllm.errors import UnavailableError
from triton_vllm.limits.admission import Admission


def admission(
    max_concurrent_requests: int = 0, max_queued_tokens: int = 0, queued: int = 0
) -> Admission:
    return Admission(max_concurrent_requests, max_queued_tokens, lambda: queued)


def test_the_request_above_the_limit_is_refused_and_told_the_limit() -> None:
    """As many as the limit enter; one leaves, and the next may enter."""
    door = admission(max_concurrent_requests=2)
    with door.admit():
        with door.admit():
            with pytest.raises(
                UnavailableError, match=r"2 requests .* is 2 \(max_concurrent_requests\)"
            ):
                door.check()
            with pytest.raises(UnavailableError), door.admit():
                pass
            assert 2 == door.live
        with door.admit():
            door_is_full = door.live
    assert (2, 0) == (door_is_full, door.live)


def test_a_request_that_fails_leaves_too() -> None:
    """An exception inside does not keep the place."""
    door = admission(max_concurrent_requests=1)
    with pytest.raises(KeyError), door.admit():
        raise KeyError
    assert 0 == door.live


def test_waiting_prompts_are_counted_in_tokens() -> None:
    """While too many prompt tokens wait, nobody enters."""
    expected = r"50 prompt tokens .* 40 \(max_queued_tokens\)"
    full = admission(max_queued_tokens=40, queued=50)
    with pytest.raises(UnavailableError, match=expected), full.admit():
        pass
    with admission(max_queued_tokens=60, queued=50).admit():
        pass


def test_what_is_full_is_still_open() -> None:
    """Health does not depend on room; whether there is some is told."""
    full = admission(max_queued_tokens=40, queued=40)
    full.check_open()
    assert (False, True) == (
        full.has_room_in_queue,
        admission(max_queued_tokens=40, queued=39).has_room_in_queue,
    )
    full.close(UnavailableError("the server stops"))
    with pytest.raises(UnavailableError, match="the server stops"):
        full.check_open()


def test_without_limits_everybody_enters() -> None:
    """Zero is no limit."""
    door = admission(queued=10**9)
    with door.admit():
        door.check()


def test_a_closed_door_keeps_those_inside() -> None:
    """Closing refuses the next one, with the reason; reopening lets in again."""
    door = admission()
    with door.admit():
        door.close(UnavailableError("the server stops"))
        with pytest.raises(UnavailableError, match="the server stops"):
            door.check()
        assert 1 == door.live
        door.reopen()
        door.check()


class Queue:
    """The prompts that wait for their prefill, in tokens."""

    def __init__(self, limit: int) -> None:
        self.tokens = 0
        self.door = Admission(0, limit, lambda: self.tokens)

    async def serve(self, *prompts: int, rendered: asyncio.Event) -> str:
        """Serve a request of some prompts, which are tokenized off the event loop."""
        with self.door.admit() as place:
            told: list[UnavailableError] = []
            place.turned_away = told.append
            await rendered.wait()
            try:
                await asyncio.gather(*(self._add(tokens) for tokens in prompts))
            except UnavailableError as why:
                return "refused" if why in told else "refused, and not told"
            return "served"

    async def _add(self, tokens: int) -> None:
        self.door.join_queue()
        self.tokens += tokens


def test_a_burst_of_long_prompts_is_refused_where_it_joins_the_queue() -> None:
    """All were admitted while none waited; each is asked again when its prompt is to wait."""

    async def main() -> list[str]:
        queue, rendered = Queue(limit=40), asyncio.Event()
        requests = [asyncio.create_task(queue.serve(30, rendered=rendered)) for _ in range(5)]
        await asyncio.sleep(0)
        assert 5 == queue.door.live
        rendered.set()
        return await asyncio.gather(*requests)

    assert ["served", "served", "refused", "refused", "refused"] == asyncio.run(main())


def test_a_request_of_many_prompts_is_asked_once() -> None:
    """One that is larger than the limit is served, also by tasks of its own: its first fits."""

    async def main() -> str:
        queue, rendered = Queue(limit=40), asyncio.Event()
        rendered.set()
        return await queue.serve(30, 30, 30, 30, rendered=rendered)

    assert "served" == asyncio.run(main())


def test_what_is_nobodys_request_is_asked_each_time() -> None:
    """As vLLM's own warm-up."""
    full = admission(max_queued_tokens=40, queued=50)
    with pytest.raises(UnavailableError):
        full.join_queue()
    admission(max_queued_tokens=60, queued=50).join_queue()
