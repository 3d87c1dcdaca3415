"""Our tasks and mixtures registered with google/seqio, for T5X-style users.

    from ipt_jax.data.seqio_registry import register_all
    register_all("configs/mixtures", root="runs")
    seqio.get_mixture_or_task("ipt_mix").get_dataset({"targets": 2048})

``targets`` are the ids of our tokenizer with the task's BOS and EOS. Where a task learns responses
only there is also ``loss_weights``, the weight of each of these tokens. seqio is TensorFlow: this
file alone may import it, and nothing else in this project imports this file. Needs the extra
``seqio``.
"""

import functools
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ipt_jax.core.errors import UserError
from ipt_jax.core.tokenizers import Tokenizer, load_tokenizer
from ipt_jax.data.encode import extra_tokens, index_lengths, tokenise
from ipt_jax.data.mixture import load_mixture_config
from ipt_jax.data.sources import Source, open_source
from ipt_jax.data.tasks import Mixture, Task, registered_mixtures, registered_tasks
from ipt_jax.data.token_shards import TokenSource

try:
    import seqio  # pyright: ignore[reportMissingImports]
    import tensorflow as tf  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise UserError(
        f"tasks are registered with seqio, which cannot be imported ({error})",
        advice="`pip install 'ipt-jax[seqio]'`",
    ) from error

_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"[\w.:#]+")  # what seqio takes as a name
_CHUNK = 256  # records read and tokenised at once
SPLIT = "train"
"""The one split of each task."""


def _padded_with_zero(name: str) -> Tokenizer:
    """The tokenizer. Raises UserError where id 0 writes text, which seqio takes for padding."""
    tokenizer = load_tokenizer(name)
    text = tokenizer.decode([0])
    if tokenizer.encode(text) == [0]:  # not so of `<unk>`, which no text becomes
        raise UserError(
            f"the tokenizer {name!r} writes {text!r} as id 0, and seqio pads with 0: its "
            "converters would lose each of these tokens",
            advice=(
                "train on this project's own batches (`ipt_jax.data.pipeline.batches`), or take a "
                "tokenizer whose id 0 is no text"
            ),
        )
    return tokenizer


class TokenizerVocabulary(seqio.Vocabulary):  # pyright: ignore
    """One of our tokenizers as seqio's vocabulary: the same ids, none added."""

    def __init__(self, name: str) -> None:
        super().__init__(extra_ids=0)
        self._name = name

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Loaded when it is first needed."""
        return _padded_with_zero(self._name)

    @property
    def bos_id(self) -> int | None:
        return self.tokenizer.bos_id

    @property
    def eos_id(self) -> int | None:
        return self.tokenizer.eos_id

    @property
    def unk_id(self) -> int | None:
        return None

    @property
    def _base_vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def _encode(self, s: str) -> list[int]:
        return self.tokenizer.encode(s)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    def _encode_tf(self, s: Any) -> Any:
        def encode(text: Any) -> np.ndarray:
            # Bytes in a graph, an array of one object outside of it.
            return self.tokenizer.encode_arrays([np.asarray(text).item().decode()])[0]

        ids = tf.numpy_function(encode, [tf.convert_to_tensor(s)], tf.int32)
        ids.set_shape([None])
        return ids

    def _decode_tf(self, ids: Any) -> Any:
        def decode(rows: np.ndarray) -> Any:
            if rows.ndim > 1:
                return np.asarray([decode(row) for row in rows], object)
            return self.tokenizer.decode(rows.tolist()).encode()

        text = tf.numpy_function(decode, [ids], tf.string)
        text.set_shape(ids.shape[:-1])
        return text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenizerVocabulary) and (
            self._name == other._name or self.tokenizer.sha256 == other.tokenizer.sha256
        )

    def __hash__(self) -> int:
        return hash(self.tokenizer.sha256)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "tokenizer"}


class RecordDataSource(seqio.DataSource):  # pyright: ignore
    """The records of one of our tasks, tokenised: id, source, targets and their weights.

    Shards and shuffles over single records, whatever the files. The source is opened when it is
    first read, so that tasks can be registered before their data are there.
    """

    def __init__(self, task: Task, weighted: bool) -> None:
        super().__init__(splits=(SPLIT,))
        self._task, self._weighted = task, weighted

    @functools.cached_property
    def records(self) -> Source:
        """Our source."""
        return open_source(self._task)

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True

    def num_input_examples(self, split: str) -> int:
        self._check(split)
        return len(self.records)

    def list_shards(self, split: str) -> list[str]:
        self._check(split)
        return [self._task.source]

    def _check(self, split: str) -> None:
        if split != SPLIT:
            raise UserError(
                f"the task {self._task.name!r} has no split {split!r}: it has only {SPLIT!r}."
            )

    def get_dataset(
        self,
        split: str = SPLIT,
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: Any = None,
        **unused: Any,  # what seqio passes to every source, and most have no use for
    ) -> Any:
        """The records of a shard as a dataset, in their order or in that of the seed."""
        self._check(split)
        index, count = (shard_info.index, shard_info.num_shards) if shard_info else (0, 1)
        order = np.arange(len(self.records))
        if shuffle:
            order = np.random.default_rng(None if seed is None else int(seed)).permutation(order)
        text, ids = tf.TensorSpec([], tf.string), tf.TensorSpec([None], tf.int32)
        signature = {"id": text, "source": text, "targets_pretokenized": text, "targets": ids}
        if self._weighted:
            signature["loss_weights"] = tf.TensorSpec([None], tf.float32)
        read = functools.partial(self._examples, order[index::count])
        return tf.data.Dataset.from_generator(read, output_signature=signature)

    def _examples(self, order: np.ndarray) -> Iterator[dict[str, Any]]:
        tokenizer = _padded_with_zero(self._task.tokenizer)
        for start in range(0, len(order), _CHUNK):
            indices = order[start : start + _CHUNK].tolist()
            records = self.records.read(indices)
            if isinstance(self.records, TokenSource):
                found = self.records.examples(indices)
            else:
                found = tokenise(self.records, records, indices, self._task, tokenizer)
            for record, example in zip(records, found, strict=True):
                made = {
                    "id": record.id.encode(),
                    "source": record.source.encode(),
                    "targets_pretokenized": record.text.encode(),
                    "targets": example.tokens,
                }
                if self._weighted:
                    made["loss_weights"] = _weights(self._task, example.tokens, example.loss)
                yield made


def _weights(task: Task, tokens: np.ndarray, loss: np.ndarray | None) -> np.ndarray:
    """Weights as rows have them: BOS, which nothing comes before, is never learnt."""
    weights = np.ones(len(tokens), np.float32) if loss is None else loss
    if task.adds_bos:
        weights = weights.copy()
        weights[0] = 0
    return weights


def _trim_weights(dataset: Any, sequence_length: Mapping[str, int] | None) -> Any:
    """seqio cuts ``targets`` to the length asked for; weights go with them."""
    length = (sequence_length or {}).get("targets")
    if length is None:
        return dataset
    return dataset.map(lambda ex: {**ex, "loss_weights": ex["loss_weights"][:length]})


@dataclass
class Registered:
    """What ``register_all`` did."""

    tasks: list[str] = field(default_factory=list)
    """Names in seqio's registry: ``mixture.task`` for a task of a mixture."""
    mixtures: list[str] = field(default_factory=list)
    """Names in seqio's registry, which are ours."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Mixtures that seqio cannot mix, and why."""


_KNOWN: dict[str, tuple[Any, ...]] = {}  # what we registered, by name


def register_all(
    folder: str | Path | None = "configs/mixtures",
    *,
    root: str | None = None,
    tokenizer: str | None = None,
) -> Registered:
    """Register the mixtures of a folder, and the tasks and mixtures registered in Python.

    A task of a mixture is registered as ``mixture.task``, since mixtures name their tasks alike;
    one that was registered in Python also under its own name. Rates by tokens become rates by
    examples (the rate divided by the task's mean tokens) when a dataset is made, for seqio draws
    examples; ``natural`` rates are the numbers of records. seqio knows neither ``stages``, so that
    a mixture with them is left out with a warning, nor ``max_epochs``. Calling it again does no
    harm.

    Args:
        folder: of mixture files; None for only what was registered in Python.
        root, tokenizer: as ``load_mixture_config`` takes them.

    Raises:
        UserError: for a mixture file that cannot be, and for a name that seqio does not take or
            that is taken by something else.
    """
    done = Registered()
    for task in registered_tasks():
        _register_task(task.name, task, task.loss == "responses", done)
    mixtures = list(registered_mixtures())
    if folder is not None:
        paths = sorted(Path(folder).glob("*.yaml"))
        if not paths:
            raise UserError(
                f"the folder {folder} holds no mixture file (*.yaml)",
                path=folder,
                advice="correct it",
            )
        mixtures += [load_mixture_config(path, root=root, tokenizer=tokenizer) for path in paths]
    for mixture in mixtures:
        if mixture.stages:
            why = "it has `stages`, and seqio mixes at the same rates from beginning to end"
            done.left_out[mixture.name] = why
            _LOG.warning("mixture %r is not registered with seqio: %s", mixture.name, why)
            continue
        _register_mixture(mixture, done)
    return done


def _is_new(registry: Any, name: str, content: tuple[Any, ...]) -> bool:
    if not _NAME.fullmatch(name):
        raise UserError(
            f"seqio does not take the name {name!r}",
            advice="use letters, digits and any of _ . : # only",
        )
    if name not in registry.names():
        _KNOWN[name] = content
        return True
    if _KNOWN.get(name) != content:
        raise UserError(f"something else is registered with seqio as {name!r}", advice="rename one")
    return False


def _register_task(name: str, task: Task, weighted: bool, done: Registered) -> None:
    done.tasks.append(name)
    if not _is_new(seqio.TaskRegistry, name, (task, weighted)):
        return
    vocabulary = TokenizerVocabulary(task.tokenizer)
    features = {"targets": seqio.Feature(vocabulary, add_eos=task.eos, dtype=tf.int32)}
    preprocessors: list[Callable[..., Any]] = [seqio.CacheDatasetPlaceholder()]
    if weighted:
        features["loss_weights"] = seqio.ContinuousFeature(dtype=tf.float32)
        preprocessors.append(_trim_weights)
    seqio.TaskRegistry.add(
        name,
        source=RecordDataSource(task, weighted),
        preprocessors=preprocessors,
        output_features=features,
        metric_fns=[],
    )


def _register_mixture(mixture: Mixture, done: Registered) -> None:
    # seqio mixes only tasks with the same features.
    weighted = any(task.loss == "responses" for task in mixture.tasks)
    rates: list[tuple[str, Callable[[Any], float]]] = []
    for task in mixture.tasks:
        rate = None if isinstance(mixture.rates, str) else float(mixture.rates[task.name])
        name = f"{mixture.name}.{task.name}"
        _register_task(name, task, weighted, done)
        if rate is None or rate > 0:
            rates.append((name, functools.partial(_rate, rate=rate, by=mixture.by)))
    done.mixtures.append(mixture.name)
    if _is_new(seqio.MixtureRegistry, mixture.name, (mixture,)):
        seqio.MixtureRegistry.add(mixture.name, rates)


def _rate(task: Any, *, rate: float | None, by: str) -> float:
    """Examples to draw of a seqio task, in the unit of its mixture's rates."""
    records = task.source.records
    if rate is None:  # natural: each record once
        return float(len(records))
    if by == "examples":
        return rate
    ours: Task = task.source._task
    lengths = index_lengths(records, load_tokenizer(ours.tokenizer), encode=ours.encode)
    tokens = lengths.tokens(extra_tokens(ours))
    return rate * len(records) / tokens
