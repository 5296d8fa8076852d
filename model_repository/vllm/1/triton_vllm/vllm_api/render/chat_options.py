"""vLLM's options for chat, which stand beside the engine arguments."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping
from typing import Any


class ChatOptions:
    """The options that stand in the file ``where``, parsed and checked by vLLM's own parser.

    This takes the import of vLLM's chat, a second: at once where the operator has given some, so
    that a mistake fails the load; else when somebody asks for them.
    """

    def __init__(self, given: Mapping[str, Any], engine_args: Any, where: str) -> None:
        """Raise SettingsError for what is wrong in ``given``."""
        self._given = given
        self._engine_args = engine_args
        self._where = where
        plugin = getattr(engine_args, "reasoning_parser_plugin", None)
        self.are_given = bool(given or engine_args.reasoning_parser or plugin)
        if self.are_given:
            self.args  # noqa: B018  checks them

    @functools.cached_property
    def args(self) -> argparse.Namespace:
        """All options of ``vllm serve``'s front end."""
        from triton_vllm.vllm_api.render.chat import parse_chat_args

        return parse_chat_args(self._given, self._engine_args, self._where)

    @property
    def template(self) -> str | None:
        """The chat template that the operator has given in place of the model's."""
        return self.args.chat_template if self._given else None
