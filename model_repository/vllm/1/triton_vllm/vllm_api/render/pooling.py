"""The file that imports what vLLM has for models that answer with embeddings or scores."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import numpy as np
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.pooling.scoring.protocol import ScoreQueriesDocumentsRequest
from vllm.entrypoints.pooling.scoring.serving import ServingScores
from vllm.entrypoints.pooling.utils import enable_scoring_api
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.utils.async_utils import merge_async_iterators

from triton_vllm.errors import GenerationError, RequestError
from triton_vllm.protocol.delta import Delta, DeltaExtras, SequenceExtras
from triton_vllm.protocol.requests import (
    EmbedRequest,
    Generation,
    GenerationRequest,
    PoolingOptions,
    ScoreRequest,
)
from triton_vllm.vllm_api.compat import chat_utils
from triton_vllm.vllm_api.render import text as vllm_text


class PoolingRenderer:
    """Turns texts, and pairs of them, into work for one ``AsyncLLM``."""

    def __init__(self, llm: Any, tasks: Sequence[str], chat_template: str | None) -> None:
        """``tasks`` are those that the engine supports; the model does the first of vLLM's choice.

        ``chat_template`` formats the pairs for a model that requires it.
        """
        config = llm.model_config
        self._llm = llm
        self._task = config.get_pooling_task(tuple(tasks))
        self._scores: Any = None
        if enable_scoring_api(tuple(tasks), config):
            models = OpenAIServingModels(llm, [BaseModelPath(config.model, config.model)])
            self._scores = ServingScores(
                llm,
                models,
                supported_tasks=tuple(tasks),
                request_logger=None,
                chat_template_config=chat_utils.ChatTemplateConfig(chat_template),
            )

    async def render_texts(
        self, texts: EmbedRequest, request: GenerationRequest, lora: Any
    ) -> Generation:
        """Tokenize the texts, off the event loop."""
        llm = self._llm
        if texts.as_json and self._task != "embed":
            raise RequestError(f"embedding_request: this model does not embed: {self._task}")
        if self._task not in ("embed", "classify") and len(texts.inputs) > 1:
            raise RequestError(
                f"texts: must have one element with a model for {self._task}, as its answer has a "
                f"row for each token, {len(texts.inputs)} came"
            )
        params = request.sampling_params
        params.task = self._task
        given: list[dict[str, Any]] = [
            {"prompt": text} if isinstance(text, str) else {"prompt_token_ids": [*text]}
            for text in texts.inputs
        ]
        tok_params = llm.renderer.default_cmpl_tok_params
        if (tokens := _truncation(request)) is not None:
            tok_params = tok_params.with_kwargs(truncate_prompt_tokens=tokens)
        salt = request.options.cache_salt
        engine_inputs = await llm.renderer.render_cmpl_async(
            [parse_model_prompt(llm.model_config, each) for each in given],
            tok_params,
            prompt_extras={"cache_salt": salt} if salt else None,
        )

        async def outputs(_: Any) -> AsyncGenerator[list[Any], None]:
            headers = vllm_text.trace_headers(llm, request)
            answers: list[Any] = [None] * len(engine_inputs)
            async for place, answer in merge_async_iterators(
                *(
                    llm.encode(
                        engine_input,
                        params,
                        f"{request.request_id}-{place}",
                        lora_request=lora,
                        trace_headers=headers,
                        priority=request.options.priority,
                    )
                    for place, engine_input in enumerate(engine_inputs)
                )
            ):
                answers[place] = answer
            yield answers

        return Generation(outputs, read_json if texts.as_json else read_vectors)

    async def render_pairs(
        self, pairs: ScoreRequest, request: GenerationRequest, lora: Any
    ) -> Generation:
        """Prepare the scoring, which vLLM does as a whole."""
        if self._scores is None:
            raise RequestError(f"queries: this model does not score pairs: {self._task}")
        if lora is not None:
            self._scores.models.lora_requests[lora.lora_name] = lora
        asked = ScoreQueriesDocumentsRequest(
            model=lora and lora.lora_name,
            queries=list(pairs.queries),
            documents=list(pairs.documents),
            use_activation=request.sampling_params.use_activation,
            truncate_prompt_tokens=_truncation(request),
            priority=request.options.priority,
            cache_salt=request.options.cache_salt,
        )

        async def outputs(_: Any) -> AsyncGenerator[dict[str, Any], None]:
            response = await self._scores(asked)
            yield json.loads(response.body)

        return Generation(outputs, read_scores)


def _truncation(request: GenerationRequest) -> int | None:
    assert isinstance(request.options, PoolingOptions), "as PoolingParser makes them"
    return request.options.truncate_prompt_tokens


def read_vectors(answers: Sequence[Any]) -> Delta:
    """Read vLLM's ``PoolingRequestOutput`` of each text: one vector each, or one for each token."""
    rows = np.stack([_vector(answer) for answer in answers])
    return _final((), answers, rows if rows.ndim == 2 else rows[0])


def read_json(answers: Sequence[Any]) -> Delta:
    """Read them as JSON, a list of numbers for each text."""
    return _final(tuple(json.dumps(_vector(answer).tolist()) for answer in answers), answers, None)


def read_scores(response: dict[str, Any]) -> Delta:
    """Read the response of vLLM's scoring endpoint."""
    scores = np.array([each["score"] for each in response["data"]], dtype=np.float32)
    extras = DeltaExtras((), response["usage"]["prompt_tokens"], embeddings=scores)
    return Delta((), 0, final=True, extras=extras)


def _vector(answer: Any) -> Any:
    if getattr(answer, "error", None) is not None:
        raise GenerationError(str(answer.error.message))
    return answer.outputs.data.float().numpy()


def _final(texts: tuple[str, ...], answers: Sequence[Any], embeddings: Any) -> Delta:
    extras = DeltaExtras(
        (SequenceExtras(),) * len(answers),
        sum(len(answer.prompt_token_ids) for answer in answers),
        sum(answer.num_cached_tokens or 0 for answer in answers),
        embeddings=embeddings,
    )
    return Delta(texts, 0, final=True, extras=extras)
