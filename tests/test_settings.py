"""Every setting that cannot be is refused by its key: made in Python, and read by its path."""

import dataclasses
import math
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from data_gen.baselines.config import RandomPairsConfig, ReadingComprehensionConfig
from data_gen.corpus.pairs import PairLayout
from data_gen.engines.config import (
    EngineConfig,
    RayConfig,
    ServerConfig,
    TransformersConfig,
    VllmConfig,
)
from data_gen.engines.serving import ServeConfig
from data_gen.instruction_pretrain.analysis.config import CorpusAnalysis, SynthesizerAnalysis
from data_gen.instruction_pretrain.config import SynthesisConfig
from data_gen.instruction_pretrain.tuning import TuningConfig, TuningSource
from data_gen.quality.decontaminate import DecontaminateConfig
from data_gen.quality.dedup import MinHashConfig
from data_gen.quality.judge import JudgeConfig
from data_gen.quality.rules import RulesConfig
from data_gen.quality.stage import FilterConfig
from ipt_jax.chains.quickstart import QuickstartConfig
from ipt_jax.chains.tune import TuneConfig
from ipt_jax.core.bounds import Config
from ipt_jax.core.configuration import parse_config
from ipt_jax.core.errors import UserError
from ipt_jax.data.mixture import DataConfig
from ipt_jax.data.tasks import Mixture, Task
from ipt_jax.data.tasks import MixtureStage as Stage
from ipt_jax.data.token_run import TokenizeConfig
from ipt_jax.evaluation.harness import EvaluationConfig
from ipt_jax.models.config import PRESETS, DecoderConfig, ModelConfig
from ipt_jax.models.lora import LoraConfig
from ipt_jax.training.checkpoints import CheckpointConfig
from ipt_jax.training.config import TrainConfig
from ipt_jax.training.convert import ToHuggingFaceConfig
from ipt_jax.training.hooks import ProfileConfig
from ipt_jax.training.metrics import MetricsConfig
from ipt_jax.training.optimizer import ExtensionConfig, GuardConfig, OptimizerConfig
from ipt_jax.training.processes import ProcessesConfig
from ipt_jax.training.watchdog import WatchdogConfig

EXTENSION = {"tokens": 1, "schedule": "linear"}
DECODER = dataclasses.asdict(PRESETS["tiny"]) | {"remat_save": []}
# What each needs beside the key that is wrong.
NEEDED: dict[type, dict[str, Any]] = {
    DecoderConfig: DECODER,
    EvaluationConfig: {"models": {}},
    ExtensionConfig: EXTENSION,
    FilterConfig: {"gates": ["rules"]},
    Mixture: {"name": "m", "tasks": (Task("a", "x"), Task("b", "y"))},
    ReadingComprehensionConfig: {"domain": "law"},
    Stage: {"from_step": 1, "rates": {"a": 1}},
    SynthesizerAnalysis: {"held_out": ["x"]},
    CorpusAnalysis: {"synthesis": "x"},
    Task: {"name": "a", "source": "x"},
    TokenizeConfig: {"output": Path("x")},
    TuningSource: {"dataset": "coqa", "folder": "x"},
}
# What is refused, and of which keys.
REFUSED: list[tuple[Any, dict[type, str]]] = [
    (0, {
        CheckpointConfig: "keep every_steps",
        CorpusAnalysis: "judged_texts counted_texts",
        DecoderConfig: "layers heads kv_heads head_width width vocabulary_size max_positions",
        DecontaminateConfig: "substrings substring_characters coverage_ngram ngram",
        EngineConfig: "batch_size max_tokens",
        EvaluationConfig: "limit batch_size",
        ExtensionConfig: "tokens",
        GuardConfig: "window_steps stop_after",
        JudgeConfig: "keep_at_least",
        LoraConfig: "rank",
        MetricsConfig: "every_steps",
        MinHashConfig: "threshold shingle_words permutations bands",
        OptimizerConfig: "clip_norm",
        ProcessesConfig: "count",
        ProfileConfig: "start steps",
        QuickstartConfig: "minutes",
        RandomPairsConfig: "records_per_shard",
        RayConfig: "in_flight",
        ReadingComprehensionConfig: "limit max_characters most_per_sub vocabulary_documents",
        RulesConfig: "language_characters max_characters",  # 1 is the least that is asked for
        ServerConfig: "start_concurrency max_concurrency max_attempts connect_seconds read_seconds "
        "total_seconds down_seconds",
        Stage: "from_step",
        SynthesisConfig: "limit max_characters records_per_shard rounds min_pairs",
        SynthesizerAnalysis: "examples_per_dataset questions_per_example answer_tokens "
        "reading_pairs",
        Task: "max_epochs",
        TokenizeConfig: "records_per_shard",
        TrainConfig: "batch_tokens train_tokens epochs rows_per_device accumulation_steps "
        "dry_run_devices dry_run_mfu",
        TransformersConfig: "sort_window",
        TuningConfig: "sequence_tokens most_pairs",
        TuningSource: "most_examples",
        VllmConfig: "tensor_parallel data_parallel max_batch_requests in_flight",
    }),
    (-1, {
        CheckpointConfig: "keep_best",
        DataConfig: "worker_count seed",
        DecontaminateConfig: "shortest_characters coverage contaminated_share",
        ExtensionConfig: "warmup_steps peak_learning_rate final_fraction",
        GuardConfig: "spike_deviations",
        MinHashConfig: "seed",
        OptimizerConfig: "warmup_steps warmup_fraction peak_learning_rate final_fraction beta2 "
        "epsilon weight_decay z_loss",
        ProcessesConfig: "index",
        RayConfig: "actors",
        RulesConfig: "min_words max_words",
        ServeConfig: "port",
        ServerConfig: "backoff_seconds max_backoff_seconds wait_seconds",
        SynthesisConfig: "gpus price_per_gpu_hour",
        TrainConfig: "epochs",
        TuningConfig: "held_out_examples shots",
        WatchdogConfig: "timeout_seconds stop_seconds",
    }),
    (1.0, {
        DecoderConfig: "dropout",
        DecontaminateConfig: "coverage contaminated_share",
        LoraConfig: "dropout",
        OptimizerConfig: "warmup_fraction beta1",
    }),
    (1.4, {
        DecoderConfig: "layers",  # no whole number
        EngineConfig: "max_failed_share",
        ExtensionConfig: "final_fraction",
        MinHashConfig: "threshold",
        OptimizerConfig: "final_fraction decay_fraction warmup_steps",
        RulesConfig: "min_alphabetic max_repeated_lines min_language_score",
        ServerConfig: "latency_ratio",
        Stage: "from_step",
        SynthesisConfig: "fraction",
        TrainConfig: "dry_run_mfu",
        TuningConfig: "other_patterns",
    }),
    *((value, {
        ExtensionConfig: "peak_learning_rate final_fraction",
        GuardConfig: "spike_deviations",
        OptimizerConfig: "peak_learning_rate final_fraction warmup_steps",
        WatchdogConfig: "timeout_seconds stop_seconds",
    }) for value in (math.nan, math.inf)),
    (True, {OptimizerConfig: "peak_learning_rate warmup_steps", Stage: "from_step"}),
    (None, {OptimizerConfig: "peak_learning_rate", TrainConfig: "optimizer", Task: "eos"}),
    ("other", {
        CheckpointConfig: "best_mode",
        DataConfig: "packing",
        DecoderConfig: "family compute_dtype remat remat_save",
        EngineConfig: "name",
        ExtensionConfig: "schedule tokens",
        LoraConfig: "base_dtype targets",
        MetricsConfig: "wandb_mode",
        Mixture: "by rates",
        ModelConfig: "preset",
        OptimizerConfig: "schedule moments_dtype peak_learning_rate",
        Stage: "rates",
        Task: "loss encode format max_epochs bos preprocessors",
        ToHuggingFaceConfig: "dtype adapter",
        TrainConfig: "attention_backend xla_flags dry_run_device",
        TuneConfig: "dtype",
        TuningSource: "dataset",
    }),
    ("", {CorpusAnalysis: "synthesis", PairLayout: "response", Task: "name"}),
    (" ", {ReadingComprehensionConfig: "domain"}),
    ([], {
        FilterConfig: "gates",
        LoraConfig: "targets",
        Mixture: "tasks",
        PairLayout: "instruction",
        RulesConfig: "languages",
        SynthesizerAnalysis: "held_out",
    }),
    (1, {
        DataConfig: "row_tokens",
        EngineConfig: "context_tokens",
        SynthesisConfig: "dry_run_documents",
    }),
    (3, {
        DataConfig: "mixture",
        DecoderConfig: "heads head_width",
        TrainConfig: "optimizer extensions",
    }),
    (5, {MinHashConfig: "bands"}),
    (63, {ReadingComprehensionConfig: "text_tokens vocabulary_pieces"}),
    (99, {JudgeConfig: "keep_at_least", SynthesisConfig: "min_pairs", TrainConfig: "dry_run_mfu"}),
    ([3], {TrainConfig: "extensions"}),
    (["exact"], {FilterConfig: "gates"}),
    (["rules", "judge", "rules"], {FilterConfig: "gates"}),
    (("gate_up", "atention"), {DecoderConfig: "remat_save"}),
    (("q_proj", "q_proj"), {LoraConfig: "targets"}),
    (("pairs",), {Task: "preprocessors"}),
    ([TuningSource("fever", "x")], {TuningConfig: "sources"}),  # never tuned on
]  # fmt: skip


@pytest.mark.parametrize(
    ("cls", "key", "value"),
    [(cls, key, v) for v, keys in REFUSED for cls, names in keys.items() for key in names.split()],
)
def test_a_value_that_cannot_be_is_refused_by_its_key(cls: type, key: str, value: Any) -> None:
    cls(**NEEDED.get(cls, {}))
    with pytest.raises(UserError) as refused:
        cls(**NEEDED.get(cls, {}) | {key: value})
    assert refused.value.key and key in refused.value.key.split(".")
    assert refused.value.key in str(refused.value)


@pytest.mark.parametrize(
    ("cls", "values", "key", "said"),
    [
        (TrainConfig, {"optimizer": {"beta1": 1}}, "optimizer.beta1", "at least 0 and below 1"),
        (TrainConfig, {"optimizer": {"schedule": "cosin"}},
         "optimizer.schedule", "The nearest is 'cosine'"),
        (
            TrainConfig,
            {"extensions": [EXTENSION, EXTENSION | {"tokens": 0}]},
            "extensions.1.tokens",
            "at least 1",
        ),
        (TrainConfig, {"adapter": {"rank": 0}}, "adapter.rank", "at least 1"),
        (TrainConfig, {"adapter": {"targets": ["q_pro"]}}, "adapter.targets.0", "'q_proj'"),
        (TrainConfig, {"data": {"row_tokens": "long"}}, "data.row_tokens", "Got value: long"),
        (TrainConfig, {"epochs": math.inf}, "epochs", "finite, or null"),
        (TrainConfig, {"optimizer": {"moments_dtype": "bfloat16", "beta2": 0.999}},
         "optimizer.beta2", "at most 0.99"),
        (QuickstartConfig, {"synthesis": {"min_pairs": 99}}, "synthesis.min_pairs", "max_pairs=16"),
        (QuickstartConfig, {"training": {"guard": {"stop_after": 0}}},
         "training.guard.stop_after", "at least 1"),
        (FilterConfig, {"gates": ["judge"], "judge": {"engine": {"vllm": {"in_flight": 0}}}},
         "judge.engine.vllm.in_flight", "at least 1"),
        (CorpusAnalysis, {"synthesis": "x", "domains": "judge"}, "judge", "name its model"),
        (SynthesizerAnalysis, {"held_out": ["x"], "measures": ["accurracy"]},
         "measures.0", "'accuracy'"),
        (EngineConfig, {"name": "server", "ray": {"actors": 2}}, "ray.actors", "needs no actors"),
        (EngineConfig, {"name": "server", "adapter": "x"}, "adapter", "launch/serve.py"),
        (RulesConfig, {"min_words": 5, "max_words": 4}, "max_words", "at least min_words=5"),
        (RulesConfig, {"max_tokens": 5}, "tokenizer", "goes together with"),
        (DecoderConfig, DECODER | {"remat": "full", "remat_save": ["attention"]}, "remat", "need"),
        (DecoderConfig, DECODER | {"window": 8, "family": "llama"}, "window", "no sliding window"),
    ],
)  # fmt: skip
def test_what_is_read_is_refused_by_the_path_of_its_key(
    tmp_path: Path, cls: type, values: dict[str, Any], key: str, said: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=said) as refused:
        parse_config(cls, ["--config", str(path)], prog="script", description="")
    assert refused.value.key == key


def test_what_lies_on_a_bound_is_accepted() -> None:
    OptimizerConfig(final_fraction=1, warmup_steps=0, peak_learning_rate=0, beta1=0)
    TrainConfig(dry_run_mfu=1, epochs=None, extensions=(ExtensionConfig(1, "linear"),))
    LoraConfig(targets=("q_proj",))
    MinHashConfig(threshold=1)
    JudgeConfig(keep_at_least=5)
    RulesConfig(min_words=4, max_words=4, min_alphabetic=1)
    EngineConfig(context_tokens=2)


def test_what_a_config_holds_is_checked_too() -> None:
    seen, todo = set(), Config.__subclasses__()
    while todo:
        seen.add(cls := todo.pop())
        todo += cls.__subclasses__()
        for kind in get_type_hints(cls).values():
            for part in (kind, *get_args(kind)):
                if isinstance(part, type) and dataclasses.is_dataclass(part):
                    assert issubclass(part, Config), (cls, part)
    assert {TrainConfig, EngineConfig, FilterConfig, TuneConfig} <= seen
