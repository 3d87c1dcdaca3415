"""The contenders of tools/bench_data.py: our data pipeline and what it is measured against."""

import importlib.resources
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from ipt_jax.core.example_proto import example_class
from ipt_jax.core.records import DEFAULT_OPTIONS, Record, RecordSource, ShardWriter, serialize
from ipt_jax.core.tokenizers import load_tokenizer
from ipt_jax.data.encode import index_lengths
from ipt_jax.data.mixture import DataConfig, OpenMixture, open_mixture
from ipt_jax.data.packing import Tokenised, assemble_rows, best_fit, concat_and_split, flatten
from ipt_jax.data.pipeline import batches
from ipt_jax.data.token_run import TokenizeConfig, tokenize

T, B = 2048, 8  # tokens in a row, rows in a batch
TOKENIZER = "mistral-7b-v0.1"
OPTIONS = (
    *("group_size:1,uncompressed", "group_size:1,snappy", "group_size:1,zstd:3"),
    *("group_size:16,uncompressed", "group_size:16,zstd:1", "group_size:16,zstd:3"),
    *("group_size:64,zstd:3", "group_size:256,zstd:3"),
)
_READ = 256  # records in a random batch


def _records(texts: list[str]) -> list[Record]:
    return [Record(f"r{number}", text, "bench") for number, text in enumerate(texts)]


class Corpus:
    """The same texts in the form that each contender reads."""

    def __init__(self, texts: list[str], folder: Path) -> None:
        self._folder, self._texts = folder, texts
        with ShardWriter(folder / "shards") as writer:
            for record in _records(texts):
                writer.write(record)
        self._lines = folder / "texts.jsonl"
        self._lines.write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8"
        )
        self._data = self._opened(folder / "shards")  # makes the length index
        tokenize(TokenizeConfig(output=folder / "tokens", data=self._data.config))
        self._tokens = self._opened(folder / "tokens" / "text")
        self._batches = self._data.epoch_tokens[0] // (T * B)
        load_tokenizer(TOKENIZER).save_pretrained(folder / "tokenizer")

    def _opened(self, shards: Path) -> OpenMixture:
        mixture = {"tasks": {"text": {"source": str(shards)}}}
        return open_mixture(DataConfig(mixture=mixture, tokenizer=TOKENIZER, row_tokens=T))

    def ours(self, packing: str = "concatenate", data: OpenMixture | None = None) -> int:
        """One epoch from text, in this process (Grain's reading threads share the core)."""
        made = 0
        for batch in batches(
            data or self._data,
            rows_per_batch=B,
            total_batches=self._batches,
            packing=packing,
            worker_count=0,
        ):
            made += int(np.count_nonzero(batch["segment_ids"]))
        return made

    def ours_from_token_shards(self) -> int:
        """One epoch from token shards."""
        return self.ours(data=self._tokens)

    def index(self) -> int:
        """What comes before the first epoch: every text's length in tokens."""
        for old in (self._folder / "shards").glob("lengths-*"):
            old.unlink()
        source = self._data.sources[0]
        assert source is not None
        index_lengths(source, self._data.tokenizer)
        return self._data.epoch_tokens[0]

    def bare_grain(self) -> int:
        """Grain's shuffle, concatenation and batches around the tokenizer library."""
        import sentencepiece

        model: Any = sentencepiece.SentencePieceProcessor(model_proto=_sentencepiece_model())
        make: Any = example_class()

        def ids(data: bytes) -> dict[str, np.ndarray]:
            example = make.FromString(data)
            text = example.features.feature["text"].bytes_list.value[0].decode()
            found = model.encode(text, return_type="numpy", add_bos=True, add_eos=True)
            return {"tokens": np.asarray(found, np.int32)}

        paths = sorted(map(str, (self._folder / "shards").glob("*.arrayrecord")))
        source: Any = grain.sources.ArrayRecordDataSource(paths)
        reading = grain.ReadOptions(num_threads=2, prefetch_buffer_size=64)
        examples = grain.MapDataset.source(source).shuffle(seed=0).map(ids).to_iter_dataset(reading)
        packed = grain.experimental.ConcatThenSplitIterDataset(
            examples, length_struct={"tokens": T}
        )
        made = 0
        for batch in packed.batch(B):
            made += int(np.count_nonzero(batch["tokens_segment_ids"]))
        return made

    def hugging_face(self) -> int:
        """datasets streaming, a fast tokenizer, concatenation by map, batches of numpy arrays."""
        from datasets import load_dataset
        from datasets.utils.logging import set_verbosity_error
        from tokenizers import Tokenizer

        set_verbosity_error()
        fast = Tokenizer.from_file(str(self._folder / "tokenizer" / "tokenizer.json"))
        ends = [fast.token_to_id("</s>")]

        def ids(batch: dict[str, list[str]]) -> dict[str, Any]:
            return {"tokens": [found.ids + ends for found in fast.encode_batch(batch["text"])]}

        def joined(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
            stream = [token for example in batch["tokens"] for token in example]
            return {"tokens": [stream[n : n + T] for n in range(0, len(stream) - T + 1, T)]}

        lines = load_dataset("json", data_files=str(self._lines), split="train", streaming=True)
        dataset = lines.shuffle(seed=0, buffer_size=1000)
        dataset = dataset.map(ids, batched=True, remove_columns=["text"])
        dataset = dataset.map(joined, batched=True).with_format("numpy").batch(B)
        return sum(np.asarray(batch["tokens"]).size for batch in dataset)


class Ready:
    """Examples that are ids already; lengths as those of web pages: log-normal, median 400."""

    def __init__(self, tokens: int) -> None:
        random = np.random.default_rng(0)
        lengths = np.minimum(random.lognormal(6.0, 1.0, tokens // 300).astype(int) + 2, T)
        lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), tokens))]
        self._examples = [
            Tokenised(random.integers(3, 32_000, n).astype(np.int32), None) for n in lengths
        ]
        self._lengths = lengths.astype(np.int64)
        self.fill: dict[str, float] = {}

    def contenders(self) -> dict[str, Callable[[], int]]:
        """Ours and Grain's, by name."""
        grain_packers: dict[str, Callable[[Any], Any]] = {
            "Grain first fit": lambda dataset: grain.experimental.FirstFitPackIterDataset(
                dataset, length_struct={"tokens": T}, num_packing_bins=64
            ),
            "Grain best fit": lambda dataset: grain.experimental.BestFitPackIterDataset(
                dataset, length_struct={"tokens": T}, num_packing_bins=64
            ),
            "Grain concatenate": lambda dataset: grain.experimental.ConcatThenSplitIterDataset(
                dataset, length_struct={"tokens": T}
            ),
        }
        theirs = {
            name: lambda name=name, pack=pack: self._grain(name, pack)
            for name, pack in grain_packers.items()
        }
        return {**theirs, "ours, best_fit": self._best_fit, "ours, concatenate": self._concatenate}

    def _counted(self, name: str, rows: int) -> int:
        tokens = int(self._lengths.sum())
        self.fill[name] = tokens / (rows * T)
        return tokens

    def _grain(self, name: str, pack: Callable[[Any], Any]) -> int:
        examples: list[Any] = [{"tokens": example.tokens} for example in self._examples]
        dataset: Any = grain.MapDataset.source(examples).to_iter_dataset(
            grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        )
        return self._counted(name, sum(1 for _ in pack(dataset)))

    def _best_fit(self) -> int:
        pieces = best_fit(self._lengths, T)
        for first in range(0, pieces.rows, B):
            part = pieces.within(first, min(first + B, pieces.rows))
            used, number = np.unique(part.example, return_inverse=True)
            examples = [self._examples[example] for example in used.tolist()]
            assemble_rows(replace(part, example=number), examples, [0] * len(examples), T)
        return self._counted("ours, best_fit", pieces.rows)

    def _concatenate(self) -> int:
        rows = 0
        for part in self._parts(B * T):
            stream = flatten(part, range(len(part)), [0] * len(part))
            made = -(-len(stream[0]) // T)
            concat_and_split(*stream, T, made)
            rows += made
        return self._counted("ours, concatenate", -(-int(self._lengths.sum()) // T))

    def _parts(self, tokens: int) -> Iterator[list[Tokenised]]:
        """Runs of examples of about so many tokens, as a batch reads them."""
        parts = np.cumsum(self._lengths) // tokens
        for part in np.split(np.arange(len(parts)), np.flatnonzero(np.diff(parts)) + 1):
            yield [self._examples[number] for number in part]


class Shards:
    """Texts as records, written and read in two ways."""

    def __init__(self, texts: list[str], folder: Path) -> None:
        self._records, self._folder = _records(texts), folder
        self._bytes = [serialize(record) for record in self._records]
        self.megabytes = round(sum(map(len, self._bytes)) / 1e6, 1)
        self.write()
        self._source = RecordSource(folder / "ours")
        path = next((folder / "ours").glob("*.arrayrecord"))
        self._reader = ArrayRecordReader(str(path))
        random = np.random.default_rng(0)
        count = self._reader.num_records()
        self._batches = [random.integers(0, count, _READ).tolist() for _ in range(20)]

    def write(self) -> int:
        """Ours: checksums, manifest, fsync and checks included."""
        with ShardWriter(self._folder / "ours", records_per_shard=10**9) as writer:
            for record in self._records:
                writer.write(record)
        return len(self._records)

    def write_bare(self) -> int:
        """Serialised and given to the library."""
        writer = ArrayRecordWriter(str(self._folder / "bare.arrayrecord"), DEFAULT_OPTIONS)
        for record in self._records:
            writer.write(serialize(record))
        writer.close()
        return len(self._records)

    def read(self) -> int:
        """Ours, to parsed and checked records."""
        return sum(len(self._source.read(batch)) for batch in self._batches)

    def read_bare(self) -> int:
        """The library's batched read and the protos parsed; nothing is taken out of them."""
        make: Any = example_class()
        return sum(len([make.FromString(d) for d in self._reader.read(b)]) for b in self._batches)

    def try_options(self, options: str, rounds: int) -> dict[str, Any]:
        """Write, read from end to end and at random, with ArrayRecord's options."""
        path = self._folder / "bare.arrayrecord"
        found: dict[str, list[float]] = {"write MB/s": [], "read MB/s": [], "random records/s": []}
        for _ in range(rounds):
            since = time.process_time()
            writer = ArrayRecordWriter(str(path), options)
            for data in self._bytes:
                writer.write(data)
            writer.close()
            found["write MB/s"].append(self.megabytes / (time.process_time() - since))
            reader = ArrayRecordReader(str(path))
            since = time.process_time()
            reader.read_all()
            found["read MB/s"].append(self.megabytes / (time.process_time() - since))
            since = time.process_time()
            for batch in self._batches:
                reader.read(batch)
            seconds = time.process_time() - since
            found["random records/s"].append(_READ * len(self._batches) / seconds)
            reader.close()
        size = path.stat().st_size
        path.unlink()
        medians = {name: round(statistics.median(values)) for name, values in found.items()}
        return {**medians, "megabytes": round(size / 1e6, 1)}


def tokenizers(texts: list[str]) -> Iterator[tuple[str, Callable[[], int], Callable[[], int]]]:
    """Name, bare library and ours, each a run over all texts that returns their bytes."""
    size = sum(len(text.encode()) for text in texts)

    def timed(work: Callable[[], Any]) -> Callable[[], int]:
        def run() -> int:
            work()
            return size

        return run

    import sentencepiece

    ours = load_tokenizer(TOKENIZER)
    model: Any = sentencepiece.SentencePieceProcessor(model_proto=_sentencepiece_model())
    yield (
        "mistral",
        timed(lambda: model.encode(texts, return_type="numpy", add_bos=True, add_eos=True)),
        timed(lambda: ours.encode_arrays(texts, True, True)),
    )
    if importlib.util.find_spec("llama_models") is None:
        print("llama3: left out, the package llama-models is not installed")
        return
    llama: Any = importlib.import_module("llama_models.llama3.tokenizer")
    theirs, ours_3 = llama.Tokenizer.get_instance().model, load_tokenizer("llama3")
    yield (
        "llama3",
        timed(lambda: theirs.encode_ordinary_batch(texts, num_threads=1)),
        timed(lambda: ours_3.encode_arrays(texts, True, True)),
    )


def _sentencepiece_model() -> bytes:
    data = importlib.resources.files("mistral_common") / "data" / "tokenizer.model.v1"
    return data.read_bytes()
