"""The LoRA adapters of a model, from ``multi_lora.json``.

The file maps names to folders or to ids on a model hub. It is checked whenever a request names an
adapter, so a change is used from the next request on. An adapter whose path or files have changed
is a new adapter for the engine: running requests keep the old weights, and the new weights never
use the cache of the old ones.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from triton_vllm.config.files import check_readable, model_file, read_json_object
from triton_vllm.errors import (
    AdapterNotFoundError,
    RequestError,
    SettingsError,
    UnavailableError,
    did_you_mean,
    one_line,
)

logger = logging.getLogger(__name__)

ADAPTERS_FILE = "multi_lora.json"
_SAMPLES = 16  # of a file
_SAMPLE_BYTES = 4096


def _sample(file: Path) -> str:
    """Return a digest of a few parts of a file, empty for what is none or cannot be read.

    An image and ``cp -p`` may give other weights the size and the time of those before. The whole
    would take too long in the event loop.
    """
    digest = hashlib.sha256()
    try:
        with file.open("rb") as opened:
            size = opened.seek(0, os.SEEK_END)
            for part in range(_SAMPLES):
                opened.seek(size * part // _SAMPLES)
                digest.update(opened.read(_SAMPLE_BYTES))
    except OSError:
        return ""
    return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter. ``path`` is absolute or a hub id; ``digest`` changes with its files."""

    name: str
    path: str
    digest: str

    @classmethod
    def at(cls, name: str, path: str, folder: Path) -> Adapter:
        """Return the adapter as it is now. A relative ``path`` may be in ``folder``."""
        here = folder / Path(path).expanduser()
        state = [str(here)] if here.exists() else [path]
        if here.is_dir():
            for file in sorted(here.iterdir()):
                found = file.stat()
                state.append(f"{file.name} {found.st_size} {found.st_mtime_ns} {_sample(file)}")
        digest = hashlib.sha256("\n".join(state).encode()).hexdigest()[:8]
        return cls(name, state[0], digest)

    @property
    def engine_name(self) -> str:
        """The engine's name for it, also in metrics and in the key of its prefix cache."""
        return f"{self.name}@{self.digest}"

    @property
    def engine_id(self) -> int:
        """The engine's number for it: positive, of 31 bits, the same in every front end."""
        digest = hashlib.sha256(self.engine_name.encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1 or 1

    @property
    def is_gone(self) -> bool:
        """Whether its folder has been removed, which the engine would not handle."""
        path = Path(self.path)
        return path.is_absolute() and not path.is_dir()


class NoAdapters:
    """A model without LoRA."""

    def find(self, name: str) -> Adapter:
        """Raise RequestError."""
        raise RequestError(f'lora_name: got "{name}", but "enable_lora" is not set for this model')


class Adapters:
    """The adapters of ``multi_lora.json``. Event loop only."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises SettingsError, one line, if it is missing or malformed."""
        self._path = path
        self._seen = self._state()
        self._listed = self._read()

    @classmethod
    def of_model(cls, directory: Path, version: str) -> Adapters:
        """Return the adapters of a model. The file is in the model's folder or the version's."""
        return cls(model_file(directory, version, ADAPTERS_FILE, ADAPTERS_FILE))

    def find(self, name: str) -> Adapter:
        """Return an adapter. Raises AdapterNotFoundError, which lists the available ones."""
        if (state := self._state()) != self._seen:
            self._seen = state
            try:
                self._listed = self._read()
            except SettingsError as error:
                logger.error(f"{error}; the adapters stay as they were")
            else:
                logger.info(f"{self._path}: read again: {', '.join(self._listed) or 'empty'}")
        if name not in self._listed:
            nearest, there = did_you_mean(name, self._listed), ", ".join(self._listed) or "none"
            raise AdapterNotFoundError(
                f'lora_name: unknown adapter "{name}"{nearest}, available: {there}'
            )
        return self._listed[name]

    def _state(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> dict[str, Adapter]:
        content = 'the folders or hub ids of adapters by name ("enable_lora"), {} for none yet'
        listed = read_json_object(self._path, content)
        check_readable(listed, str(self._path), self._path.parent)
        adapters = {}
        for name, path in listed.items():
            where = f'{self._path}: "{name}"'
            if not name or not isinstance(path, str) or not path:
                raise SettingsError(f"{where}: must be a folder or a hub id, got {path!r}")
            try:
                adapters[name] = Adapter.at(name, path, self._path.parent)
            except OSError as error:
                raise SettingsError(f"{where}: {error}") from None
        return adapters


class LoadedAdapters:
    """The adapters that one run of the engine has loaded.

    Each is loaded before its first use: a request with an adapter that cannot be loaded would
    otherwise end the engine.
    """

    def __init__(self, adapters: Adapters | NoAdapters) -> None:
        self._adapters = adapters
        self._loaded: dict[Adapter, Adapter] = {}

    async def get(self, name: str, load: Callable[[Adapter], Awaitable[Adapter]]) -> Adapter | None:
        """Return the adapter of that name, None for an empty name.

        A new one is loaded first. ``load`` returns it with the folder that holds it now.
        """
        if not name:
            return None
        adapter, what = self._adapters.find(name), f'lora_name: adapter "{name}"'
        if adapter.is_gone:
            raise UnavailableError(f"{what}: its folder is gone")
        if adapter not in self._loaded:
            try:
                self._loaded[adapter] = await load(adapter)
            except Exception as error:
                raise UnavailableError(f"{what} cannot be loaded: {one_line(error)}") from error
        return self._loaded[adapter]
