"""Keeps the ``allowed_token_ids`` of one request from others in the batch of an engine.

vLLM's first model runner has a row of allowed tokens for each place in the batch. From 0.26 to 0.30
a request that moves leaves its row to the next request at that place, and two requests that are
swapped get the same row. So a request was answered from the tokens that another one allows
(findings/vllm_allowed_tokens_reach_others.sh). 0.31 mends both itself.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.gpu_input_batch import InputBatch


def keep_apart(batch: type[Any] = InputBatch) -> None:
    """Mend vLLM's ``batch``, in this process and its forks, unless that is done already."""
    swap, refresh = batch.swap_states, batch.refresh_metadata
    if swap.__module__ == __name__:
        return

    def swap_states(self: Any, i1: int, i2: int) -> None:
        rows = self.allowed_token_ids_mask_cpu_tensor
        swapped = None if rows is None else rows[[i2, i1]]  # a copy
        swap(self, i1, i2)
        if swapped is not None:
            rows[[i1, i2]] = swapped

    def refresh_metadata(self: Any) -> None:
        if self.has_allowed_token_ids:  # of requests, by id; else vLLM does not look at the rows
            for place, request in enumerate(self.req_ids):
                if request not in self.has_allowed_token_ids:
                    self.allowed_token_ids_mask_cpu_tensor[place].fill_(False)
        refresh(self)

    batch.swap_states, batch.refresh_metadata = swap_states, refresh_metadata
