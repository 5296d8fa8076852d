"""How an instance of a model finds its engine, and its slot among the engine's front ends.

Triton starts the instances in any order, under names that depend on the instance groups. With
several engines each instance first claims a slot of the whole model. The slot's number assigns it
to an engine in turn, unless Triton has chosen the GPU (KIND_GPU). In that folder the instances also
publish their loads (``load_balancing``). Then the front ends of each engine claim slots in a folder
of that engine (``front_ends``).
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass, field, replace

from triton_vllm.config.settings import ModelSettings
from triton_vllm.errors import SettingsError
from triton_vllm.topology.fork_server import NoForkServer
from triton_vllm.topology.front_ends import FrontEndSlot
from triton_vllm.topology.load_balancing import LoadBalancer, NoLoadBalancer
from triton_vllm.topology.rendezvous import rendezvous_dir
from triton_vllm.topology.stub_process import EngineErrors


@dataclass(frozen=True, slots=True)
class Instance:
    """One process of the model: its engine, and its slot among the engine's front ends.

    It is what has to be found before vLLM is imported. ``settings`` are those of its engine.
    ``errors`` holds what the engine's processes log. ``devices`` are its GPUs as in
    CUDA_VISIBLE_DEVICES, empty where it sees the server's. ``label`` distinguishes its metrics from
    those of other engines, empty where there is one. ``balancer`` levels its requests with theirs.
    ``engine_cpus`` are reserved for its engine core, if any. If it leads, ``fork_server`` starts
    its engine cores, and ``port`` is the OpenAI port, bound.
    """

    settings: ModelSettings
    slot: FrontEndSlot
    errors: EngineErrors
    devices: str
    label: str
    balancer: NoLoadBalancer
    engine_cpus: frozenset[int] = frozenset()
    fork_server: NoForkServer = field(default_factory=NoForkServer)
    port: socket.socket | None = None

    @classmethod
    def claim(cls, settings: ModelSettings, cleanup: contextlib.ExitStack) -> Instance:
        """Claim the slots of this process until ``cleanup``; show it the GPUs of its engine alone.

        Call it before anything is imported that uses CUDA or prometheus_client. Raises
        SettingsError.
        """
        placement = settings.placement
        engine = placement.engine
        label, balancer = "", NoLoadBalancer()
        if placement.engines > 1:
            member = FrontEndSlot.claim(
                rendezvous_dir(settings.name, settings.version), placement.instances
            )
            cleanup.callback(member.release)
            engine = member.index % placement.engines if engine is None else engine
            balancer = LoadBalancer(
                member.cohort / "loads", placement.instances, member.index, engine
            )
            cleanup.callback(balancer.close)
            label = str(engine)
        assert engine is not None, "as it is with one engine"
        devices = placement.devices[engine]
        if devices:
            os.environ["CUDA_VISIBLE_DEVICES"] = devices
        slot = FrontEndSlot.claim(
            rendezvous_dir(settings.name, settings.version, label), placement.front_ends
        )
        cleanup.callback(slot.release)
        if slot.count > 1:
            # As in `vllm serve` with several API servers, the front ends count into files of one
            # folder, from which the leader reads the sum. prometheus_client reads the variable when
            # it is imported.
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(slot.cohort / "metrics")
        errors = EngineErrors(slot.cohort)
        return cls(settings_of(settings, engine), slot, errors, devices, label, balancer)


def settings_of(settings: ModelSettings, engine: int) -> ModelSettings:
    """Return the settings of engine ``engine``, whose OpenAI port is ``engine`` above the first's.

    Raises SettingsError when there is no such port.
    """
    openai = settings.serving.openai
    if openai is None or engine == 0:
        return settings
    last = openai.port + settings.placement.engines - 1
    if last > 65535:
        raise SettingsError(
            f'{settings.engine_args_path}: "serving.openai.port" {openai.port}: the '
            f"{settings.placement.engines} engines need ports up to {last}, the highest is 65535"
        )
    serving = replace(settings.serving, openai=replace(openai, port=openai.port + engine))
    return replace(settings, serving=serving)
