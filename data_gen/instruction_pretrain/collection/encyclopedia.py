"""Data sets of encyclopedia articles."""

from __future__ import annotations

from data_gen.instruction_pretrain.collection.base import Dataset

DATASETS: tuple[Dataset, ...] = ()
