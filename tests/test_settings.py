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
from ipt_jax.data.config import DataConfig
from ipt_jax.data.tasks import Mixture, Stage, Task
from ipt_jax.data.token_run import TokenizeConfig
from ipt_jax.evaluation.harness import EvaluationConfig
from ipt_jax.models.config import PRESETS, DecoderConfig, ModelConfig
from ipt_jax.models.lora import LoraConfig
from ipt_jax.training.checkpoints import CheckpointConfig
from ipt_jax.training.config import TrainConfig
from ipt_jax.training.convert import ToHuggingFaceConfig
from ipt_jax.training.guard import GuardConfig
from ipt_jax.training.metrics import MetricsConfig
from ipt_jax.training.optimizer import ExtensionConfig, OptimizerConfig
from ipt_jax.training.processes import ProcessesConfig
from ipt_jax.training.profile import ProfileConfig
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
CORPUS = {"limit": (0,), "max_characters": (0,), "records_per_shard": (0,)}
ASKING = {"gpus": (-1,), "price_per_gpu_hour": (-0.1,), "dry_run_documents": (1,)}
REFUSED: dict[type, dict[str, tuple[Any, ...]]] = {
    OptimizerConfig: {
        "peak_learning_rate": (-1e-4, math.nan, math.inf, "fast", True, None),
        "warmup_steps": (-1, 1.5, True),
        "warmup_fraction": (-0.1, 1.0, 10.0),
        "schedule": ("stepwise",),
        "final_fraction": (-0.1, 1.5, math.nan),
        "decay_fraction": (1.5,),
        "beta1": (1.0,),
        "beta2": (-0.5,),
        "clip_norm": (0.0,),
        "moments_dtype": ("float16",),
        **dict.fromkeys(("epsilon", "weight_decay", "z_loss"), (-1.0,)),
    },
    ExtensionConfig: {
        "tokens": (0,),
        "schedule": ("wsd",),
        "peak_learning_rate": (-1e-4, math.nan),
        "warmup_steps": (-1,),
        "final_fraction": (-0.1, 1.5, math.nan),
    },
    CheckpointConfig: {
        "keep": (0,),
        "keep_best": (-1,),
        "every_steps": (0,),
        "best_mode": ("low",),
    },
    GuardConfig: {"spike_deviations": (-1.0, math.nan), "window_steps": (0,), "stop_after": (0,)},
    MetricsConfig: {"every_steps": (0,), "wandb_mode": ("disabled",)},
    ProcessesConfig: {"count": (0,), "index": (-1,)},
    ProfileConfig: {"start": (0,), "steps": (0,)},
    WatchdogConfig: dict.fromkeys(("timeout_seconds", "stop_seconds"), (-1.0, math.nan)),
    TrainConfig: {
        "batch_tokens": (0,),
        "train_tokens": (0,),
        "epochs": (0.0, -1.0),
        "rows_per_device": (0,),
        "accumulation_steps": (0,),
        "attention_backend": ("flash",),
        "xla_flags": ("some",),
        "dry_run_devices": (0,),
        "dry_run_device": ("a100_8",),
        "dry_run_mfu": (0.0, 40.0),
        "optimizer": (None, 3),
        "extensions": (3, [3]),
    },
    LoraConfig: {
        "rank": (0,),
        "dropout": (1.0,),
        "base_dtype": ("float16",),
        "targets": ("q_proj", (), ("q_proj", "q_proj")),
    },
    ModelConfig: {"preset": ("ipt_500",)},
    DecoderConfig: {
        "family": ("gpt",),
        "compute_dtype": ("float16",),
        "remat": ("some", "names"),
        "remat_save": ("attention", ("gate_up", "atention")),
        "heads": (3,),
        "head_width": (7,),
        "dropout": (1.0,),
        "layers": (0,),
    },
    ToHuggingFaceConfig: {"dtype": ("float16",), "adapter": ("both",)},
    DataConfig: {
        "row_tokens": (1,),
        "worker_count": (-1,),
        "seed": (-1,),
        "packing": ("bestfit",),
        "mixture": (3,),
    },
    TokenizeConfig: {"records_per_shard": (0,)},
    Task: {
        "name": ("",),
        "loss": ("some",),
        "encode": ("words",),
        "format": ("csv",),
        "max_epochs": (0, "many"),
        "bos": (1,),
        "eos": (None,),
        "preprocessors": ("pair", ("pairs",)),
    },
    Stage: {"from_step": (0, True, 2.5), "rates": ("natural",)},
    Mixture: {"by": ("bytes",), "tasks": ((),), "rates": ("naturel",)},
    EvaluationConfig: {"limit": (0,), "batch_size": (0,)},
    QuickstartConfig: {"minutes": (0.0,)},
    TuneConfig: {"dtype": ("float16",)},
    EngineConfig: {
        "name": ("vlm",),
        "batch_size": (0,),
        "max_tokens": (0,),
        "context_tokens": (1,),
        "max_failed_share": (1.5,),
    },
    TransformersConfig: {"sort_window": (0,)},
    VllmConfig: dict.fromkeys(
        ("tensor_parallel", "data_parallel", "max_batch_requests", "in_flight"), (0,)
    ),
    ServerConfig: {
        **dict.fromkeys(("start_concurrency", "max_concurrency", "max_attempts"), (0,)),
        **dict.fromkeys(("backoff_seconds", "max_backoff_seconds", "wait_seconds"), (-1.0,)),
        **dict.fromkeys(
            ("connect_seconds", "read_seconds", "total_seconds", "down_seconds"), (0.0,)
        ),
        "latency_ratio": (1.4,),
    },
    RayConfig: {"actors": (-1,), "in_flight": (0,)},
    ServeConfig: {"port": (-1,)},
    PairLayout: {"instruction": ([],), "response": ("",)},
    SynthesisConfig: {
        **CORPUS, **ASKING, "fraction": (1.5,), "rounds": (0,), "min_pairs": (0, 99),
    },
    RandomPairsConfig: {"records_per_shard": (0,)},
    ReadingComprehensionConfig: {
        **CORPUS,
        "domain": ("", " "),
        "most_per_sub": (0,),
        "text_tokens": (63,),
        "vocabulary_pieces": (99,),
        "vocabulary_documents": (0,),
    },
    TuningSource: {"dataset": ("squat",), "most_examples": (0,)},
    TuningConfig: {
        "sequence_tokens": (0,),
        "most_pairs": (0,),
        "held_out_examples": (-1,),
        "shots": (-1,),
        "other_patterns": (1.5,),
        "sources": ([TuningSource("fever", "x")],),
    },
    SynthesizerAnalysis: {
        "held_out": ([],),
        "measures": (["helpfulness"],),
        **dict.fromkeys(("examples_per_dataset", "questions_per_example", "answer_tokens"), (0,)),
        "reading_pairs": (0,),
    },
    CorpusAnalysis: {"synthesis": ("",), "judged_texts": (0,), "counted_texts": (0,)},
    DecontaminateConfig: {
        **dict.fromkeys(("substrings", "substring_characters", "coverage_ngram", "ngram"), (0,)),
        **dict.fromkeys(("coverage", "contaminated_share"), (-0.1, 1.0)),
        "shortest_characters": (-1,),
    },
    MinHashConfig: {
        "threshold": (0.0, 1.1),
        "shingle_words": (0,),
        "permutations": (0,),
        "bands": (5,),
        "seed": (-1,),
    },
    JudgeConfig: {"keep_at_least": (0, 6)},
    RulesConfig: {
        **dict.fromkeys(("min_alphabetic", "max_repeated_lines", "min_language_score"), (1.5,)),
        **dict.fromkeys(("min_words", "max_words"), (-1,)),
        "max_characters": (0,),  # fewer than the one that is asked for
        "tokenizer": ("llama3",),
        "languages": ([],),
        "language_characters": (0,),
    },
    FilterConfig: {"gates": ([], ["exact"], ["rules", "judge", "rules"])},
}  # fmt: skip


@pytest.mark.parametrize("cls", REFUSED, ids=lambda cls: cls.__name__)
def test_a_value_that_cannot_be_is_refused_by_its_key(cls: type) -> None:
    cls(**NEEDED.get(cls, {}))
    for key, values in REFUSED[cls].items():
        for value in values:
            with pytest.raises(UserError) as refused:
                cls(**NEEDED.get(cls, {}) | {key: value})
            assert refused.value.key and key in refused.value.key.split("."), value
            assert refused.value.key in str(refused.value)


@pytest.mark.parametrize(
    ("cls", "values", "key", "said"),
    [
        (TrainConfig, {"optimizer": {"beta1": 1}}, "optimizer.beta1", "at least 0 and below 1"),
        (TrainConfig, {"optimizer": {"schedule": "cosin"}}, "optimizer.schedule", "'cosine'"),
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
