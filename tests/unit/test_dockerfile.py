"""Dockerfile: what can be seen without building it; scripts/build_image.sh builds and runs it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
ENVIRONMENT = "/models/vllm/vllm_env"


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its stage, its word and rest, and whether a comment stands above it."""

    stage: str
    word: str
    rest: str
    explained: bool

    @property
    def sources(self) -> list[str]:
        """What a COPY takes from the checkout."""
        if self.word != "COPY" or "--from=" in self.rest:
            return []
        return self.rest.split()[:-1]


def parse() -> list[Instruction]:
    """Read the Dockerfile, with lines that a backslash continues as one."""
    instructions = []
    stage, text, explained, before = "", "", False, ""
    for line in LINES:
        if text or (line and not line.startswith("#")):
            explained = explained if text else before.startswith("#")
            text += line.removesuffix("\\").strip() + " "
            if not line.endswith("\\"):
                word, _, rest = text.strip().partition(" ")
                stage = rest.split(" AS ")[1] if word == "FROM" else stage
                instructions.append(Instruction(stage, word, rest, explained))
                text = ""
        before = line
    return instructions


INSTRUCTIONS = parse()


def only(word: str, stage: str = "server") -> str:
    """Return the rest of the one instruction of that word in a stage."""
    (found,) = [each.rest for each in INSTRUCTIONS if (each.stage, each.word) == (stage, word)]
    return found


def sent_to_builder(path: str) -> bool:
    """Apply .dockerignore to a file: of the patterns that match, the last decides."""
    sent = True
    for pattern in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        kept = pattern.removeprefix("!").removeprefix("**/")
        parts = [path, *map(str, Path(path).parents), *Path(path).parts]
        if not pattern.startswith("#") and any(fnmatch(part, kept) for part in parts):
            sent = pattern.startswith("!")
    return sent


@pytest.mark.parametrize("instruction", INSTRUCTIONS, ids=lambda each: f"{each.stage}-{each.word}")
def test_every_instruction_says_why(instruction: Instruction) -> None:
    """A comment stands right above each instruction."""
    assert instruction.explained, instruction.rest


def test_the_base_is_pinned() -> None:
    """One release of NVIDIA's image, the same in all stages."""
    bases = {each.rest.split(" AS ")[0] for each in INSTRUCTIONS if each.word == "FROM"}
    assert re.search(r"^BASE_IMAGE=nvcr\.io/nvidia/tritonserver:2\d\.\d\d-py3$", only("ARG", ""))
    assert bases == {"${BASE_IMAGE}"}


def test_the_model_does_not_rebuild_the_environment() -> None:
    """The environment's stage sees the scripts that make it, all of them, and nothing else."""
    named = (ROOT / "gen_vllm_env.sh").read_text(encoding="utf-8")
    scripts = {f"scripts/{name}.py" for name in re.findall(r"scripts/(\w+)\.py", named)}
    listed = re.findall(r"scripts/\{([\w,]+)\}\.py", named)
    scripts |= {f"scripts/{name}.py" for group in listed for name in group.split(",")}
    scripts |= {"scripts/uv.sh", "scripts/pip_settings.py"}
    locks = re.findall(r"requirements/\{([\w,-]+)\}\.lock", named)
    packages = {f"requirements/{name}.lock" for group in locks for name in group.split(",")}
    copied = {s for each in INSTRUCTIONS if each.stage == "environment" for s in each.sources}
    assert copied == {"gen_vllm_env.sh", *scripts, *packages, "requirements/uv.lock"}
    assert f"--model-dir {Path(ENVIRONMENT).parent}" in only("RUN", "environment")
    copies = [each.rest for each in INSTRUCTIONS if (each.stage, each.word) == ("server", "COPY")]
    assert copies == [
        f"--from=environment {Path(ENVIRONMENT).parent} {Path(ENVIRONMENT).parent}",
        "--from=repository /opt/triton_vllm /opt/triton_vllm",
        "--from=repository /models /models",
    ]


def test_the_server_runs_as_another_user_than_root_and_without_a_shell() -> None:
    """A number for Kubernetes, exec form for signals, liveness for the health check."""
    check = json.loads(only("HEALTHCHECK").partition("CMD ")[2])
    assert only("USER") == "1000:1000"
    assert json.loads(only("CMD")) == ["tritonserver", "--model-store=/models"]
    assert ["python3", "/opt/triton_vllm/probe.py", "live"] == check


def test_the_caches_lie_where_the_user_may_write() -> None:
    """Hugging Face's and vLLM's caches are in the folder that is made for the server's user."""
    assert only("RUN").endswith("--owner=1000 --group=1000 /cache")
    places = dict(each.split("=") for each in only("ENV").split())
    assert set(places) == {"HOME", "HF_HOME", "VLLM_CACHE_ROOT"}
    assert all(place.startswith("/cache") for place in places.values())


def test_the_builder_is_sent_what_is_copied_and_nothing_built() -> None:
    """.dockerignore lets pass every source of a COPY, and no environment, cache or checkout."""
    sources = [ROOT / source for each in INSTRUCTIONS for source in each.sources]
    assert all(source.exists() for source in sources)
    files = ["model_repository/vllm/config.pbtxt", "model_repository/vllm/1/model.py"]
    files += [str(source.relative_to(ROOT)) for source in sources if source.is_file()]
    assert [file for file in files if not sent_to_builder(file)] == []
    model = "model_repository/vllm"
    built = [f"{model}/{name}" for name in ("vllm_env.tar.gz", "vllm_env/bin/python")]
    built += [f"{model}/1/triton_vllm/__pycache__/errors.pyc", ".cache/client/bin/pip", ".git/HEAD"]
    assert [file for file in built if sent_to_builder(file)] == []
