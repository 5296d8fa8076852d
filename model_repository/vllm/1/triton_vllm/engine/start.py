"""Resolves a model's configuration, starts the engine, and puts the parts together."""

from __future__ import annotations

import asyncio
import contextlib

from triton_vllm.config.lora import Adapters, NoAdapters
from triton_vllm.config.server_options import ServerOptions
from triton_vllm.config.settings import ModelSettings
from triton_vllm.counters import LoopLag
from triton_vllm.engine.engine import Engine
from triton_vllm.engine.plan import EnginePlan, resolve
from triton_vllm.engine.supervisor import Supervisor
from triton_vllm.event_loop import EventLoopThread
from triton_vllm.limits.admission import OPENAI, TRITON, Admission
from triton_vllm.limits.answer_check import AnswerCheck
from triton_vllm.limits.drain import Drain
from triton_vllm.limits.server_watch import server_stops, watch_server
from triton_vllm.log import StartupTimer
from triton_vllm.openai_api.server import openai_server
from triton_vllm.protocol.decode import Parser
from triton_vllm.topology.instances import Instance
from triton_vllm.vllm_api import api as vllm_api
from triton_vllm.vllm_api.parameters import PoolingParser, SamplingParser

_LOG_STATS_SECONDS = 10.0


def start_engine(
    instance: Instance, server: ServerOptions, held: contextlib.ExitStack, timer: StartupTimer
) -> Engine:
    """Resolve the configuration, and start the parts in the order in which one needs the other.

    ``held`` holds what must be released at the end; the engine takes it over. Raises what
    ``resolve`` does.
    """
    timer.lap(f"vLLM {vllm_api.version()} imported")
    plan = resolve(instance, server.metrics, timer)
    settings, serving = plan.settings, plan.settings.serving
    admission = Admission(
        -(-serving.max_concurrent_requests // settings.placement.instances),
        serving.max_queued_tokens,
        lambda: vllm_api.queued_tokens(supervisor.run.llm),
        plan.balancer,
    )
    drain = Drain(admission, _drain_seconds(settings, server), settings.name)
    answers = AnswerCheck()
    held.callback(answers.stop)
    openai = openai_server(settings, plan.args, plan.slot, admission, drain, answers, plan.port)
    parser = _parser(plan)

    def end_seconds() -> float:
        return server.engine_seconds(
            drain.seconds_since_begin,
            settings.placement.instances,
            stops=server_stops(server.http),
        )

    with contextlib.ExitStack() as started:
        loop = EventLoopThread("engine")
        started.callback(loop.stop)
        supervisor = Supervisor(plan, loop, _adapters(plan), admission, openai, end_seconds)
        started.callback(lambda: loop.call(supervisor.shut_down()))
        loop.call(supervisor.start())
        started.pop_all()
    timer.lap("engine started: weights, compilation, warm-up as vLLM's lines say")
    lag = LoopLag()
    _spawn_background(plan, loop, admission, supervisor, lag)
    watch = watch_server(
        settings,
        server,
        used=lambda: TRITON in admission.served,
        changed=lambda ready: loop.call_soon(drain.cancel if ready else drain.begin),
    )
    engine = Engine(
        plan, loop, admission, supervisor, openai, parser, answers, lag, watch, held.pop_all()
    )
    drain.on_over = lambda: loop.spawn(engine.end_without_triton())
    return engine


def _parser(plan: EnginePlan) -> Parser:
    """Return the parser of a request's parameters, that of the model's kind."""
    if vllm_api.is_pooling(plan.config):
        return PoolingParser()
    return SamplingParser(
        vllm_api.default_sampling_params(plan.config),
        plan.settings.serving.default_max_tokens,
        vllm_api.max_tokens_limit(plan.config),
        plan.settings.serving.max_n,
    )


def _adapters(plan: EnginePlan) -> Adapters | NoAdapters:
    """Return the model's LoRA adapters. Raises SettingsError."""
    if not plan.args.enable_lora:
        return NoAdapters()
    return Adapters.of_model(plan.settings.directory, plan.settings.version)


def _drain_seconds(settings: ModelSettings, server: ServerOptions) -> dict[str, float]:
    """Return the drain's time for each API: the operator's, or what the exit timeout leaves."""
    serving = settings.serving
    seconds = {TRITON: serving.drain_timeout_seconds}
    if serving.openai is not None:
        seconds[OPENAI] = serving.openai.drain_timeout_seconds
    instances = settings.placement.instances
    return {api: server.drain_timeout_seconds(s, instances) for api, s in seconds.items()}


def _spawn_background(
    plan: EnginePlan,
    loop: EventLoopThread,
    admission: Admission,
    supervisor: Supervisor,
    lag: LoopLag,
) -> None:
    """Start what runs in the event loop as long as the model is loaded."""

    async def log_stats() -> None:
        while True:
            await asyncio.sleep(_LOG_STATS_SECONDS)
            if admission.down is None:
                await supervisor.run.llm.do_log_stats()

    loop.spawn(
        plan.balancer.heartbeat(lambda: admission.down is None and admission.has_room_in_queue)
    )
    if plan.reports_metrics:
        loop.spawn(lag.measure())
    if not plan.args.disable_log_stats:
        loop.spawn(log_stats())
