"""Data sets of Hugging Face `datasets`: saved in a folder, or streamed from the hub."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from data_gen.corpus.documents import Raw
from data_gen.corpus.files import CorpusFile, missing_package, read_errors
from data_gen.corpus.hub_names import HubName
from data_gen.corpus.tables import check_column, raw_rows
from data_gen.errors.shared import input_error, optional
from ipt_jax.core.errors import UserError, did_you_mean

_BATCH = 256


@functools.cache
def hub_commit(name: str, revision: str) -> str:
    """The commit that a revision of a data set names; asked once in a process, so that what is
    read is what the fingerprint says."""
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(name, revision=revision or None).sha)


def read_saved(file: CorpusFile, asked: Sequence[str]) -> Iterator[Raw]:
    """The rows of a folder that `save_to_disk` wrote; of one with splits, those of `train`."""
    datasets = _library(file)
    with read_errors(file):
        data = datasets.load_from_disk(file.path)
        if isinstance(data, dict):
            if "train" not in data:
                raise input_error(
                    f"the data set {file.path} has no split 'train': name the folder of a split, "
                    f"as {file.path}/{next(iter(data), 'test')}. "
                    f"{did_you_mean('train', map(str, data))}",
                    path=file.path,
                )
            data = data["train"]
        yield from _rows(file, data, asked)


def read_hub(file: CorpusFile, asked: Sequence[str]) -> Iterator[Raw]:
    """The rows of a split of a data set on the hub, streamed."""
    datasets = _library(file)
    name = HubName.parse(file.path)
    with read_errors(file):
        data = datasets.load_dataset(
            name.name,
            name.subset or None,
            split=name.split,
            revision=hub_commit(name.name, name.revision),
            streaming=True,
        )
        yield from _rows(file, data, asked)


def _rows(file: CorpusFile, data: Any, asked: Sequence[str]) -> Iterator[Raw]:
    if data.column_names is not None:
        check_column(file, asked[0], data.column_names)
    # As Arrow tables nothing in a row, such as an image, is decoded.
    batches = data.with_format("arrow").iter(batch_size=_BATCH)
    yield from raw_rows(batches, file.label, asked)


def _library(file: CorpusFile) -> Any:
    datasets = optional("datasets", missing_package(file.path, "Hugging Face datasets"))
    if int(datasets.__version__.split(".")[0]) < 4:
        raise UserError(
            f"{file.path} is read with Hugging Face datasets 4 or newer: {datasets.__version__}, "
            "which is installed, can run code that lies in a data set. `pip install "
            "'ipt-jax[sources]'`.",
            path=file.path,
        )
    return datasets
