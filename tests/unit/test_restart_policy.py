"""How often a dead engine is started again."""

from __future__ import annotations

import pytest

from triton_vllm.engine.supervisor import RestartPolicy


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
    policy = RestartPolicy(8, clock)
    assert [0, 1, 2, 4, 8, 16, 30, 30] == [policy.start_attempt() for _ in range(8)]


def test_the_wait_never_ends_in_an_overflow(clock: Clock) -> None:
    """Who follows a leader tries as often as it does, for ever."""
    policy = RestartPolicy(8, clock)
    assert {30} == {policy.start_attempt() for _ in range(2000)} - {0, 1, 2, 4, 8, 16}


def test_a_good_life_forgives_without_being_asked(clock: Clock) -> None:
    """Who follows a leader does not ask whether it may try."""
    policy = RestartPolicy(8, clock)
    for _ in range(6):
        policy.start_attempt()
    policy.succeeded()
    clock.now += 301
    assert 0 == policy.start_attempt()


def test_there_are_as_many_tries_as_allowed(clock: Clock) -> None:
    """In a row."""
    policy = RestartPolicy(2, clock)
    policy.start_attempt()
    assert policy.may_try()
    policy.start_attempt()
    assert not policy.may_try()


def test_a_short_life_forgives_nothing(clock: Clock) -> None:
    """An engine that starts and dies at once would be started for ever."""
    policy = RestartPolicy(1, clock)
    policy.start_attempt()
    policy.succeeded()
    clock.now += 60
    assert not policy.may_try()


def test_a_good_life_forgives_the_tries_before(clock: Clock) -> None:
    """What happens after it is another story."""
    policy = RestartPolicy(1, clock)
    policy.start_attempt()
    policy.succeeded()
    clock.now += 301
    assert policy.may_try()
    assert 0 == policy.start_attempt()


def test_a_try_that_takes_long_is_not_a_good_life(clock: Clock) -> None:
    """A model that loads for ten minutes and then fails has not lived."""
    policy = RestartPolicy(1, clock)
    policy.start_attempt()
    clock.now += 600
    assert not policy.may_try()
