"""A mixture with everything that the report on data plots, and the tool that makes it."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from ipt_jax.core.records import Record, ShardWriter
from ipt_jax.data.mixture import DataConfig
from ipt_jax.data.pipeline import open_mixture
from tests.damaged_shards import damage

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "data_gen" / "sample_corpus" / "documents.jsonl"
PAIRS = "<script>x</script>"
CHARTS = {
    # Title -> how many bars or lines draw it, at the least.
    "Tokens in the batches made": 4,
    "Realised rates, batch by batch; asked dashed": 4,
    "Lengths of raw": 5,
    f"Lengths of {PAIRS}": 5,
    "Fill: places that hold tokens": 1,
    "Segments a row": 3,
    "Epochs after 30 batches": 2,
    "Tokens whose target carries loss": 2,
}


def write_mixture(folder: Path) -> Path:
    """150 documents, some of them damaged after they were counted; 40 pairs; two stages."""
    pytest.importorskip("mistral_common", reason="carries the Mistral tokenizer")
    texts = [json.loads(line)["text"] for line in CORPUS.read_text().splitlines()[:150]]
    with ShardWriter(folder / "raw", records_per_shard=64) as writer:
        for number, text in enumerate(texts):
            writer.write(Record(f"raw/{number}", text, "raw"))
    with ShardWriter(folder / "pairs") as writer:
        for number, text in enumerate(texts[:40]):
            parts = (text[:100], text[100:300])
            writer.write(Record(f"p/{number}", "".join(parts), "pairs", parts, (0.0, 0.5)))
    content = {
        "root": str(folder),
        "rates": {"raw": 3, PAIRS: 1},
        "stages": [{"from_step": 10, "rates": {"raw": 1, PAIRS: 1}}],
        "tasks": {
            "raw": {"source": "raw"},
            PAIRS: {"source": "pairs", "loss": "responses", "max_epochs": 60},
        },
    }
    path = folder / "mixture.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    open_mixture(DataConfig(str(path)))
    damage(folder / "raw" / "part-00001.arrayrecord")
    return path


def load_tool() -> ModuleType:
    """tools/data_report.py, which is a script and no module."""
    spec = importlib.util.spec_from_file_location("report_tool", ROOT / "tools/data_report.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["report_tool"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_report(folder: Path) -> Path:
    """The page of that mixture's first 30 batches."""
    options = ["--data.mixture", str(write_mixture(folder)), "--data.skip_damaged", "true"]
    options += ["--batches", "30", "--rows", "8", "--data.row_tokens", "256"]
    load_tool().main([*options, "--output", str(folder / "report.html")])
    return folder / "report.html"
