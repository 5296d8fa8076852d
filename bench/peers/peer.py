"""A peer: one way to serve the model, by its name on the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_NAME = re.compile(
    r"(?P<kind>vllm|official|ours|send|offline)"
    r"(?P<rust>-rust)?(-api(?P<api>\d+))?"
    r"(-(?P<front_ends>\d+)(x(?P<threads>\d+))?)?"
    r"((-tp(?P<tp>\d+))?(-pp(?P<pp>\d+))?(-dp(?P<dp>\d+))?(?P<ep>-ep)?(-sets(?P<sets>\d+))?"
    r"|-gpu(?P<gpu>\d+))"
    r"(-pin(?P<pin>\d+))?"
    r"(?P<http>-http)?(?P<openai>-openai(?P<by_rust>-rust)?)?(?P<nometrics>-nometrics)?"
)
NAMES = """\
  vllm                `vllm serve` as it comes
  vllm-rust           with its Rust front end, where this vLLM has one
  vllm-apiN           with N API server processes
  ours-N[xT]          this model repository: N front ends (with T sender threads in each)
  official            Triton's own vLLM backend, if --official-backend says where it is
  send-N[xT]          our send path alone, no engine: N front ends, T sender threads in each
  offline             LLM.generate on the same requests, for answers that are not streamed
vllm and ours may be followed by -tpN and -ppN, N GPUs or N stages for each engine, -dpN, N
data-parallel engines, and -ep, a mixture's experts spread over all GPUs of these;
ours by -setsN, too: N engines on GPUs of their own, each with its share of the front ends (not with
-openai: each engine has a port);
and by -pinN: N CPUs for the engine core alone (whole physical cores where N allows).
Any on one GPU may be followed by -gpuN, the GPU that it sees, counted from 0.
ours, official and send may end in -http (Triton's HTTP, not its gRPC) and -nometrics, ours also in
-openai (a server with the OpenAI-compatible port open, and asked there), or -openai-rust (the same
with vLLM's Rust front end on that port)."""


class PeerError(Exception):
    """A peer's name is wrong, or the peer cannot run here; the message says why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to serve.

    ``sender_threads`` 0: the model's default; ``gpu`` None: it sees all; ``engine_cpus`` 0: all.
    """

    name: str
    kind: str
    rust: bool = False
    api_servers: int = 1
    front_ends: int = 1
    sender_threads: int = 0
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    data_parallel: int = 1
    expert_parallel: bool = False
    gpu_sets: int = 1
    engine_cpus: int = 0
    gpu: int | None = None
    http: bool = False
    openai: bool = False
    metrics: bool = True

    @classmethod
    def parse(cls, name: str) -> Peer:
        """Return the peer of a name. Raises PeerError with all names."""
        found = _NAME.fullmatch(name)
        if found:
            given = {key for key, value in found.groupdict().items() if value}
            kind = found["kind"]
            allowed = {
                "vllm": {"rust", "api", "tp", "pp", "dp", "ep"},
                "offline": set[str](),
                "official": {"http", "nometrics"},
                "send": {"front_ends", "threads", "http", "nometrics"},
            }.get(
                kind,
                set(_NAME.groupindex) - {"rust", "api"},
            )
            if {"openai", "sets"} <= given:
                raise PeerError(
                    f"{name}: each engine has an OpenAI port of its own, and one is asked"
                )
            if not given - {"kind", "gpu"} - allowed:
                return cls(
                    name=name,
                    kind=kind,
                    rust=bool(found["rust"] or found["by_rust"]),
                    api_servers=int(found["api"] or 1),
                    front_ends=int(found["front_ends"] or 1),
                    sender_threads=int(found["threads"] or 0),
                    tensor_parallel=int(found["tp"] or 1),
                    pipeline_parallel=int(found["pp"] or 1),
                    data_parallel=int(found["dp"] or 1),
                    expert_parallel=bool(found["ep"]),
                    gpu_sets=int(found["sets"] or 1),
                    engine_cpus=int(found["pin"] or 0),
                    gpu=int(found["gpu"]) if found["gpu"] else None,
                    http=bool(found["http"]),
                    openai=bool(found["openai"]),
                    metrics=not found["nometrics"],
                )
        raise PeerError(f"{name}: no such peer; there are\n{NAMES}")

    @property
    def engine_gpus(self) -> int:
        """How many GPUs an engine runs on, with all its data-parallel ranks."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel

    @property
    def engines(self) -> int:
        """How many engine cores share its streams."""
        return self.data_parallel * self.gpu_sets

    @property
    def gpus(self) -> int:
        """How many GPUs it runs on."""
        return self.engine_gpus * self.gpu_sets

    @property
    def parallelism(self) -> dict[str, int]:
        """The engine arguments that it has beside those of all."""
        sizes = {
            "tensor_parallel_size": self.tensor_parallel,
            "pipeline_parallel_size": self.pipeline_parallel,
            "data_parallel_size": self.data_parallel,
        }
        given = {key: size for key, size in sizes.items() if size > 1}
        return given | {"enable_expert_parallel": True} if self.expert_parallel else given

    @property
    def gpu_device_ids(self) -> str:
        """Its sets of GPUs, empty for one set."""
        if self.gpu_sets == 1:
            return ""
        size = self.engine_gpus
        sets = (range(i * size, (i + 1) * size) for i in range(self.gpu_sets))
        return ";".join(",".join(map(str, gpus)) for gpus in sets)

    def visible(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return the variable by which it sees its GPU alone, of those seen in an environment.

        Raises PeerError where there are too few.
        """
        if self.gpu is None:
            return {}
        name = "CUDA_VISIBLE_DEVICES"
        seen = environment.get(name, "")
        gpus = seen.split(",") if seen else [str(gpu) for gpu in range(self.gpu + 1)]
        if self.gpu >= len(gpus):
            raise PeerError(f"{self.name}: {name} has {len(gpus)} GPUs, counted from 0: {seen}")
        return {name: gpus[self.gpu].strip()}

    @property
    def server(self) -> str:
        """The name of its server: HTTP and gRPC are two ports of one."""
        return self.name.replace("-http", "")

    @property
    def protocol(self) -> str:
        """How it is spoken to, a protocol of ``loadgen``."""
        if self.kind == "vllm" or self.openai:
            return "openai"
        return "triton-http" if self.http else "triton-grpc"
