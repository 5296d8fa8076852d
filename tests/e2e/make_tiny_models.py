"""Make tiny models of random weights, each a real checkpoint of its kind: seconds, no network.

    vllm_env/bin/python tests/e2e/make_tiny_models.py DEST

``DEST`` gets ``chat`` (a causal model with a chat template), ``adapters/loud`` and
``adapters/quiet`` (LoRA adapters of it), ``vision`` (Idefics3), ``audio`` (Qwen2-Audio), ``video``
(Qwen2-VL), ``embedding`` and ``reranker`` (a cross-encoder with one label), ``classifier`` (three
labels). ``expected.json`` says what transformers makes of some inputs. ``clips`` has short sounds
and films. Torchvision and PyAV, which video and clips need, may be on PYTHONPATH.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<|im_start|>", "<|im_end|>"]
SPECIAL += ["<think>", "</think>", "<tool_call>", "</tool_call>"]
SPECIAL += ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
AUDIO = ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
VIDEO = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
CHAT_TEMPLATE = (
    "{% if tools %}<|im_start|>tools {{ tools | tojson }}<|im_end|>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if shout %}LOUD {% endif %}"
)
CONTEXT = 1024
FRAMES = 8
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make_tokenizer(*more: str, pairs: bool = False) -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer of bytes, and of ``more`` tokens of their own.

    ``pairs`` puts ``</s>`` between two texts and after them.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet, *more])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_tokens([*SPECIAL[7:], *more])  # found in a text, and part of it
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if pairs:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>",
            pair="<s> $A </s> $B </s>",
            special_tokens=[("<s>", 1), ("</s>", 2)],
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[4:7],
        model_max_length=CONTEXT,
    )


def widen(model: torch.nn.Module) -> None:
    """Draw larger weights, so that the output depends on the input and no two logits tie."""
    for name, weight in model.named_parameters():
        if weight.dim() >= 2:
            torch.nn.init.normal_(weight, std=0.3)
        elif "bias" in name:
            torch.nn.init.zeros_(weight)


def save(model: Any, dest: Path, tokenizer: Any) -> None:
    """Write a checkpoint in float32."""
    model.float().save_pretrained(dest)
    tokenizer.save_pretrained(dest)


def make_chat(dest: Path) -> tuple[Any, Any]:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, vocab_size=len(tokenizer))
    model = transformers.LlamaForCausalLM(config)
    widen(model)
    save(model, dest, tokenizer)
    return model.eval(), tokenizer


def make_adapter(dest: Path, seed: int) -> None:
    """Write a LoRA adapter whose weights are large enough to change what the model says."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(SIZES["num_hidden_layers"]):
        for projection in ("q_proj", "v_proj"):
            name = f"base_model.model.model.layers.{layer}.self_attn.{projection}"
            weights[f"{name}.lora_A.weight"] = torch.randn(8, 64, generator=generator)
            weights[f"{name}.lora_B.weight"] = torch.randn(64, 8, generator=generator)
    dest.mkdir(parents=True)
    save_file(weights, dest / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
    }
    (dest / "adapter_config.json").write_text(json.dumps(config))


def make_vision(dest: Path) -> None:
    """Write an Idefics3, whose image of any size takes four tokens and three around them."""
    tokenizer = make_tokenizer()
    config = transformers.Idefics3Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
        },
        text_config=transformers.LlamaConfig(
            **SIZES, num_key_value_heads=2, vocab_size=len(tokenizer)
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    model = transformers.Idefics3ForConditionalGeneration(config)
    widen(model)
    edge = {"longest_edge": 56}
    processor = transformers.Idefics3Processor(
        transformers.Idefics3ImageProcessorPil(
            size=edge, max_image_size=edge, do_image_splitting=False
        ),
        tokenizer,
        image_seq_len=4,
        chat_template=CHAT_TEMPLATE,
    )
    save(model, dest, processor)


def make_audio(dest: Path) -> None:
    """Write a Qwen2-Audio. A second of sound takes 25 tokens of the prompt."""
    tokenizer = make_tokenizer(*AUDIO)
    tokenizer.model_max_length = 32 * CONTEXT  # the processor would cut the prompt
    config = transformers.Qwen2AudioConfig(
        audio_config={
            "num_mel_bins": 16,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "d_model": 32,
        },
        text_config=transformers.Qwen2Config(
            **SIZES, num_key_value_heads=2, vocab_size=len(tokenizer)
        ),
        audio_token_index=tokenizer.convert_tokens_to_ids(AUDIO[0]),
    )
    model = transformers.Qwen2AudioForConditionalGeneration(config)
    widen(model)
    processor = transformers.Qwen2AudioProcessor(
        transformers.WhisperFeatureExtractor(feature_size=16),
        tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
    save(model, dest, processor)
    # Released checkpoints, and vLLM, call them so; transformers 5 saves one "model." more.
    weights = load_file(dest / "model.safetensors")
    named = {name.replace(".model.model.", ".model."): weight for name, weight in weights.items()}
    save_file(named, dest / "model.safetensors", {"format": "pt"})


def make_video(dest: Path) -> None:
    """Write a Qwen2-VL, in which 28 by 28 pixels of an image, or of two frames, are a token."""
    tokenizer = make_tokenizer(*VIDEO)
    start, end, image, video = (tokenizer.convert_tokens_to_ids(token) for token in VIDEO)
    config = transformers.Qwen2VLConfig(
        text_config={
            **SIZES,
            "num_key_value_heads": 2,
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6]},
        },
        vision_config={"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 64},
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
    )
    model = transformers.Qwen2VLForConditionalGeneration(config)
    widen(model)
    pixels = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
    processor = transformers.Qwen2VLProcessor(
        transformers.Qwen2VLImageProcessorPil(size=pixels),
        tokenizer,
        transformers.Qwen2VLVideoProcessor(size=pixels),
        chat_template=CHAT_TEMPLATE,
    )
    save(model, dest, processor)


def make_clips(dest: Path) -> None:
    """Write a second of two tones, of high ones in other formats, and films of one color each."""
    import av  # not in every environment, and the other models do without

    dest.mkdir()
    for name, rate, codec in (
        ("low.wav", 16_000, "pcm_s16le"),
        ("high.wav", 16_000, "pcm_s16le"),
        ("high.flac", 44_100, "flac"),
        ("high.m4a", 44_100, "aac"),
    ):
        pitch = 200 if name.startswith("low") else 2000
        tone = np.sin(np.arange(rate) * (2 * np.pi * pitch / rate)) * 0.5
        with av.open(dest / name, "w") as file:
            stream = file.add_stream(codec, rate=rate, layout="mono")
            samples = (tone * 32767).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate = rate
            file.mux([*stream.encode(frame), *stream.encode()])
    for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        with av.open(dest / f"{name}.mp4", "w") as file:
            film = file.add_stream("mpeg4", rate=8)
            film.width = film.height = 56
            picture = av.VideoFrame.from_ndarray(np.full((56, 56, 3), color, np.uint8))
            for number in range(FRAMES):
                picture.pts = number
                file.mux(film.encode(picture))
            file.mux(film.encode())


def make_encoder(dest: Path, labels: int) -> tuple[Any, Any]:
    """Write a BERT: an embedding model, or one that classifies where there are ``labels``."""
    tokenizer = make_tokenizer(pairs=True)
    config = transformers.BertConfig(**SIZES, vocab_size=len(tokenizer), num_labels=labels or 2)
    kind = transformers.BertForSequenceClassification if labels else transformers.BertModel
    model = kind(config).eval()
    widen(model)
    if not labels:
        config.matryoshka_dimensions = [16, 64]
    save(model, dest, tokenizer)
    return model, tokenizer


def main(dest: Path) -> None:
    torch.manual_seed(0)
    make_adapter(dest / "adapters/loud", seed=1)
    make_adapter(dest / "adapters/quiet", seed=2)
    speaker, chat = make_chat(dest / "chat")
    make_vision(dest / "vision")
    make_audio(dest / "audio")
    make_video(dest / "video")
    make_clips(dest / "clips")
    embedding, tokenizer = make_encoder(dest / "embedding", labels=0)
    classifier, _ = make_encoder(dest / "classifier", labels=3)
    reranker, _ = make_encoder(dest / "reranker", labels=1)
    (dest / "expected.json").write_text(
        json.dumps(expected(speaker, chat, embedding, classifier, reranker, tokenizer))
    )


def continuation(model: Any, tokenizer: Any, prompt: str) -> list[int]:
    """Return the greedy continuation by twelve tokens, none of which ends the text."""
    given = tokenizer(prompt, return_tensors="pt")
    made = model.generate(**given, max_new_tokens=12, min_new_tokens=12, do_sample=False)
    ids: list[int] = made[0, given["input_ids"].shape[1] :].tolist()
    return ids


def expected(
    speaker: Any, chat: Any, embedding: Any, classifier: Any, reranker: Any, tokenizer: Any
) -> dict[str, Any]:
    """Print what transformers itself makes of some inputs."""
    messages = [{"role": "user", "content": "Say something"}]
    texts = ["Paris is in France.", "A hat"]
    with torch.inference_mode():
        embeddings = []
        for text in texts:
            states = embedding(**tokenizer(text, return_tensors="pt")).last_hidden_state
            embeddings.append(torch.nn.functional.normalize(states[0, 0], dim=0).tolist())
        classes = [
            torch.softmax(classifier(**tokenizer(text, return_tensors="pt")).logits[0], 0).tolist()
            for text in texts
        ]
        scores = [
            torch.sigmoid(
                reranker(**tokenizer("Where is Paris?", text, return_tensors="pt")).logits[0, 0]
            ).item()
            for text in texts
        ]
    return {
        "greedy": {text: continuation(speaker, chat, text) for text in [*texts, "Where is Paris?"]},
        "messages": messages,
        "prompt": chat.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),
        "white_space": [chat.convert_tokens_to_ids(token) for token in "ĠĊčĉ"],
        "texts": texts,
        "embeddings": embeddings,
        "classes": classes,
        "query": "Where is Paris?",
        "scores": scores,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
