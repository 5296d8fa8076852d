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
