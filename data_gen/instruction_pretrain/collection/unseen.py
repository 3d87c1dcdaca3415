"""The four sets of section 5.1, which the synthesizer is never tuned on."""

from __future__ import annotations

from data_gen.instruction_pretrain.collection.base import Dataset

DATASETS: tuple[Dataset, ...] = ()
