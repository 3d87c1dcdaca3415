"""Ten million tokens of real text: realised rates and fill, in both packings."""

import gzip
import json

import numpy as np
import pytest

from ipt_jax.core.records import Record, ShardWriter
from ipt_jax.data.mixture import PACKINGS
from ipt_jax.data.pipeline import batches, open_mixture, realised_rates, source_tokens
from ipt_jax.data.tasks import Mixture, Task

RATES = {"web_c4": 50, "finance_news": 25, "biomedical_abstract": 15, "other": 10}


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory):
    """3,015 texts of eight domains in four sources, seen more than once."""
    pytest.importorskip("mistral_common", reason="carries the Mistral tokenizer")
    path = shared / "data" / "raw_mixed.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        texts = [json.loads(line) for line in file]
    folder = tmp_path_factory.mktemp("real")
    for name in RATES:
        with ShardWriter(folder / name) as writer:
            for text in texts:
                if (text["domain"] if text["domain"] in RATES else "other") == name:
                    writer.write(Record(text["id"], text["text"], text["domain"]))
    return open_mixture(Mixture("real", tuple(Task(n, str(folder / n)) for n in RATES), RATES))


@pytest.mark.parametrize("packing", PACKINGS)
def test_ten_million_tokens(real, packing):
    steps = -(-10_000_000 // (64 * 2048))
    counts, positions = np.zeros(len(RATES), np.int64), 0
    for batch in batches(
        real, rows_per_batch=64, row_tokens=2048, total_batches=steps, packing=packing
    ):
        counts += source_tokens(batch["source_ids"], len(RATES))
        positions += batch["tokens"].size
    assert positions >= 10_000_000
    for name, rate in realised_rates(counts, real.task_names).items():
        assert rate == pytest.approx(real.asked_rates[name], rel=0.005), name
    fill = counts.sum() / positions
    assert fill == 1 if packing == "concatenate" else fill > 0.995
