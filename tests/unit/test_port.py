"""A port belongs to one model, and to all front ends of it."""

from __future__ import annotations

import contextlib
import socket
from contextlib import closing

import pytest

from triton_vllm.errors import SettingsError
from triton_vllm.openai_api.port import bound_port

HOST = "127.0.0.1"


@pytest.fixture
def number() -> int:
    """A port that was free a moment ago."""
    with closing(socket.socket()) as probe:
        probe.bind((HOST, 0))
        number: int = probe.getsockname()[1]
    return number


def take(
    number: int, *, leads: bool = True, shared: bool = False
) -> contextlib.AbstractContextManager[socket.socket]:
    return bound_port(HOST, number, leads=leads, shared=shared, where="f")


def assert_in_use(number: int, **how: bool) -> None:
    with pytest.raises(SettingsError) as raised, take(number, **how):
        pass
    expected = f"f: {HOST}:{number}: Address already in use; a loaded model that has the port, "
    assert expected + "this one included, must be unloaded first" == str(raised.value)


@pytest.mark.parametrize("reuse", [False, True], ids=["plain", "SO_REUSEPORT"])
@pytest.mark.parametrize("shared", [False, True], ids=["one front end", "several"])
def test_somebody_elses_port_is_refused(number: int, reuse: bool, shared: bool) -> None:
    """Whoever listens there, and however: the load fails with one line."""
    with closing(socket.socket()) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(reuse))
        other.bind((HOST, number))
        other.listen()
        assert_in_use(number, shared=shared)


@pytest.mark.parametrize("shared", [False, True], ids=["one front end", "several"])
def test_two_models_that_load_at_once_do_not_share_a_port(number: int, shared: bool) -> None:
    """Nobody listens yet, so the kernel alone would let both have it."""
    with take(number, shared=shared):
        assert_in_use(number, shared=shared)
        assert_in_use(number, shared=not shared)


def test_front_ends_of_one_model_share_its_port(number: int) -> None:
    """Each listens with a socket of its own; nobody else gets in between."""
    with (
        take(number, shared=True) as leader,
        take(number, leads=False, shared=True) as follower,
        closing(socket.socket()) as other,
    ):
        leader.listen()
        follower.listen()
        with pytest.raises(OSError, match="in use"):
            other.bind((HOST, number))


def test_a_port_is_free_again(number: int) -> None:
    """A model can be loaded again at once, connections that it closed notwithstanding."""
    for _ in range(2):
        with take(number) as port:
            port.listen()
            with closing(socket.create_connection((HOST, number))) as client:
                accepted, _ = port.accept()
                accepted.close()  # first, so that TIME_WAIT is on this side
                assert b"" == client.recv(1)


def test_an_address_that_is_not_ours_is_said(number: int) -> None:
    """A wrong host is one line, too."""
    expected = r"f: 192\.0\.2\.1:\d+: Cannot assign requested address$"
    with (
        pytest.raises(SettingsError, match=expected),
        bound_port("192.0.2.1", number, leads=True, shared=False, where="f"),
    ):
        pass
