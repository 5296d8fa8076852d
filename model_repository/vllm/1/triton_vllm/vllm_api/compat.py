"""The modules that vLLM has moved between the supported versions, by what they hold."""

from __future__ import annotations

from triton_vllm.vllm_api.versions import first

chat_utils = first("vllm.renderers.chat_utils", "vllm.entrypoints.chat_utils")
cli_args = first(
    "vllm.entrypoints.common.cli_args",
    "vllm.entrypoints.launchers.cli_args",
    "vllm.entrypoints.openai.cli_args",
)
protocol = first(
    "vllm.entrypoints.generate.base.protocol", "vllm.entrypoints.openai.engine.protocol"
)
