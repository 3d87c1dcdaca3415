"""Our tasks and mixtures through google/seqio: the same ids and weights, in any order of asking."""

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tokenizers import Tokenizer, models

seqio = pytest.importorskip("seqio", reason="seqio is an extra: pip install 'ipt-jax[seqio]'")
tf = pytest.importorskip("tensorflow", reason="TensorFlow comes with the extra seqio")
pytest.importorskip("mistral_common", reason="carries the Mistral tokenizer")

from ipt_jax.core.errors import UserError  # noqa: E402
from ipt_jax.core.records import Record, RecordSource, ShardWriter  # noqa: E402
from ipt_jax.core.tokenizers import load_tokenizer  # noqa: E402
from ipt_jax.data import seqio_registry  # noqa: E402
from ipt_jax.data.mixture import DataConfig, load_mixture_config  # noqa: E402
from ipt_jax.data.pipeline import MixtureRows, open_mixture  # noqa: E402
from ipt_jax.data.seqio_registry import TokenizerVocabulary, register_all  # noqa: E402
from ipt_jax.data.tasks import (  # noqa: E402
    Mixture,
    Task,
    register_mixture,
    register_task,
    unregister,
)
from ipt_jax.data.token_run import TokenizeConfig, tokenize  # noqa: E402

Example = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def clean():
    """seqio's registries are of the process."""
    yield
    seqio.TaskRegistry.reset()
    seqio.MixtureRegistry.reset()
    seqio_registry._KNOWN.clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, documents, write_shards):
    """Sources and, in ``mixtures``, files that mix them."""
    folder = tmp_path_factory.mktemp("seqio")
    write_shards(folder / "raw", documents[:80])
    write_shards(folder / "short", [text[:200] for text in documents[80:200]])
    with ShardWriter(folder / "talk") as writer:
        for number, text in enumerate([*documents[:30], "é" * 40]):
            parts = (text[:30], text[30:200], "")
            writer.write(Record(f"t/{number}", "".join(parts), "talk", parts, (0.0, 1.0, 0.5)))
    (folder / "mixtures").mkdir()
    plain = {"raw": {"source": "raw"}, "short": {"source": "short", "bos": False}}
    talk = {"raw": {"source": "raw"}, "talk": {"source": "talk", "loss": "responses"}}
    for name, content in {
        "plain": {"rates": {"raw": 3, "short": 1}, "tasks": plain},
        "natural": {"tasks": plain},
        "examples": {"by": "examples", "rates": {"raw": 1, "short": 3}, "tasks": plain},
        "tuned": {"rates": {"raw": 1, "talk": 1}, "tasks": talk},
        "staged": {
            "rates": {"raw": 1, "short": 1},
            "stages": [{"from_step": 5, "rates": {"raw": 0, "short": 1}}],
            "tasks": plain,
        },
    }.items():
        (folder / "mixtures" / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture
def registered(folder):
    """All of the folder's."""
    return register_all(folder / "mixtures", root=str(folder))


def examples(name: str, length: int | None = None, **options: Any) -> list[Example]:
    lengths = None if length is None else {"targets": length}
    options = {"split": "train", "shuffle": False, **options}
    data = seqio.get_mixture_or_task(name).get_dataset(lengths, **options)
    return list(data.as_numpy_iterator())


def trained_on(folder: Path, mixture: str, task: str) -> set[tuple[Any, ...]]:
    """Ids and weights of each example of a task, out of the rows that the trainer gets."""
    (ours,) = (
        t
        for t in load_mixture_config(
            folder / "mixtures" / f"{mixture}.yaml", root=str(folder)
        ).tasks
        if t.name == task
    )
    rows = MixtureRows(open_mixture(Mixture("m", (ours,))), row_tokens=1 << 18, seed=0)
    assert len(rows) == 1
    row, found = rows[0], set()
    for segment in range(1, int(row["segment_ids"].max()) + 1):
        (places,) = np.nonzero(row["segment_ids"] == segment)
        # A row's weights are of targets: a token's stands at the place before it.
        weights = [0.0, *row["loss_weights"][places][:-1].tolist()]
        found.add((tuple(row["tokens"][places].tolist()), tuple(weights)))
    return found


def test_ids_are_the_trainers(folder, registered):
    """Of all records, in their order; BOS and EOS as each task has them."""
    tokenizer = load_tokenizer("mistral-7b-v0.1")
    for task, bos in (("raw", True), ("short", False)):
        source = RecordSource(folder / task)
        records = source.read(range(len(source)))
        found = examples(f"plain.{task}")
        expected = tokenizer.encode_batch([r.text for r in records], bos=bos, eos=True)
        assert [example["targets"].tolist() for example in found] == expected
        assert [e["id"].decode() for e in found] == [r.id for r in records]
        assert [e["targets_pretokenized"].decode() for e in found] == [r.text for r in records]
        assert {ids for ids, _ in trained_on(folder, "plain", task)} == set(map(tuple, expected))
    assert seqio.TaskRegistry.get("plain.raw").num_input_examples("train") == 80


def test_loss_weights_are_the_trainers(folder, registered):
    """Also of a task without them that is mixed with one that has them."""
    for task in ("talk", "raw"):
        found = {
            (tuple(e["targets"].tolist()), tuple(e["loss_weights"].tolist()))
            for e in examples(f"tuned.{task}")
        }
        assert found == trained_on(folder, "tuned", task)
    (cut, *_) = examples("tuned.talk", length=12)
    (whole, *_) = examples("tuned.talk")
    assert len(cut["targets"]) == 12
    np.testing.assert_array_equal(cut["loss_weights"], whole["loss_weights"][:12])
    assert "loss_weights" not in examples("plain.raw", length=4)[0]


def test_token_shards_give_the_same(folder, tmp_path):
    config = DataConfig(str(folder / "mixtures" / "tuned.yaml"), root=str(folder))
    tokenize(TokenizeConfig(tmp_path / "tokens", config))
    (tmp_path / "mixtures").mkdir()
    made = yaml.safe_load((tmp_path / "tokens" / "mixture.yaml").read_text())
    (tmp_path / "mixtures" / "m.yaml").write_text(yaml.safe_dump({**made, "name": "beforehand"}))
    register_all(tmp_path / "mixtures")
    register_all(folder / "mixtures", root=str(folder))
    for task in ("raw", "talk"):
        pairs = zip(examples(f"tuned.{task}"), examples(f"beforehand.{task}"), strict=True)
        for one, other in pairs:
            for key in ("id", "targets", "loss_weights"):
                np.testing.assert_array_equal(one[key], other[key])


def test_shards_and_shuffles(registered):
    everything = [e["id"] for e in examples("plain.short")]
    parts = [
        [e["id"] for e in examples("plain.short", shard_info=seqio.ShardInfo(i, 3))]
        for i in range(3)
    ]
    assert [e for group in itertools.zip_longest(*parts) for e in group if e] == everything
    shuffled = [[e["id"] for e in examples("plain.short", shuffle=True, seed=s)] for s in (1, 1, 2)]
    assert shuffled[0] == shuffled[1] != shuffled[2]
    assert sorted(shuffled[0]) == sorted(shuffled[2]) == sorted(everything) != shuffled[0]
    # seqio shuffles again, in a buffer: the source's own order is what mixes a large one.
    source = seqio.TaskRegistry.get("plain.short").source
    own = [
        [e["id"] for e in source.get_dataset(seed=seed).as_numpy_iterator()] for seed in (1, 1, 2)
    ]
    assert own[0] == own[1] != own[2]
    assert sorted(own[0]) == sorted(own[2]) == sorted(everything) not in own
    for ask in (source.get_dataset, source.num_input_examples, source.list_shards):
        with pytest.raises(UserError, match=r"'short' has no split 'validation': .* only 'train'"):
            ask("validation")


@pytest.mark.parametrize(
    ("name", "unit", "share"),
    [("plain", "tokens", 0.75), ("examples", "examples", 0.25), ("natural", "examples", 0.4)],
)
def test_rates_of_a_mixture(registered, name, unit, share):
    mixture = seqio.MixtureRegistry.get(name)
    data = mixture.get_dataset({"targets": 1 << 20}, split="train", shuffle=False, seed=0)
    bos = load_tokenizer("mistral-7b-v0.1").bos_id
    counts = {"raw": 0, "short": 0}
    for example in data.take(4000).as_numpy_iterator():
        task = "raw" if example["targets"][0] == bos else "short"
        counts[task] += len(example["targets"]) if unit == "tokens" else 1
    assert counts["raw"] / sum(counts.values()) == pytest.approx(share, abs=0.04)


def test_a_task_of_rate_0_is_not_even_opened(folder, tmp_path):
    tasks = {"raw": {"source": "raw"}, "gone": {"source": "is-not-there"}}
    content = {"rates": {"raw": 1, "gone": 0}, "tasks": tasks}
    (tmp_path / "paused.yaml").write_text(yaml.safe_dump(content))
    register_all(tmp_path, root=str(folder))
    assert [task.name for task in seqio.MixtureRegistry.get("paused").tasks] == ["paused.raw"]
    assert len(examples("paused", length=8, num_epochs=1)) == 80


def test_a_feature_converter_takes_them(registered):
    """As T5X makes batches for a decoder: packed, with its own names."""
    data = seqio.get_dataset(
        "plain",
        {"targets": 256},
        dataset_split="train",
        shuffle=False,
        feature_converter=seqio.LMFeatureConverter(pack=True),
        num_epochs=1,
    )
    row = next(iter(data.as_numpy_iterator()))
    assert row["decoder_target_tokens"].shape == (256,)
    assert row["decoder_segment_ids"].max() >= 1


def test_the_vocabulary():
    vocabulary, tokenizer = (
        TokenizerVocabulary("mistral-7b-v0.1"),
        load_tokenizer("mistral-7b-v0.1"),
    )
    texts = ["Hello  world\n", "", "né 漢字 🙂 </s>"]
    for text in texts:
        ids = tokenizer.encode(text)
        assert (
            vocabulary.encode(text)
            == ids
            == vocabulary.encode_tf(tf.constant(text)).numpy().tolist()
        )
        assert vocabulary.decode(ids) == tokenizer.decode(ids)
        assert vocabulary.decode_tf(
            tf.constant(ids, tf.int32)
        ).numpy().decode() == tokenizer.decode(ids)
        assert vocabulary.encode_tf(text).numpy().tolist() == ids  # no tensor yet
    rows = tf.constant([tokenizer.encode("one two")[:2]] * 2)
    assert vocabulary.decode_tf(rows).numpy().tolist() == [b"one two"] * 2
    assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.vocab_size) == (1, 2, 32000)
    assert pickle.loads(pickle.dumps(vocabulary)) == vocabulary
    assert vocabulary != seqio.PassThroughVocabulary(32000)


def test_text_with_the_id_of_padding_is_refused(folder, tmp_path):
    """As Llama 3's and GPT-2's `!`."""
    fast = Tokenizer(models.BPE({"!": 0, "a": 1, "</s>": 2}, []))
    fast.add_special_tokens(["</s>"])
    fast.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    message = r"writes '!' as id 0, and seqio pads with 0"
    with pytest.raises(UserError, match=message):
        TokenizerVocabulary(str(tmp_path)).encode("a!")
    register_all(folder / "mixtures", root=str(folder), tokenizer=str(tmp_path))
    with pytest.raises(Exception, match=message):
        examples("plain.short")


def test_what_is_registered(folder, registered):
    assert registered.mixtures == ["examples", "natural", "plain", "tuned"]
    assert set(registered.tasks) == {
        *(
            f"{mixture}.{task}"
            for mixture in ("examples", "natural", "plain")
            for task in ("raw", "short")
        ),
        *("tuned.raw", "tuned.talk"),
    }
    assert list(registered.left_out) == ["staged"]
    assert "stages" in registered.left_out["staged"]
    assert register_all(folder / "mixtures", root=str(folder)) == registered  # again does no harm
    with pytest.raises(UserError, match=r"registered with seqio as 'examples\.raw': rename"):
        register_all(folder / "mixtures", root="elsewhere")
    with pytest.raises(UserError, match=r"holds no mixture file"):
        register_all(folder)


def test_what_was_registered_in_python(folder):
    try:
        register_task(Task("spoken", str(folder / "talk"), loss="responses"))
        register_task(Task("written", str(folder / "raw"), eos=False))
        register_mixture("both", {"spoken": 1, "written": 2})
        done = register_all(None)
        assert done.tasks == ["spoken", "written", "both.spoken", "both.written"]
        assert done.mixtures == ["both"]
        assert len(examples("spoken")) == 31
        for name, eos in (("spoken", True), ("written", False)):
            task = seqio.TaskRegistry.get(name)
            # What seqio's own preprocessors go by, and what the ids are.
            assert task.output_features["targets"].add_eos is eos
            last = {int(example["targets"][-1]) for example in examples(name)}
            assert (last == {load_tokenizer("mistral-7b-v0.1").eos_id}) is eos
            assert set(task.output_features) == {"targets"} | ({"loss_weights"} if eos else set())
        assert "loss_weights" in examples("both", length=8, num_epochs=1)[0]
        register_task(Task("with-a-dash", "x"))
        with pytest.raises(UserError, match=r"does not take the name 'with-a-dash'"):
            register_all(None)
    finally:
        for name in ("spoken", "written", "both", "with-a-dash"):
            unregister(name)


def test_the_papers_mixtures_register_without_their_data():
    configs = Path(__file__).parents[3] / "configs" / "mixtures"
    done = register_all(configs)
    assert {*done.mixtures, *done.left_out} == {path.stem for path in configs.glob("*.yaml")}
    with pytest.raises(UserError, match=r"manifest\.json"):
        seqio.get_mixture_or_task("ipt_mix").get_dataset({"targets": 8}, split="train")
