"""How an instance of a model finds its engine among those of the model, and its seat at it.

Triton starts the instances in any order and tells them apart by names that depend on the groups.
So, with several engines, each takes a seat of the whole model first: its number says whose front
end it is, as cards are dealt, unless Triton has dealt already (KIND_GPU). There they also tell each
other their loads (``fair_share``). Then the front ends of one engine meet, each engine's in a place
of its own (``shared_engine``).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from triton_vllm.config.settings import ModelSettings
from triton_vllm.errors import SettingsError
from triton_vllm.topology.front_ends import NoSeat, Seat, meeting_place
from triton_vllm.topology.load_balancing import FairShare, LoadTable, NoFairShare
from triton_vllm.topology.stub_process import EngineErrors


@dataclass(frozen=True, slots=True)
class Instance:
    """One process of the model: whose front end it is, and its seat there.

    ``settings`` are those of its engine, ``devices`` its GPUs as in CUDA_VISIBLE_DEVICES, empty
    where it sees what the server sees. ``label`` tells its metrics from those of other engines,
    empty where there is one engine. ``share`` is its part of the model's requests.
    """

    settings: ModelSettings
    seat: Seat | NoSeat
    errors: EngineErrors
    devices: str = ""
    label: str = ""
    share: FairShare | NoFairShare = field(default_factory=NoFairShare)

    @classmethod
    def take(cls, settings: ModelSettings, cleanup: contextlib.ExitStack) -> Instance:
        """Take the places of this process until ``cleanup``; show it the GPUs of its engine alone.

        Before anything is imported that asks CUDA, or counts for Prometheus. Raises SettingsError.
        """
        placement = settings.placement
        engine = placement.engine
        share: FairShare | NoFairShare = NoFairShare()
        if placement.engines > 1:
            dealt = Seat.take(meeting_place(settings.name, settings.version), placement.instances)
            cleanup.callback(dealt.leave)
            if engine is None:
                engine = dealt.index % placement.engines
            loads = dealt.generation / "loads"
            table = LoadTable(loads, placement.instances, dealt.index, engine)
            cleanup.callback(table.close)
            share = FairShare(table)
        assert engine is not None, "as it is with one engine"
        if placement.devices[engine]:
            os.environ["CUDA_VISIBLE_DEVICES"] = placement.devices[engine]
        place = str(engine) if placement.engines > 1 else ""
        seat: Seat | NoSeat = NoSeat()
        if placement.front_ends == 1:
            directory = tempfile.TemporaryDirectory(
                prefix="triton_vllm-", ignore_cleanup_errors=True
            )
            cleanup.callback(directory.cleanup)
            errors = EngineErrors(Path(directory.name))
        else:
            seat = Seat.take(
                meeting_place(settings.name, settings.version, place), placement.front_ends
            )
            cleanup.callback(seat.leave)
            # As `vllm serve` with several API servers: the front ends count into files of one
            # folder, from which the leader reads the sum. prometheus_client looks at this when it
            # is imported.
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(seat.metrics_directory)
            errors = EngineErrors(seat.generation)
        return cls(
            settings_of(settings, engine), seat, errors, placement.devices[engine], place, share
        )


def settings_of(settings: ModelSettings, engine: int) -> ModelSettings:
    """Return the settings of engine ``engine``: its OpenAI port is that many above the first's.

    Raises SettingsError when there is no such port.
    """
    openai = settings.serving.openai
    if openai is None or engine == 0:
        return settings
    last = openai.port + settings.placement.engines - 1
    if last > 65535:
        raise SettingsError(
            f'{settings.engine_args_path}: "serving.openai": "port" {openai.port} is the first of '
            f"{settings.placement.engines}, one for each engine, and {last} is none"
        )
    serving = replace(settings.serving, openai=replace(openai, port=openai.port + engine))
    return replace(settings, serving=serving)
