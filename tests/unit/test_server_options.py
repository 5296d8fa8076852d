"""What the server's command line tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from triton_vllm.config import server_options
from triton_vllm.config.server_options import ServerOptions
from triton_vllm.config.settings import ServingSettings

DEFAULTS = ServerOptions(http=("127.0.0.1", 8000))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], DEFAULTS),
        (["--allow-metrics=true"], DEFAULTS),
        (["--allow-metrics=false", "--model-store=/m"], ServerOptions(DEFAULTS.http, False)),
        (["--allow-metrics", "false"], ServerOptions(DEFAULTS.http, False)),
        (["--allow-metrics=0"], ServerOptions(DEFAULTS.http, False)),
        (["--allow-gpu-metrics=false"], DEFAULTS),
        (["--http-port=18000", "--http-address", "0.0.0.0"], ServerOptions(("127.0.0.1", 18000))),
        (["--http-address=10.1.2.3"], ServerOptions(("10.1.2.3", 8000))),
        (["--allow-http=false"], ServerOptions(None)),
        (
            ["--grpc-header-forward-pattern", "x-.*", "--http-header-forward-pattern=(?-i)A"],
            ServerOptions(DEFAULTS.http, header_patterns=("(?-i)A", "x-.*")),
        ),
        (["--exit-timeout-secs=90"], ServerOptions(DEFAULTS.http, exit_timeout_seconds=90)),
    ],
)
def test_the_servers_command_line_is_read(
    arguments: list[str],
    expected: ServerOptions,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Triton itself does not tell a model what it was started with."""
    command = tmp_path / "cmdline"
    command.write_text("\0".join(["/opt/tritonserver/bin/tritonserver", *arguments, ""]))
    monkeypatch.setattr(server_options, "_parent_command", lambda: command)
    assert expected == ServerOptions.read()


def test_another_program_has_no_http_to_ask(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Triton inside another program: whatever listens at port 8000 is not known to be it."""
    command = tmp_path / "cmdline"
    command.write_text("python3\0serve.py\0")
    monkeypatch.setattr(server_options, "_parent_command", lambda: command)
    assert ServerOptions(None) == ServerOptions.read()


@pytest.mark.parametrize(
    ("drained", "front_ends", "expected"),
    [
        (0, 1, 10),  # an idle engine has what it may need
        (20, 1, 4),  # the exit timeout leaves 30 - 20 - 6
        (15, 1, 9),
        (8, 4, 10),
        (15, 4, 3),
        (29, 1, 3),  # less than that would kill an engine that is about to end
    ],
)
def test_the_end_of_an_engine_leaves_time_to_triton(
    drained: float, front_ends: int, expected: float
) -> None:
    """Its time is what the drain and Triton leave of the exit timeout, here 30 seconds."""
    assert expected == DEFAULTS.engine_seconds(drained, front_ends, stops=True)


def test_an_unload_has_no_exit_timeout() -> None:
    """The server serves on, so the engine has its ten seconds."""
    assert 10 == DEFAULTS.engine_seconds(29, 1, stops=False)


@pytest.mark.parametrize(("exit_timeout", "front_ends"), [(10, 1), (15, 2), (30, 1), (30, 8)])
def test_a_stop_fits_in_the_exit_timeout(exit_timeout: int, front_ends: int) -> None:
    """The longest drain and an engine that hangs leave time to notice SIGTERM and to exit."""
    server = ServerOptions(exit_timeout_seconds=exit_timeout)
    drained = server.drain_timeout_seconds(3600, front_ends)
    assert drained >= 1
    ended = drained + server.engine_seconds(drained, front_ends, stops=True)
    assert ended + 4 + 2 * front_ends == exit_timeout


def test_the_default_drain_fits_in_the_default_exit_timeout() -> None:
    """Without a warning or a shorter time."""
    drain = ServingSettings().drain_timeout_seconds
    assert drain == ServerOptions().drain_timeout_seconds(drain, 1)
