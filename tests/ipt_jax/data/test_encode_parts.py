"""Texts encoded part by part: ends that are tokens, borders that no token spans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record, ShardWriter
from ipt_jax.core.tokenizer_export import enable_special_tokens
from ipt_jax.core.tokenizers import load_tokenizer
from ipt_jax.data.encode import index_lengths, read_examples
from ipt_jax.data.mixture import DataConfig, load_mixture
from ipt_jax.data.pipeline import open_mixture
from ipt_jax.data.sources import open_source
from ipt_jax.data.tasks import Task
from ipt_jax.data.token_run import TokenizeConfig, tokenize

PARTS = (
    *("<s>", " <CON> One text. </CON>\n\n", "<QUE> Why? <ANS> So. </END>", "</s>"),
    *("<s>", " <CON> A text that says </s> and <s>. </CON>\n\n", "<QUE> a <ANS> b </END>", "</s>"),
)
LOSS = (0.0, 0.0, 1.0, 1.0) * 2


@pytest.fixture(scope="module")
def mistral():
    pytest.importorskip("mistral_common", reason="carries the Mistral tokenizer")
    return load_tokenizer("mistral-7b-v0.1")


def write(folder: Path, parts: tuple[str, ...] | None = PARTS) -> Task:
    loss = None if parts is None else LOSS[: len(parts)]
    with ShardWriter(folder) as shards:
        shards.write(Record("a", "".join(parts or PARTS), "test", parts, loss))
    return Task("test", str(folder), loss="responses", encode="parts", bos=False, eos=False)


def test_ends_are_tokens_and_only_where_a_part_is_nothing_else(mistral):
    ids, owners = mistral.encode_parts(PARTS, LOSS)
    assert [ids[owners == part].tolist() for part in (0, 3, 4, 7)] == [[1], [2], [1], [2]]
    assert not {1, 2} & set(ids[owners == 5].tolist())  # a document that names them
    # The spelling of the published synthesizer's examples: a space between BOS and <CON>.
    assert mistral.decode(ids[owners == 1].tolist()).startswith(" <CON> One")
    # A text's pieces have the ids of the text: sentencepiece has no token over these borders.
    whole = mistral.encode("".join(PARTS[1:3]))
    assert ids[(owners == 1) | (owners == 2)].tolist() == whole


def test_the_exported_tokenizer_reads_a_prompt_as_it_was_trained(mistral, tmp_path):
    transformers = pytest.importorskip("transformers", reason="reads the exported folder")
    parts = (*PARTS[:4], *PARTS[:2])
    trained = mistral.encode_parts(parts, (*LOSS[:4], 0.0, 0.0))[0].tolist()
    mistral.save_pretrained(tmp_path)
    for allowed in (False, True):
        if allowed:
            enable_special_tokens(tmp_path)
        read = transformers.AutoTokenizer.from_pretrained(tmp_path)
        ids = read("".join(parts), add_special_tokens=False)["input_ids"]
        assert (ids == trained) is allowed
        assert (ids.count(1), ids.count(2)) == ((2, 1) if allowed else (0, 0))


def test_a_prompt_and_its_completion_never_share_a_token(smollm2):
    tokenizer = load_tokenizer(str(smollm2))
    prompt, completion = "".join(PARTS[:2]), PARTS[2]
    joint = tokenizer.encode(prompt + completion)
    assert joint[: len(tokenizer.encode(prompt))] != tokenizer.encode(prompt)
    ids, owners = tokenizer.encode_parts(PARTS, LOSS)
    assert ids[owners < 2].tolist() == tokenizer.encode(prompt)
    # From where a completion begins, everything is one text, as a few-shot prompt has it.
    second = tokenizer.encode("".join(PARTS[2:6]))
    assert ids[(owners >= 2) & (owners < 6)].tolist() == second
    assert ids[owners >= 6].tolist() == tokenizer.encode("".join(PARTS[6:]))
    # A token that spans two parts belongs to the one it begins in: `><` holds the end's last `>`.
    spelt = [tokenizer.decode([int(one)]) for one in ids[owners == 3]]
    assert spelt == ["s", "><"]
    assert tokenizer.decode(ids.tolist()) == "".join(PARTS)
    ends, owners = tokenizer.encode_parts(["<|im_start|>", "x", "<|im_end|>"], (0.0, 0.0, 0.0))
    assert ends[[0, -1]].tolist() == [tokenizer.bos_id, tokenizer.eos_id]
    assert owners.tolist() == [0, 1, 2]
    assert [len(one) for one in tokenizer.encode_parts([], [])] == [0, 0]


@pytest.mark.parametrize("encode", ["parts", "text"])
def test_every_character_with_loss_is_learnt(smollm2, tmp_path, encode):
    task = replace(write(tmp_path / "shards"), tokenizer=str(smollm2), encode=encode)
    tokenizer = load_tokenizer(str(smollm2))
    (example,) = read_examples(open_source(task), task, tokenizer, [0])
    assert example.loss is not None
    learnt = tokenizer.decode(example.tokens[example.loss > 0].tolist())
    # `><` is one token of the border, and an engine stops on the end that it completes.
    assert PARTS[2] + "</s><" in learnt and learnt.endswith("".join(PARTS[6:]))
    assert 0.0 in example.loss


def test_loss_lengths_and_token_shards_follow(mistral, tmp_path):
    task = write(tmp_path / "shards")
    source = open_source(task)
    (example,) = read_examples(source, task, mistral, [0])
    ids, owners = mistral.encode_parts(PARTS, LOSS)
    assert example.tokens.tolist() == ids.tolist()
    assert example.loss is not None
    assert example.loss.tolist() == [LOSS[part] for part in owners]
    assert 0 < sum(example.loss) < len(ids)
    plain = index_lengths(source, mistral).array.tolist()
    assert index_lengths(source, mistral, encode="parts").array.tolist() == [len(example.tokens)]
    assert plain == [len(mistral.encode("".join(PARTS)))] != [len(example.tokens)]
    (with_ends,) = read_examples(source, replace(task, bos=True, eos=True), mistral, [0])
    assert with_ends.tokens.tolist() == [1, *example.tokens.tolist(), 2]
    assert with_ends.loss is not None
    assert with_ends.loss.tolist() == [0.0, *example.loss.tolist(), 1.0]

    mixture = tmp_path / "mixture.yaml"
    how = {"source": "shards", "loss": "responses", "encode": "parts", "bos": False, "eos": False}
    mixture.write_text(yaml.safe_dump({"rates": "natural", "tasks": {"test": how}}))
    data = DataConfig(mixture=str(mixture), root=str(tmp_path))
    assert open_mixture(data).epoch_tokens == (len(example.tokens),)
    tokenize(TokenizeConfig(tmp_path / "tokens", data))
    ready = load_mixture(replace(data, mixture=str(tmp_path / "tokens" / "mixture.yaml")))
    assert ready.tasks[0].encode == "parts"
    (stored,) = read_examples(open_source(ready.tasks[0]), ready.tasks[0], mistral, [0])
    assert stored.tokens.tolist() == example.tokens.tolist()
    with pytest.raises(UserError, match=r"encode` is .text., but .* `encode: parts`"):
        open_source(replace(ready.tasks[0], encode="text"))


def test_a_record_without_parts_and_a_wrong_key_are_named(mistral, tmp_path):
    task = write(tmp_path / "shards", None)
    source = open_source(task)
    with pytest.raises(UserError, match=r"'a'\) has no `parts`.*`encode: parts`.*`encode: text`"):
        read_examples(source, task, mistral, [0])
