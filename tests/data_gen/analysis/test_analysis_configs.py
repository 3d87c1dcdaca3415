"""The configs that come along, and keys given on the command line."""

from __future__ import annotations

from pathlib import Path

from data_gen.instruction_pretrain.analysis.config import (
    MEASURES,
    CorpusAnalysis,
    SynthesizerAnalysis,
)
from data_gen.quality.evaluations import EvaluationFile
from ipt_jax.core.configuration import parse_config


def test_the_synthesizer_s_config(root: Path) -> None:
    config = parse_config(
        SynthesizerAnalysis,
        [
            *("--config", str(root / "configs/analyse/ipt_synthesizer.yaml")),
            *("--models.tuned.model", "my/synthesizer", "--reader.model", "my/reader"),
            *("--examples_per_dataset", "7"),
        ],
        prog="analyse",
        description="",
    )
    assert config.models.base.model == "mistralai/Mistral-7B-v0.1"
    assert config.models.tuned.model == "my/synthesizer"
    assert config.models.base.max_tokens == config.models.tuned.max_tokens
    assert config.reader is not None and config.reader.model == "my/reader"
    assert (tuple(config.measures), config.examples_per_dataset) == (MEASURES, 7)


def test_the_corpus_s_config(root: Path, tmp_path: Path) -> None:
    given = ["--config", str(root / "configs/analyse/ipt_corpus.yaml")]
    config = parse_config(CorpusAnalysis, given, prog="analyse", description="")
    assert config.judge is None and config.domains == "keywords"
    assert config.contamination.evaluations == []
    own = tmp_path / "own.yaml"
    own.write_text(
        "domains: judge\njudge: {name: server, model: auto, server: {url: http://127.0.0.1:1/v1}}\n"
        "contamination: {evaluations: [{name: ARC-e, path: arc.jsonl, fields: [question]}]}\n"
    )
    config = parse_config(
        CorpusAnalysis, [*given, "--config", str(own)], prog="analyse", description=""
    )
    assert config.judge is not None and config.judge.server.url == "http://127.0.0.1:1/v1"
    assert config.contamination.evaluations == [EvaluationFile("ARC-e", "arc.jsonl", ["question"])]
