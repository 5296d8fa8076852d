"""The object ``"openai"`` in ``"serving"``: OpenAI-compatible HTTP, on the same engine.

Some keys belong to this package; every other one is an option of ``vllm serve``'s front end, under
vLLM's name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from triton_vllm.config.validation import CONFIG, setting
from triton_vllm.errors import SettingsError


@dataclass(frozen=True, slots=True)
class OpenAISettings:
    """Where and how the OpenAI-compatible API is served. ``frontend`` holds vLLM's own options."""

    __pydantic_config__ = CONFIG

    port: int = setting(MISSING, ge=1, le=65535)
    """TCP port, one for each model. Required. The first of several engines uses it, the next one
    the next port."""
    server: Literal["python", "rust"] = "python"
    """What serves the port: `"python"` is vLLM's Python server with this package's limits; `"rust"`
    is vLLM's [Rust front end](#the-rust-front-end), which is faster and has none of them."""
    host: str = setting("127.0.0.1", min_length=1)
    """Address to listen on; `"0.0.0.0"` is every IPv4 address of the host."""
    api_keys_env: str = setting("")
    """Environment variable with the API keys, separated by white space. Empty, and without
    `api_keys_file`: `VLLM_API_KEY`, as in `vllm serve`. Without keys the port is open."""
    api_keys_file: str = setting("")
    """File with the API keys, separated by white space. It is read at the load."""
    served_model_name: tuple[str, ...] = ()
    """Name, or array of names, that clients use for the model. Empty: the engine argument
    `served_model_name`, else `model`."""
    drain_timeout_seconds: float = setting(10.0, ge=0, le=3600)
    """Time that running requests get when the model is unloaded or the server is stopped, at most
    what `--exit-timeout-secs` leaves."""
    frontend: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.api_keys_env and self.api_keys_file:
            raise ValueError('"api_keys_env" and "api_keys_file" exclude each other')
        if not all(self.served_model_name):
            raise ValueError('"served_model_name" must not be empty')

    def read_api_keys(self, where: str) -> tuple[str, ...]:
        """Return the API keys, none for an open port. Raises SettingsError, which quotes none."""
        if self.api_keys_file:
            source = f'"api_keys_file": {self.api_keys_file}'
            try:
                text = Path(self.api_keys_file).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "not UTF-8"
                raise SettingsError(f"{where}: {source} cannot be read: {reason}") from None
        else:
            text = os.environ.get(self.api_keys_env or "VLLM_API_KEY", "")
            source = f'"api_keys_env": the environment variable {self.api_keys_env}'
        keys = tuple(text.split())
        if not keys and (self.api_keys_file or self.api_keys_env):
            raise SettingsError(f"{where}: {source} holds no key")
        return keys


def with_frontend(given: object) -> object:
    """Return ``given`` with vLLM's options in ``frontend``; unchanged if it is no object."""
    if not isinstance(given, dict):
        return given
    own = {f.name for f in fields(OpenAISettings)} - {"frontend"}
    values = {key: value for key, value in given.items() if key in own}
    if isinstance(name := values.get("served_model_name"), str):
        values["served_model_name"] = [name]
    return values | {"frontend": {k: v for k, v in given.items() if k not in own}}
