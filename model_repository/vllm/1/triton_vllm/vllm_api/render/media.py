"""Renders prompts with media, and refuses items at which the engine would fail."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.transformers_utils.processor import get_video_processor_cls_name

from triton_vllm.errors import MediaError, RequestError, ServingError, one_line
from triton_vllm.protocol.requests import Generation, GenerationRequest, MediaPrompt
from triton_vllm.vllm_api.render import text as vllm_text
from triton_vllm.vllm_api.render.fetch import GuardedConnector, missing_package, request_budgets


def guard(llm: Any) -> None:
    """Have every error of the model's own media processor be the client's, as a MediaError.

    vLLM would answer such an error as one of the server. Whatever way a prompt takes, its media are
    processed by one of these two methods of the renderer.
    """
    if llm.model_config.multimodal_config is None:
        return
    renderer = llm.renderer
    # PyAV resamples where torchaudio, newer vLLM's choice, is missing: PyPI's needs CUDA.
    resampler = renderer.get_mm_processor().info.data_parser.audio_resampler
    if resampler.method == "torchaudio" and importlib.util.find_spec("torchaudio") is None:
        resampler.method = "pyav"
    whole, whole_async = renderer.process_for_engine, renderer.process_for_engine_async

    def process_for_engine(prompt: Any, *args: Any, **options: Any) -> Any:
        with _explained(prompt):
            return whole(prompt, *args, **options)

    async def process_for_engine_async(prompt: Any, *args: Any, **options: Any) -> Any:
        with _explained(prompt):
            return await whole_async(prompt, *args, **options)

    renderer.process_for_engine = process_for_engine
    renderer.process_for_engine_async = process_for_engine_async


def has_media(engine_input: Any) -> bool:
    """Return whether there are images, audio or video in vLLM's engine input."""
    return any(_items(engine_input))


def check_media(engine_input: Any) -> None:
    """Raise MediaError for the first item of which the model's processor has left nothing.

    vLLM's engine core ends with the first exception in a model's code, and with it every request;
    some models' code fails on an empty item.
    """
    for kind, place, taken, item in _items(engine_input):
        if taken.get_num_embeds() == 0 or _is_empty(item):
            raise MediaError(
                f"{kind}[{place}]: the model's processor makes nothing of it: it is too small, or "
                "the processor's options leave nothing"
            )


def _items(engine_input: Any) -> Iterator[tuple[str, int, Any, Any]]:
    """Yield what each item takes of the prompt, and what is made of it, None where cached."""
    given = engine_input if isinstance(engine_input, dict) else {}
    prompt = given.get("encoder_prompt", given)
    for kind, ranges in prompt.get("mm_placeholders", {}).items():
        items = prompt.get("mm_kwargs", {}).get(kind) or [None] * len(ranges)
        for place, (taken, item) in enumerate(zip(ranges, items, strict=True)):
            yield kind, place, taken, item


def _is_empty(item: Any) -> bool:
    """Return whether there are no pixels and no samples in it: nothing in its float tensors."""
    pending = [] if item is None else [field.data for field in item.values()]
    sizes = []
    while pending:
        data = pending.pop()
        if isinstance(data, list | tuple):
            pending += data
        elif isinstance(data, torch.Tensor) and data.is_floating_point():
            sizes.append(data.numel())
    return bool(sizes) and not any(sizes)


@contextlib.contextmanager
def _explained(prompt: Any) -> Iterator[None]:
    """Raise an error of the media in ``prompt`` as a MediaError; others as they are."""
    given = prompt.get("encoder_prompt", prompt)
    media = given.get("multi_modal_data") if isinstance(given, dict) else None
    try:
        yield
    except ServingError:
        raise
    except Exception as error:
        if not media:
            raise
        first: BaseException = error  # vLLM's own line around it prints all that was given
        while first.__cause__ is not None:
            first = first.__cause__
        what = f"the model's processor does not take it: {type(first).__name__}: {one_line(first)}"
        if isinstance(error, ImportError):
            what = missing_package(error)
        raise MediaError(f"{', '.join(media)}: {what}") from error


async def render(
    llm: Any, prompt: MediaPrompt, request: GenerationRequest, lora: Any
) -> Generation:
    """Load the media, and turn them and the text into an engine input."""
    config = llm.model_config.multimodal_config
    if config is None:
        raise RequestError(f"{', '.join(prompt.media)}: this model takes text only")
    known = llm.renderer.get_mm_processor().info.supported_mm_limits
    for kind in prompt.media.keys() - known.keys():
        raise RequestError(f"{kind}: this model takes {', '.join(sorted(known))} only")
    connector = GuardedConnector(
        config.media_io_kwargs,
        allowed_media_domains=llm.model_config.allowed_media_domains,
        **request_budgets(),
    )

    async def load(kind: str, place: int, item: str) -> Any:
        url = item if item[:5] == "data:" or "://" in item[:16] else f"data:;base64,{item.strip()}"
        options = {}
        if kind == "video":  # the model's own processor chooses the frames
            options["video_processor"] = get_video_processor_cls_name(llm.model_config)
        try:
            return await getattr(connector, f"fetch_{kind}_async")(url, **options)
        except RequestError as error:
            raise MediaError(f"{kind}[{place}]: {error}") from error

    data = {
        kind: await asyncio.gather(*(load(kind, i, item) for i, item in enumerate(items)))
        for kind, items in prompt.media.items()
    }
    given = {"prompt": prompt.text, "multi_modal_data": data}
    if request.options.cache_salt:
        given["cache_salt"] = request.options.cache_salt
    (engine_input,) = await llm.renderer.render_cmpl_async(
        [parse_model_prompt(llm.model_config, given)], llm.renderer.default_cmpl_tok_params
    )
    return vllm_text.generation(llm, engine_input, request, lora)
