"""vLLM's worker on a CPU, where a request's own random numbers can be taken back.

vLLM can take back what it drew for a request, by an offset, which the generators of a CPU do not
have. ``create_config`` names this worker, and the engine core imports it.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.worker.cpu_worker import CPUWorker

from triton_vllm.vllm_api.engine_process.allowed_tokens import keep_apart


class RewindableGenerator(torch.Generator):  # type: ignore[misc]
    """A generator of a CPU, with as much of an offset as vLLM needs: back to the last mark."""

    @classmethod
    def of(cls, generator: torch.Generator) -> RewindableGenerator:
        """Return one that will draw what ``generator`` would draw."""
        new = cls(device=generator.device)
        new.set_state(generator.get_state())
        return new

    def mark(self) -> None:
        """Remember where it is."""
        self._marked = self.get_state()

    def get_offset(self) -> int:
        """Return a number from which vLLM counts back."""
        return 0

    def set_offset(self, offset: int) -> None:
        """Go back to the mark: vLLM never goes elsewhere."""
        self.set_state(self._marked)


class Worker(CPUWorker):  # type: ignore[misc]
    """A worker that marks each generator before a step, and keeps allowed tokens apart."""

    def init_device(self) -> None:
        """Start as vLLM's worker does."""
        keep_apart()
        super().init_device()
        runner: Any = self.model_runner
        if not hasattr(runner, "_update_states"):  # vLLM's newer model runner draws otherwise
            return
        update = runner._update_states

        def update_and_mark(*args: Any, **kwargs: Any) -> Any:
            result = update(*args, **kwargs)
            mark_generators(runner)
            return result

        runner._update_states = update_and_mark


def mark_generators(runner: Any) -> None:
    """Mark the generators of the requests of a model runner, each made rewindable first."""
    batch = runner.input_batch
    for index, generator in batch.generators.items():
        if not isinstance(generator, RewindableGenerator):
            generator = batch.generators[index] = RewindableGenerator.of(generator)
            runner.requests[batch.req_ids[index]].generator = generator
        generator.mark()
