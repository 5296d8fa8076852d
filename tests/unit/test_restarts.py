"""How often a dead engine is started again."""

from __future__ import annotations

import pytest

from triton_vllm.engine.restarts import Restarts


class Clock:
    """Stands where it is put."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock that does not go."""
    return Clock()


def test_the_wait_doubles_up_to_half_a_minute(clock: Clock) -> None:
    """A machine that needs a moment gets it."""
    restarts = Restarts(8, clock)
    assert [1, 2, 4, 8, 16, 30, 30, 30] == [restarts.start_try() for _ in range(8)]


def test_the_wait_never_ends_in_an_overflow(clock: Clock) -> None:
    """Who follows a leader tries as often as it does, for ever."""
    restarts = Restarts(8, clock)
    assert {30} == {restarts.start_try() for _ in range(2000)} - {1, 2, 4, 8, 16}


def test_a_good_life_forgives_without_being_asked(clock: Clock) -> None:
    """Who follows a leader does not ask whether it may try."""
    restarts = Restarts(8, clock)
    for _ in range(6):
        restarts.start_try()
    restarts.succeeded()
    clock.now += 301
    assert 1 == restarts.start_try()


def test_there_are_as_many_tries_as_allowed(clock: Clock) -> None:
    """In a row."""
    restarts = Restarts(2, clock)
    restarts.start_try()
    assert restarts.may_try()
    restarts.start_try()
    assert not restarts.may_try()


def test_a_short_life_forgives_nothing(clock: Clock) -> None:
    """An engine that starts and dies at once would be started for ever."""
    restarts = Restarts(1, clock)
    restarts.start_try()
    restarts.succeeded()
    clock.now += 60
    assert not restarts.may_try()


def test_a_good_life_forgives_the_tries_before(clock: Clock) -> None:
    """What happens after it is another story."""
    restarts = Restarts(1, clock)
    restarts.start_try()
    restarts.succeeded()
    clock.now += 301
    assert restarts.may_try()
    assert 1 == restarts.start_try()


def test_a_try_that_takes_long_is_not_a_good_life(clock: Clock) -> None:
    """A model that loads for ten minutes and then fails has not lived."""
    restarts = Restarts(1, clock)
    restarts.start_try()
    clock.now += 600
    assert not restarts.may_try()
