"""The list of LoRA adapters: read, looked up, read again."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from triton_vllm.config.lora import ADAPTERS_FILE, Adapter, Adapters, LoadedAdapters, NoAdapters
from triton_vllm.errors import (
    AdapterNotFoundError,
    RequestError,
    ServingError,
    SettingsError,
    UnavailableError,
)


def write(folder: Path, content: Any) -> Path:
    """Replace the list at one stroke, as a new file."""
    path = folder / ADAPTERS_FILE
    new = folder / "new"
    new.write_text(content if isinstance(content, str) else json.dumps(content))
    os.replace(new, path)  # noqa: PTH105
    return path


def adapter_folder(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    (folder / name / "adapter_config.json").write_text("{}")
    return folder / name


def test_a_folder_and_a_hub_id(tmp_path: Path) -> None:
    """A folder may be given relative to the list; what is no folder there is left as it is."""
    adapter_folder(tmp_path, "fr")
    adapters = Adapters(write(tmp_path, {"french": "fr", "german": "org/german"}))
    assert str(tmp_path / "fr") == adapters.find("french").path
    assert "org/german" == adapters.find("german").path
    assert not adapters.find("german").is_gone


def test_an_unknown_name(tmp_path: Path) -> None:
    """It is told with the nearest, and all there are; never with their paths."""
    adapters = Adapters(write(tmp_path, {"french": "org/fr", "german": "org/de"}))
    expected = (
        'lora_name: unknown adapter "frensh", did you mean "french"?, available: french, german'
    )
    with pytest.raises(AdapterNotFoundError, match=re.escape(expected)) as raised:
        adapters.find("frensh")
    assert "NOT_FOUND" == raised.value.status


def test_a_changed_list_counts_at_once(tmp_path: Path) -> None:
    """A name may come, go, and lead elsewhere."""
    adapters = Adapters(write(tmp_path, {"a": "org/a", "b": "org/b"}))
    before = adapters.find("a")
    write(tmp_path, {"a": "org/a2", "c": "org/c"})
    after = adapters.find("a")
    assert ("org/a2", "org/c") == (after.path, adapters.find("c").path)
    assert before.engine_name != after.engine_name
    assert before.engine_id != after.engine_id
    with pytest.raises(AdapterNotFoundError, match="available: a, c"):
        adapters.find("b")


def test_what_is_unchanged_stays_the_same_to_the_engine(tmp_path: Path) -> None:
    """Another adapter's change does not make the engine load this one again."""
    adapters = Adapters(write(tmp_path, {"a": "org/a"}))
    before = adapters.find("a")
    write(tmp_path, {"a": "org/a", "b": "org/b"})
    assert before == adapters.find("a")


def test_new_weights_in_the_same_folder_are_a_new_adapter(tmp_path: Path) -> None:
    """So that neither the engine nor its prefix cache takes the old ones for them."""
    folder = adapter_folder(tmp_path, "a")
    before = Adapter.at("a", str(folder), tmp_path)
    (folder / "adapter_config.json").write_text('{"r": 8}')
    assert before.digest != Adapter.at("a", str(folder), tmp_path).digest


def test_weights_of_the_same_size_and_age_are_a_new_adapter(tmp_path: Path) -> None:
    """As layers of an image and `cp -p` leave them."""
    folder = adapter_folder(tmp_path, "a")
    file = folder / "adapter_config.json"
    file.write_text('{"r": 1}')
    before, then = Adapter.at("a", str(folder), tmp_path), file.stat()
    file.write_text('{"r": 2}')
    os.utime(file, ns=(then.st_atime_ns, then.st_mtime_ns))
    assert before.digest != Adapter.at("a", str(folder), tmp_path).digest


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 7}', '{"a": ""}', '{"a": "x", "a": "y"}'])
def test_a_malformed_list_fails_the_load_but_not_a_running_model(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Later, the adapters stay as they were, and the log says why, once."""
    with pytest.raises(SettingsError, match=ADAPTERS_FILE):
        Adapters(write(tmp_path, content))
    adapters = Adapters(write(tmp_path, {"a": "org/a"}))
    write(tmp_path, content)
    assert "org/a" == adapters.find("a").path
    assert "org/a" == adapters.find("a").path
    (line,) = [line for line in caplog.messages if "stay as they were" in line]
    assert str(tmp_path / ADAPTERS_FILE) in line


def test_a_missing_list_fails_the_load(tmp_path: Path) -> None:
    """The error says what the file is for, and what an empty one looks like."""
    with pytest.raises(SettingsError, match=re.escape("{} for none yet")):
        Adapters(tmp_path / ADAPTERS_FILE)


def test_the_list_may_be_in_either_folder_but_not_in_both(tmp_path: Path) -> None:
    """In the model's, or in the version's as with Triton's own backend."""
    (tmp_path / "1").mkdir()
    write(tmp_path / "1", {"a": "org/a"})
    assert "org/a" == Adapters.of_model(tmp_path, "1").find("a").path
    write(tmp_path, {"b": "org/b"})
    with pytest.raises(SettingsError, match="keep one of the two"):
        Adapters.of_model(tmp_path, "1")
    (tmp_path / "1" / ADAPTERS_FILE).unlink()
    assert "org/b" == Adapters.of_model(tmp_path, "1").find("b").path


def test_without_lora_a_name_is_refused() -> None:
    """The error says which setting is missing."""
    with pytest.raises(RequestError, match='"enable_lora" is not set'):
        NoAdapters().find("a")


def test_an_adapter_is_loaded_before_its_first_use(tmp_path: Path) -> None:
    """Once for each of its states; no name needs none."""
    adapters = Adapters(write(tmp_path, {"a": "org/a"}))
    loaded = LoadedAdapters(adapters)
    loads: list[str] = []

    async def load(adapter: Adapter) -> Adapter:
        loads.append(adapter.path)
        return adapter

    async def use() -> None:
        assert await loaded.get("", load) is None
        assert await loaded.get("a", load) == await loaded.get("a", load)
        write(tmp_path, {"a": "org/a2"})
        await loaded.get("a", load)

    asyncio.run(use())
    assert ["org/a", "org/a2"] == loads


def test_one_that_cannot_be_loaded_is_tried_again(tmp_path: Path) -> None:
    """The request is answered UNAVAILABLE, and the next one has its chance."""
    loaded = LoadedAdapters(Adapters(write(tmp_path, {"a": "org/a"})))
    outcomes = iter([OSError("no network"), None])

    async def load(adapter: Adapter) -> Adapter:
        if error := next(outcomes):
            raise error
        return adapter

    async def use() -> None:
        with pytest.raises(UnavailableError, match='adapter "a" cannot be loaded: no network'):
            await loaded.get("a", load)
        assert await loaded.get("a", load)

    asyncio.run(use())


def test_one_whose_folder_is_gone_does_not_reach_the_engine(tmp_path: Path) -> None:
    """The engine might look for it in the middle of a batch."""
    folder = adapter_folder(tmp_path, "a")
    loaded = LoadedAdapters(Adapters(write(tmp_path, {"a": "a"})))
    (folder / "adapter_config.json").unlink()
    folder.rmdir()

    async def load(adapter: Adapter) -> Adapter:
        raise AssertionError

    with pytest.raises(ServingError, match="its folder is gone"):
        asyncio.run(loaded.get("a", load))


def test_the_engines_numbers_fit_in_31_bits() -> None:
    """They are positive, and differ."""
    ids = {Adapter(f"a{i}", "p", "d").engine_id for i in range(1000)}
    assert 1000 == len(ids)
    assert all(0 < number < 2**31 for number in ids)
