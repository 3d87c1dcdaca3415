"""Tokenizers: ids equal to the reference, and exported folders that give the same ids."""

import gzip
import importlib.util
import json
import pickle
import sysconfig
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import models, pre_tokenizers

from ipt_jax.core.errors import UserError
from ipt_jax.core.tokenizers import FastTokenizer, TiktokenTokenizer, Tokenizer, load_tokenizer

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def mistral() -> Tokenizer:
    pytest.importorskip("mistral_common", reason="carries the Mistral tokenizer")
    return load_tokenizer("mistral-7b-v0.1")


@pytest.fixture(scope="module")
def reference() -> sentencepiece.SentencePieceProcessor:
    spec = importlib.util.find_spec("mistral_common")
    assert spec is not None and spec.submodule_search_locations
    file = Path(spec.submodule_search_locations[0]) / "data" / "tokenizer.model.v1"
    return sentencepiece.SentencePieceProcessor(model_file=str(file))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Prose, LaTeX where the shared data is there, and always Python code and hard strings."""
    bundled = REPOSITORY / "data_gen" / "sample_corpus" / "documents.jsonl"
    found = [json.loads(line)["text"] for line in bundled.read_text().splitlines()]
    arxiv = REPOSITORY.parent / "shared" / "data" / "corpus_arxiv_sample" / "arxiv.jsonl.gz"
    if arxiv.exists():
        lines = gzip.decompress(arxiv.read_bytes()).splitlines()
        found += [json.loads(line)["text"][:50_000] for line in lines]
    code = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:60]
    found += [path.read_text(errors="replace") for path in code]
    found += ["", " ", "  a", "a  ", "\n\n", "<s>[INST] </s> <unk>", "漢字 🙂\u200d né\x00\t\r\n"]
    found += [f"x{' ' * length}y" for length in range(80)]
    assert len(found) >= 200
    return found


def test_ids_are_those_of_sentencepiece(
    mistral: Tokenizer, reference: sentencepiece.SentencePieceProcessor, texts: list[str]
) -> None:
    expected = [reference.encode(text) for text in texts]
    assert mistral.encode_batch(texts) == expected
    assert [mistral.encode(text) for text in texts[:20]] == expected[:20]
    assert mistral.encode("a b", bos=True, eos=True) == [1, *reference.encode("a b"), 2]
    assert (mistral.vocab_size, mistral.bos_id, mistral.eos_id) == (32_000, 1, 2)


def test_text_comes_back(mistral: Tokenizer, texts: list[str]) -> None:
    # U+2581 is the model's own sign for a space and comes back as one.
    plain = [text for text in texts if "\u2581" not in text]
    assert [mistral.decode(ids) for ids in mistral.encode_batch(plain, bos=True, eos=True)] == plain


def test_auto_tokenizer_gives_our_ids(mistral: Tokenizer, texts: list[str], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="an extra")
    mistral.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}')
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert auto(texts)["input_ids"] == mistral.encode_batch(texts, bos=True)
    assert auto(texts, add_special_tokens=False)["input_ids"] == mistral.encode_batch(texts)
    assert (auto.bos_token_id, auto.eos_token_id, len(auto)) == (1, 2, 32_000)
    ids = mistral.encode("def f():\n    return  1", bos=True, eos=True)
    assert auto.decode(ids, skip_special_tokens=True) == "def f():\n    return  1"


@pytest.fixture(scope="module")
def exported(mistral: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceTokenizer:
    folder = tmp_path_factory.mktemp("exported")
    mistral.save_pretrained(folder)
    fast = HuggingFaceTokenizer.from_file(str(folder / "tokenizer.json"))
    fast.encode_special_tokens = True
    return fast


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from(" \n\ta=-_.0e漢é<s>/"), max_size=80) | st.text(max_size=40))
def test_the_export_is_exact_on_strings_made_to_break_it(
    mistral: Tokenizer, exported: HuggingFaceTokenizer, text: str
) -> None:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        return
    assert exported.encode(text, add_special_tokens=False).ids == mistral.encode(text)


def test_an_exported_folder_loads_as_the_same_tokenizer(mistral: Tokenizer, tmp_path: Path) -> None:
    mistral.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert isinstance(again, FastTokenizer)  # tokenizer.json decides, as in transformers
    assert (again.bos_token, again.eos_id) == (mistral.bos_token, mistral.eos_id)
    assert again.encode("a  b", bos=True) == mistral.encode("a  b", bos=True)
    assert pickle.loads(pickle.dumps(again)).encode("x") == mistral.encode("x")


def test_ends_are_where_tokens_end(mistral: Tokenizer, texts: list[str]) -> None:
    for text in ["Question: why?\nAnswer: né 漢字 🙂.", *texts[:5]]:
        ends, ids = mistral.ends(text), mistral.encode(text)
        assert len(ends) == len(ids) and ends[-1] == len(text)
        assert (np.diff(ends) >= 0).all()
        half = len(ids) // 2
        assert text.startswith(mistral.decode(ids[:half]).rstrip("\ufffd"))


def _tiny_llama(folder: Path) -> Tokenizer:
    """A tiktoken file of all bytes and a few merges, in Llama 3's form."""
    import base64

    tokens = [bytes([b]) for b in range(256)]
    tokens += [b"th", b"he", b"the", b" t", b" the", b"in", b"ing", b"  ", b"    ", b"\xc3\xa9"]
    lines = [f"{base64.b64encode(token).decode()} {i}" for i, token in enumerate(tokens)]
    (folder / "tokenizer.model").write_text("\n".join(lines))
    return load_tokenizer(str(folder))


def _check_llama(tokenizer: Tokenizer, texts: list[str], folder: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="an extra")
    tokenizer.save_pretrained(folder)
    auto = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode_batch(texts, bos=True)
    assert auto(texts)["input_ids"] == ids
    assert [tokenizer.decode(i) for i in ids] == texts
    for text in texts[:20]:
        ends = tokenizer.ends(text)
        assert len(ends) == len(tokenizer.encode(text))
        assert not text or ends[-1] == len(text)


def test_tiktoken_form_and_its_export(texts: list[str], tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    tokenizer = _tiny_llama(tmp_path / "from")
    assert isinstance(tokenizer, TiktokenTokenizer)
    assert tokenizer.encode(" the", bos=True, eos=True) == [266, 260, 267]
    _check_llama(tokenizer, [text[:2000] for text in texts], tmp_path / "to")
    long = "x" * 60_001 + " " * 30_000
    assert tokenizer.decode(tokenizer.encode(long)) == long


def test_llama3(texts: list[str], tmp_path: Path) -> None:
    if importlib.util.find_spec("llama_models") is None:
        pytest.skip("the package llama-models, which carries Llama 3's tokenizer, is not installed")
    tokenizer = load_tokenizer("llama3")
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (128_256, 128_000, 128_001)
    _check_llama(tokenizer, texts, tmp_path)


def test_a_hugging_face_folder(tmp_path: Path) -> None:
    words = {"<|end|>": 0, "hello": 1, "world": 2, "[UNK]": 3, "<": 4, "|": 5, "end": 6, ">": 7}
    fast = HuggingFaceTokenizer(models.WordLevel(words, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.add_special_tokens(["<|end|>"])
    fast.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|end|>"}}')
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.encode("hello world", eos=True) == [1, 2, 0]
    assert 0 not in tokenizer.encode("hello <|end|>"), "text must not become a control token"
    assert tokenizer.ends("hello world").tolist() == [5, 11]
    with pytest.raises(UserError, match=r"has no BOS token"):
        tokenizer.encode("hello", bos=True)
    tokenizer.save_pretrained(tmp_path / "copy")
    assert load_tokenizer(str(tmp_path / "copy")).sha256 == tokenizer.sha256


@pytest.mark.parametrize("kind", ["sentencepiece", "tiktoken", "sequence", "bert"])
def test_without_bos_the_export_puts_none_before_a_text(tmp_path: Path, kind: str) -> None:
    (tmp_path / "from").mkdir()
    if kind == "sentencepiece":
        tokenizer = load_tokenizer("mistral-7b-v0.1")
    else:
        tokenizer = _tiny_llama(tmp_path / "from")
    if kind in ("sequence", "bert"):  # as Llama 3's own tokenizer.json has it, and one to refuse
        tokenizer.save_pretrained(tmp_path / "fast")
        path = tmp_path / "fast" / "tokenizer.json"
        content = json.loads(path.read_text())
        byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
        steps = [byte_level | {"use_regex": True}, content["post_processor"]]
        content["post_processor"] = {"type": "Sequence", "processors": steps}
        if kind == "bert":
            ends = {"sep": ["<|end_of_text|>", 267], "cls": ["<|begin_of_text|>", 266]}
            content["post_processor"] = {"type": "BertProcessing"} | ends
        path.write_text(json.dumps(content))
        tokenizer = load_tokenizer(str(tmp_path / "fast"))
    assert tokenizer.adds_bos
    bare = tokenizer.without_bos()
    if kind == "bert":
        with pytest.raises(UserError, match="puts <|begin_of_text|> before a text by other means"):
            bare.save_pretrained(tmp_path / "to")
        return
    bare.save_pretrained(tmp_path / "to")
    trained = tokenizer.encode("the king", bos=False)
    fast = HuggingFaceTokenizer.from_file(str(tmp_path / "to" / "tokenizer.json"))
    assert fast.encode("the king").ids == trained
    again = load_tokenizer(str(tmp_path / "to"))
    assert not again.adds_bos and again.bos_id == tokenizer.bos_id
    assert tokenizer.adds_bos  # which others hold too
    transformers = pytest.importorskip("transformers", reason="an extra")
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "to")
    assert auto("the king")["input_ids"] == trained


def test_what_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mistral-8b.*mistral-7b-v0.1"):
        load_tokenizer("mistral-8b")
    with pytest.raises(UserError, match=f"{tmp_path.name}.*tokenizer.json"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.model").write_bytes(b"\nnonsense")
    with pytest.raises(UserError, match=r"tokenizer.model.*sentencepiece"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.model").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"tokenizer.model.*tiktoken"):
        load_tokenizer(str(tmp_path))
