"""``LLM.generate`` as a peer: engine arguments come as JSON, requests as lines on stdin.

Run by the Python that has vLLM, with nothing of ours imported. A line holds ``prompts`` (pairs of
text and number of tokens) and ``sampling``; the answer is a line with ``seconds`` and ``tokens``.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    """Load the model, say so in a line, answer lines until there are no more."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints goes to the log
    from vllm import LLM, SamplingParams

    llm = LLM(**json.loads(sys.argv[1]))
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        prompts = [text for text, _ in request["prompts"]]
        params = [
            SamplingParams(max_tokens=tokens, **request["sampling"])
            for _, tokens in request["prompts"]
        ]
        begin = time.monotonic()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.monotonic() - begin
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        print(json.dumps({"seconds": seconds, "tokens": tokens}), file=replies, flush=True)


if __name__ == "__main__":
    main()
