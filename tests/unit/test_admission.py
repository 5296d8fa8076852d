"""Who is let in, who is refused, and with which words."""

from __future__ import annotations

import pytest

from triton_vllm.admission import Admission
from triton_vllm.errors import UnavailableError


def admission(max_requests: int = 0, max_queued_tokens: int = 0, queued: int = 0) -> Admission:
    return Admission(max_requests, max_queued_tokens, lambda: queued)


def test_the_request_above_the_limit_is_refused_and_told_the_limit() -> None:
    """As many as the limit enter; one leaves, and the next may enter."""
    door = admission(max_requests=2)
    with door.admit():
        with door.admit():
            with pytest.raises(UnavailableError, match=r"2 requests .* is 2 \(max_requests\)"):
                door.check()
            with pytest.raises(UnavailableError), door.admit():
                pass
            assert 2 == door.live
        with door.admit():
            door_is_full = door.live
    assert (2, 0) == (door_is_full, door.live)


def test_a_request_that_fails_leaves_too() -> None:
    """An exception inside does not keep the place."""
    door = admission(max_requests=1)
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
