"""README.md, CHANGELOG.md and docs/: links resolve, shell blocks parse, pages are reachable."""

from __future__ import annotations

import functools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\((?!https?://)([^)\s]+)\)")
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    """Return a page's path within the repository."""
    return str(page.relative_to(ROOT))


@functools.cache
def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


@functools.cache
def anchors(page: Path) -> frozenset[str]:
    """Return the names by which links reach a page's headings, as GitHub makes them."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        same = sum(each == name or each.startswith(f"{name}-#") for each in found)
        found.append(f"{name}-#{same}" if same else name)
    return frozenset(each.replace("-#", "-") for each in found)


def links(page: Path) -> list[tuple[Path, str]]:
    """Return the files and anchors within the repository to which a page links."""
    targets = [target.partition("#") for target in LINK.findall(prose(page))]
    return [((page.parent / path if path else page).resolve(), part) for path, _, part in targets]


def broken(page: Path) -> list[str]:
    """Return the links of a page that lead nowhere."""
    return [
        f"{target}#{anchor}"
        for target, anchor in links(page)
        if not target.exists() or (anchor and anchor not in anchors(target))
    ]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_within_the_repository_resolve(page: Path) -> None:
    """A relative link leads to a file, and to a heading of it if it names one."""
    assert [] == broken(page)


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    """The check sees a missing file, a missing heading, and a heading in a code block."""
    page = tmp_path / "page.md"
    page.write_text("[a](no.md) [b](#no) [c](#yes)\n```text\n# No\n```\n# Yes\n")
    assert [f"{tmp_path}/no.md#", f"{page}#no"] == broken(page)


def test_each_page_is_reachable() -> None:
    """A reader who starts at README.md and follows links finds every page of docs/."""
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in seen and page.suffix == ".md" and page.exists():
            seen.add(page)
            waiting += [target for target, _ in links(page)]
    assert set() == set(PAGES) - seen


def blocks(*languages: str) -> list[Any]:
    """Return each code block of these languages as a test's parameter, with a name for it."""
    return [
        pytest.param(text, id=f"{name_of(page)}:{text.strip().splitlines()[0][:40]}")
        for page in PAGES
        for language, text in FENCE.findall(page.read_text(encoding="utf-8"))
        if language in languages
    ]


@pytest.mark.parametrize("script", blocks("bash"))
def test_each_shell_block_parses(script: str) -> None:
    """Bash finds no syntax error in what a reader will copy."""
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (0, "") == (done.returncode, done.stderr)


@pytest.mark.parametrize("program", blocks("python"))
def test_each_python_block_compiles(program: str) -> None:
    """Python finds no syntax error either."""
    compile(program, "docs", "exec")


@pytest.mark.parametrize("text", blocks("json"))
def test_each_json_block_is_json(text: str) -> None:
    """What goes into vllm_engine_args.json and its like is an object; an output may be a list."""
    assert isinstance(json.loads(text), dict | list)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_each_yaml_block_is_an_object(text: str) -> None:
    """What goes into a chart's values or a pod is a YAML object."""
    assert isinstance(yaml.safe_load(text), dict)


def named_tests(page: Path) -> set[str]:
    """Return the tests and the files of tests that a page names in code spans."""
    spans = re.findall(r"`((?:tests/[\w/]+/)?test_\w+(?:\.py|\.\.\.)?)`", prose(page))
    return set(spans)


@functools.cache
def functions_of_tests() -> frozenset[str]:
    """Return the names of all test functions of the repository."""
    files = (ROOT / "tests").rglob("test_*.py")
    texts = (file.read_text(encoding="utf-8") for file in files)
    return frozenset(
        name for text in texts for name in re.findall(r"^(?:async )?def (test_\w+)", text, re.M)
    )


def is_there(test: str) -> bool:
    """Return whether a test exists: a path, a file's name, a function or the start of one."""
    if "/" in test:
        return (ROOT / test).exists()
    if test.endswith(".py"):
        return any((ROOT / "tests").rglob(test))
    if test.endswith("..."):
        return any(name.startswith(test.rstrip(".")) for name in functions_of_tests())
    return test in functions_of_tests()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_each_named_test_exists(page: Path) -> None:
    """A page names only tests that are in the repository."""
    assert [] == sorted(test for test in named_tests(page) if not is_there(test))


def test_the_readme_is_short() -> None:
    """README.md is a landing page of at most 160 lines."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160
