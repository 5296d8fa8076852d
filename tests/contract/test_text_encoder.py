"""The short way to a prompt's token ids ends where vLLM's renderer does."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from vllm.renderers import renderer_from_config
from vllm.renderers.inputs.preprocess import parse_model_prompt

from triton_vllm.errors import RequestError
from triton_vllm.protocol.requests import TextPrompt
from triton_vllm.vllm_api import api as vllm_api
from triton_vllm.vllm_api.render import text as vllm_text
from triton_vllm.vllm_api.render.text_encoder import text_encoder

CONTEXT = 64
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
    "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 300,
    "max_position_embeddings": CONTEXT,
}  # fmt: skip
TEXTS = [
    "a", " a  b\n\tc ", "x<s>y</s>z", "naïve 日本 🤖 \ufeff", "\x00", "<", "the the the",
    "e\u0301 é", "<s>" * 3,
]  # fmt: skip


@pytest.fixture(scope="module", params=["plain", "truncating and padding"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a small model's configuration and tokenizer, special tokens among its ids."""
    special = ["<s>", "</s>"]
    alphabet = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the"]
    vocabulary = {piece: i for i, piece in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("t", "h"), ("th", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    if request.param != "plain":
        tokenizer.enable_truncation(4)
        tokenizer.enable_padding(length=32)
    folder = tmp_path_factory.mktemp("model")
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    wrapped.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return str(folder)


@pytest.fixture(scope="module")
def llm(model: str) -> Any:
    """As much of an AsyncLLM as tokenizing needs: the real configuration and renderer."""
    config = vllm_api.create_config(vllm_api.AsyncEngineArgs(model=model, dtype="float32"))
    return SimpleNamespace(model_config=config.model_config, renderer=renderer_from_config(config))


def rendered(llm: Any, text: str) -> dict[str, Any]:
    """Return what the renderer makes of a text on its own."""
    parsed = parse_model_prompt(llm.model_config, text)
    (engine_input,) = llm.renderer.render_cmpl([parsed], llm.renderer.default_cmpl_tok_params)
    return {**engine_input, "arrival_time": 0}


def tokenized(llm: Any, text: str) -> dict[str, Any]:
    """Return what we make of it."""
    return {**asyncio.run(vllm_text.tokenize(llm, TextPrompt(text))), "arrival_time": 0}


@pytest.mark.parametrize("text", TEXTS)
def test_token_ids_are_the_renderers(llm: Any, text: str) -> None:
    """The short way is taken, and its engine input is the renderer's, to the last key."""
    assert text_encoder(llm.renderer.tokenizer) is not None
    assert rendered(llm, text) == tokenized(llm, text)


def test_another_calls_truncation_is_its_own(llm: Any) -> None:
    """A call of the renderer's that truncates, before ours, changes nothing for ours."""
    expected = rendered(llm, "the the the")
    params = llm.renderer.default_cmpl_tok_params.with_kwargs(truncate_prompt_tokens=2)
    parsed = parse_model_prompt(llm.model_config, "the the the")
    (truncated,) = llm.renderer.render_cmpl([parsed], params)
    assert 2 == len(truncated["prompt_token_ids"])
    assert expected == tokenized(llm, "the the the")


@pytest.mark.parametrize("length", [CONTEXT + 1, 3 * CONTEXT, 5000])
def test_a_prompt_beyond_the_context_is_refused(llm: Any, length: int) -> None:
    """The renderer's check of the length stands, for short ways and long."""
    with pytest.raises(Exception, match="maximum context length") as refused:
        tokenized(llm, "x" * length)
    assert isinstance(vllm_api.explain(refused.value), RequestError)


def test_a_tokenizer_with_its_own_way_is_left_alone(model: str) -> None:
    """No short way for a class that overrides a step of the long one, or is no fast tokenizer."""

    class Own(PreTrainedTokenizerFast):  # type: ignore[misc]
        def _encode_plus(self, *args: Any, **kwargs: Any) -> Any:
            return super()._encode_plus(*args, **kwargs)

    assert text_encoder(AutoTokenizer.from_pretrained(model)) is not None
    assert text_encoder(Own.from_pretrained(model)) is None
    assert text_encoder(None) is None
