"""The object ``"openai"`` in ``"serving"``: OpenAI-compatible HTTP, on the same engine.

A few keys are ours; every other one is an option of ``vllm serve``'s front end, under vLLM's name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triton_vllm.errors import SettingsError

OPENAI_KEY = "openai"
_LONGEST_DRAIN = 3600.0  # seconds


@dataclass(frozen=True, slots=True)
class OpenAISettings:
    """Where and how OpenAI's protocol is spoken.

    The API keys are the words of the environment variable ``api_keys_env`` or of the file
    ``api_keys_file`` (neither: of VLLM_API_KEY, as in ``vllm serve``). ``served_model_name`` is
    what clients call the model (empty: what the engine argument of that name says, else
    ``model``). ``drain_timeout_seconds`` are given to requests under way when the model is unloaded.
    ``frontend`` holds vLLM's own options, as they stand in the file.
    """

    port: int
    host: str = "127.0.0.1"
    api_keys_env: str = ""
    api_keys_file: str = ""
    served_model_name: tuple[str, ...] = ()
    drain_timeout_seconds: float = 10.0
    frontend: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, given: object, where: str) -> OpenAISettings:
        """Check our keys of the object ``given``; ``where`` names the file and the object.

        vLLM's keys are checked later, by vLLM's own parser. Raises SettingsError.
        """
        if not isinstance(given, dict):
            raise SettingsError(f"{where}: must be an object, got {given!r}")
        values = dict(given)
        port = values.pop("port", None)
        if type(port) is not int or not 1 <= port <= 65535:
            raise SettingsError(
                f'{where}: "port" must be an integer from 1 to 65535, '
                + ("but is missing" if port is None else f"got {port!r}")
            )
        texts = {key: values.pop(key, "") for key in ("api_keys_env", "api_keys_file")}
        texts["host"] = values.pop("host", "127.0.0.1")
        for key, text in texts.items():
            if not isinstance(text, str) or (key == "host" and not text):
                raise SettingsError(f'{where}: "{key}" must be a string, got {text!r}')
        if texts["api_keys_env"] and texts["api_keys_file"]:
            raise SettingsError(f'{where}: "api_keys_env" and "api_keys_file" exclude each other')
        seconds = values.pop("drain_timeout_seconds", 10.0)
        if type(seconds) not in (int, float) or not 0 <= seconds <= _LONGEST_DRAIN:
            raise SettingsError(
                f'{where}: "drain_timeout_seconds" must be a number from 0 to {_LONGEST_DRAIN:.0f}, '
                f"got {seconds!r}"
            )
        names = values.pop("served_model_name", [])
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
            raise SettingsError(
                f'{where}: "served_model_name" must be a string or an array of strings, '
                f"got {names!r}"
            )
        return cls(
            port=port,
            served_model_name=tuple(names),
            drain_timeout_seconds=float(seconds),
            frontend=values,
            **texts,
        )

    def read_api_keys(self, where: str) -> tuple[str, ...]:
        """Return the API keys, none where anybody may come in. Raises SettingsError.

        The error never quotes what it found.
        """
        if self.api_keys_file:
            try:
                text = Path(self.api_keys_file).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "not UTF-8"
                raise SettingsError(
                    f'{where}: "api_keys_file": {self.api_keys_file} cannot be read: {reason}'
                ) from None
            source = f'"api_keys_file": {self.api_keys_file}'
        else:
            text = os.environ.get(self.api_keys_env or "VLLM_API_KEY", "")
            source = f'"api_keys_env": the environment variable {self.api_keys_env}'
        keys = tuple(text.split())
        if not keys and (self.api_keys_file or self.api_keys_env):
            raise SettingsError(f"{where}: {source} holds no key")
        return keys
