"""Our shards as others read them: MaxText's way, TensorFlow's parser, TFDS."""

import os
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from ipt_jax.core.example_proto import example_class
from ipt_jax.core.records import Record, RecordSource, ShardWriter
from ipt_jax.core.tokenizers import load_tokenizer
from ipt_jax.data.mixture import DataConfig
from ipt_jax.data.token_run import TokenizeConfig, tokenize

pytest.importorskip("mistral_common", reason="carries the Mistral tokenizer")
NO_TENSORFLOW = "TensorFlow is an extra: pip install 'ipt-jax[seqio]'"


@pytest.fixture(scope="module")
def texts(tmp_path_factory, documents):
    """60 documents, every second with parts, in three record shards."""
    folder = tmp_path_factory.mktemp("shards") / "texts"
    with ShardWriter(folder, records_per_shard=25) as writer:
        for number, text in enumerate([*documents[:59], "é漢🙂"]):
            parts = (text[:20], text[20:]) if number % 2 else None
            loss = (0.0, 1.0) if number % 2 else None
            record = Record(f"d/{number}", text, "corpus", parts, loss, {"seed": number})
            writer.write(record)
    return folder


@pytest.fixture(scope="module")
def tokens(texts):
    """Their token shards."""
    mixture = {"tasks": {"t": {"source": str(texts)}}}
    config = TokenizeConfig(texts.parent / "out", DataConfig(mixture), records_per_shard=25)
    tokenize(config)
    return texts.parent / "out" / "t"


def shards(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.glob("part-*.arrayrecord"))


def records(folder: Path) -> list[Record]:
    source = RecordSource(folder)
    return source.read(range(len(source)))


class MaxTextParse(grain.transforms.Map):
    """What MaxText's ParseFeatures and NormalizeFeatures do to a serialised example."""

    def __init__(self, column: str, tokenize: bool) -> None:
        self.column, self.tokenize = column, tokenize

    def map(self, element: bytes) -> Any:
        example: Any = example_class()()
        example.ParseFromString(element)
        feature = example.features.feature[self.column]
        if self.tokenize:
            assert feature.bytes_list.value, "the column has no text"
            return np.array(feature.bytes_list.value, dtype=object)[0].decode()
        assert feature.int64_list.value, "the column has no integers"
        return np.array(feature.int64_list.value, dtype=np.int32)


@pytest.mark.parametrize("hosts", [1, 2])
def test_maxtext_reads_texts_and_tokens(texts, tokens, hosts):
    """Grain's ArrayRecordDataSource, shuffled and dealt to hosts, then an own parse."""
    expected = [record.text for record in records(texts)]
    ids = load_tokenizer("mistral-7b-v0.1").encode_batch(expected, bos=True, eos=True)
    for folder, column, wanted in ((texts, "text", expected), (tokens, "tokens", ids)):
        source = grain.sources.ArrayRecordDataSource(shards(folder))
        assert len(source) == 60
        dataset = grain.MapDataset.source(source).shuffle(seed=3)
        parse = MaxTextParse(column, tokenize=folder == texts).map
        found = [item for host in range(hosts) for item in dataset[host::hosts].map(parse)]
        plain = [item if isinstance(item, str) else item.tolist() for item in found]
        assert plain != wanted
        assert sorted(plain) == sorted(wanted)


def test_tensorflow_parses_texts(texts):
    tf = pytest.importorskip("tensorflow", reason=NO_TENSORFLOW)
    one, many = tf.io.FixedLenFeature([], tf.string), tf.io.VarLenFeature
    form = {
        **dict.fromkeys(("id", "text", "source", "provenance"), one),
        "parts": many(tf.string),
        "loss": many(tf.float32),
    }
    data = [item for path in shards(texts) for item in ArrayRecordReader(path).read_all()]
    for serialised, record in zip(data, records(texts), strict=True):
        parsed = tf.io.parse_single_example(serialised, form)
        assert parsed["id"].numpy().decode() == record.id
        assert parsed["text"].numpy().decode() == record.text
        parts = [part.decode() for part in parsed["parts"].values.numpy()]
        assert tuple(parts) == (record.parts or ())
        assert tuple(parsed["loss"].values.numpy().tolist()) == (record.loss or ())


def test_tensorflow_parses_tokens(texts, tokens):
    """As MaxText did with TensorFlow, and T5X does with cached tasks."""
    tf = pytest.importorskip("tensorflow", reason=NO_TENSORFLOW)
    tokenizer = load_tokenizer("mistral-7b-v0.1")
    expected = tokenizer.encode_batch([r.text for r in records(texts)], bos=True, eos=True)
    form = {"tokens": tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True)}
    data = [item for path in shards(tokens) for item in ArrayRecordReader(path).read_all()]
    found = [tf.io.parse_single_example(item, form)["tokens"].numpy().tolist() for item in data]
    assert found == expected


def test_tfds_reads_our_shards_where_they_lie(texts, tmp_path, write_shards):
    """TFDS wants its own names for the files and a description beside them: links will do."""
    tfds = pytest.importorskip("tensorflow_datasets", reason=NO_TENSORFLOW)
    folder = tmp_path / "corpus" / "1.0.0"
    folder.mkdir(parents=True)
    paths = shards(texts)
    for number, path in enumerate(paths):
        name = f"corpus-train.array_record-{number:05d}-of-{len(paths):05d}"
        os.symlink(path, folder / name)
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder),
        features=tfds.features.FeaturesDict(
            {"id": tfds.features.Text(), "text": tfds.features.Text()}
        ),
        split_infos=[tfds.core.SplitInfo("train", [25, 25, 10], 0)],
        filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        check_data=False,  # which reads with tf.data, and that has no ArrayRecord
    )
    builder = tfds.builder_from_directory(str(folder))
    source = builder.as_data_source(split="train")
    found = [source[index] for index in range(len(source))]
    assert [(item["id"].decode(), item["text"].decode()) for item in found] == [
        (record.id, record.text) for record in records(texts)
    ]
