"""Which of the operator's paths are refused as unreadable."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from triton_vllm.config.files import check_readable, read_json_object
from triton_vllm.errors import SettingsError

NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """A model's folder that every user may enter."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    for name in "config.json", "model.safetensors", "notes.md":
        (folder / name).write_text("{}")
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def without_rights() -> Iterator[int]:
    """Be a user for whom the modes of files count, as they do not for root."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield os.geteuid()
    finally:
        os.seteuid(before)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_of_a_model_that_may_not_be_read(folder: Path, name: str) -> None:
    """The line names the key, the file and the user; vLLM would call the file missing."""
    (folder / name).chmod(0)
    with without_rights() as uid, pytest.raises(SettingsError) as raised:
        check_readable({"dtype": "auto", "model": str(folder)}, "f.json")
    assert f'f.json: "model": {folder / name}: not readable for uid {uid}' == str(raised.value)


def test_a_path_below_a_folder_that_may_not_be_entered(folder: Path) -> None:
    """Whether the file exists cannot be told."""
    (folder / "adapter").mkdir(mode=0)
    given = {"speculative_config": {"model": "adapter/weights"}}
    with without_rights(), pytest.raises(SettingsError, match="adapter/weights: not readable"):
        check_readable(given, "f.json", folder)
    (folder / "adapter").chmod(0o700)  # for the clean-up of a user that is not root


@pytest.mark.parametrize(
    "value",
    ["", "auto", "org/model", "a\0b", "x" * 5000, "~nobody-of-this-name/m", 3, None, ["/root"]],
    ids=["empty", "word", "hub id", "NUL", "long", "home", "number", "null", "array"],
)
def test_what_is_no_path_is_left_to_vllm(value: object) -> None:
    """Only what exists is checked."""
    check_readable({"model": value}, "f.json")


def test_files_that_vllm_does_not_read_do_not_matter(folder: Path) -> None:
    """Nor do links to nothing."""
    (folder / "notes.md").chmod(0)
    (folder / "gone.json").symlink_to("nowhere")
    with without_rights():
        check_readable({"model": str(folder)}, "f.json")


def test_engine_arguments_that_may_not_be_read(folder: Path) -> None:
    """The file itself."""
    path = folder / "config.json"
    path.chmod(0)
    with without_rights() as uid, pytest.raises(SettingsError) as raised:
        read_json_object(path, "the engine arguments")
    assert f"{path}: not readable for uid {uid}" == str(raised.value)
