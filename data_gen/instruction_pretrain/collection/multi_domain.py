"""Data sets whose texts come from several domains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_gen.instruction_pretrain.collection.base import MULTI_DOMAIN, Dataset, Question, Unusable
from data_gen.instruction_pretrain.collection.files import rows
from data_gen.instruction_pretrain.format import Pair


def _cosmos_questions(record: Any) -> Iterator[Question | Unusable]:
    options = tuple(record[f"answer{number}"] for number in range(4))
    label = int(record["label"])
    yield Question(record["context"], Pair(record["question"], options[label], options))


DATASETS = (
    Dataset(
        name="cosmosqa",
        domain=MULTI_DOMAIN,
        source="Huang et al. (2019); github.com/wilburOne/cosmosqa, data/",
        licence="CC BY 4.0",
        train=("train.csv",),
        held_out=("valid.csv",),
        records=rows,
        questions=_cosmos_questions,
        hub="allenai/cosmos_qa",
    ),
)
