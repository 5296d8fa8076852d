"""What the server's command line tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from triton_vllm.config import server_options
from triton_vllm.config.server_options import ServerOptions

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
        (20, 1, 3),  # the exit timeout leaves 30 - 20 - 6 - 1
        (15, 1, 8),
        (8, 4, 10),
        (15, 4, 5),
        (29, 1, 3),  # less than that would kill an engine that is about to end
    ],
)
def test_the_end_of_an_engine_leaves_time_to_triton(
    drained: float, front_ends: int, expected: float
) -> None:
    """Its time is what the drain and Triton leave of the exit timeout, here 30 seconds."""
    assert expected == DEFAULTS.engine_seconds(drained, front_ends)


@pytest.mark.parametrize("exit_timeout", [10, 15, 30, 120])
@pytest.mark.parametrize("front_ends", [1, 2, 8])
def test_a_stop_fits_in_the_exit_timeout(exit_timeout: int, front_ends: int) -> None:
    """The longest drain and an engine that hangs leave at least 2 s to notice SIGTERM and exit."""
    server = ServerOptions(exit_timeout_seconds=exit_timeout)
    drained = server.drain_timeout_seconds(3600, front_ends)
    ended = drained + server.engine_seconds(drained, front_ends)
    if drained > 1:  # an exit timeout of 5 s for each front end and 3 s
        assert ended + front_ends + 2 <= exit_timeout
