"""scripts/join_cluster.sh: what it becomes. The real thing joins in tests/e2e/test_cluster.py."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/join_cluster.sh"

# Says with what it was called; has Ray unless told otherwise; makes arguments of a file.
PYTHON = """#!/usr/bin/env bash
case "$*" in
    "-c import ray") exit "${NO_RAY:-0}" ;;
    "-m triton_vllm.vllm_api.arguments "*)
        [ -e "$3" ] || { echo "$3: missing" >&2; exit 1; }
        printf '%s\\n' /models/m '--hf-overrides={"a": "b c"}' ;;
    *) printf '[%s]' "$@"; echo; echo "${PATH%%:*}" ;;
esac
"""


@pytest.fixture
def env(tmp_path: Path) -> Path:
    """An execution environment with nothing in it but a python."""
    python = tmp_path / "vllm env/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    return tmp_path / "vllm env"


def join(env: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, "--env", env, *words],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", **variables},
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["ray", "10.0.0.1:6379", "--num-gpus=2"],
            "[-m][ray.scripts.scripts][start][--address=10.0.0.1:6379][--block]"
            "[--disable-usage-stats][--num-gpus=2]",
        ),
        (
            ["ray", "--head", "--port=6379"],
            "[-m][ray.scripts.scripts][start][--head][--block][--disable-usage-stats][--port=6379]",
        ),
        (
            ["vllm", "/models/m", "--node-rank", "1"],
            "[-m][vllm.entrypoints.cli.main][serve][--headless][/models/m][--node-rank][1]",
        ),
    ],
    ids=["a node of Ray", "the head of Ray", "vLLM"],
)
def test_it_becomes_the_real_program(env: Path, words: list[str], expected: str) -> None:
    """With the options given, and the environment's programs first on PATH."""
    done = join(env, *words)
    assert [expected, str(env / "bin")] == done.stdout.splitlines(), done.stderr


def test_arguments_are_taken_from_the_heads_file(env: Path, tmp_path: Path) -> None:
    """One argument for each line, whatever is in it; those given by hand come last, and win."""
    (tmp_path / "args.json").touch()
    done = join(env, "vllm", "--args", str(tmp_path / "args.json"), "--node-rank", "1")
    expected = (
        "[-m][vllm.entrypoints.cli.main][serve][/models/m]"
        '[--hf-overrides={"a": "b c"}][--headless][--node-rank][1]'
    )
    assert expected == done.stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("words", "variables", "expected"),
    [
        (["ray", "a:1"], {"NO_RAY": "1"}, "the environment has no Ray: "),
        (["vllm", "--args", "/no/such/file"], {}, "/no/such/file: missing"),
        (["kubernetes"], {}, "the first argument must be ray or vllm, got 'kubernetes'"),
        ([], {}, "the first argument must be ray or vllm, got ''"),
    ],
    ids=["no Ray", "no file", "another word", "no word"],
)
def test_mistakes(env: Path, words: list[str], variables: dict[str, str], expected: str) -> None:
    """They end it with a line that says what to mend."""
    done = join(env, *words, **variables)
    assert 1 == done.returncode
    assert expected in done.stderr


def test_no_environment(tmp_path: Path) -> None:
    """The line says what makes one."""
    assert "gen_vllm_env.sh --format dir makes one" in join(tmp_path, "vllm").stderr
