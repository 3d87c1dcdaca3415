"""Text to ids and back: Mistral's, Llama 3's or any Hugging Face tokenizer folder.

One policy for all: text never becomes a control token. A document that says ``</s>`` gets the ids
of those four characters; BOS and EOS come only from the arguments ``bos`` and ``eos``. This module
imports neither jax nor torch nor transformers.
"""

import base64
import binascii
import functools
import hashlib
import importlib.util
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tiktoken
import tokenizers

from ipt_jax.core.errors import UserError
from ipt_jax.core.json_lines import read_object
from ipt_jax.core.tokenizer_export import leave_out_bos, write_sentencepiece, write_tiktoken

_HF_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "vocab.json",
    "merges.txt",
)


_COPY = "copy the tokenizer again"


def _threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


class Tokenizer(ABC):
    """Common form of all tokenizers; picklable by the name it was loaded with."""

    name: str
    """What ``load_tokenizer`` was given."""
    sha256: str
    """Of the vocabulary file: what checkpoints and length indexes name."""
    vocab_size: int
    """V: ids are 0..V-1."""
    bos_id: int | None
    eos_id: int | None
    bos_token: str | None
    """How BOS is written where a text may name it (``<s>``)."""
    eos_token: str | None
    special_tokens: dict[str, int]
    """Ids of those that are no text, such as the ends of a chat's turns, BOS and EOS where they are
    told of with them."""
    adds_bos: bool = True
    """Whether ``transformers`` puts BOS before a text with this tokenizer, as its publisher's
    models were trained. What is trained, exported and verified follows it (``Task.bos``)."""

    @abstractmethod
    def _ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Int32 ids of each text, without BOS and EOS."""

    @abstractmethod
    def ends(self, text: str) -> np.ndarray:
        """Int64 character at which each id of ``text`` (without BOS and EOS) ends."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; BOS, EOS and other control ids give nothing."""

    @abstractmethod
    def _save(self, folder: Path) -> None:
        """Write what ``transformers.AutoTokenizer`` reads."""

    @functools.cached_property
    def control_tokens(self) -> Mapping[str, int]:
        """Ids of all tokens that are no text, by how a part of a text names them."""
        ends = {self.bos_token: self.bos_id, self.eos_token: self.eos_id}
        found = {token: number for token, number in ends.items() if token and number is not None}
        return {**self.special_tokens, **found}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what ``transformers.AutoTokenizer`` needs to give the same ids, and BOS before them
        where ``adds_bos``. Raises UserError where this tokenizer has no exact fast form."""
        self._save(Path(folder))
        if not self.adds_bos and self.bos_token is not None:
            leave_out_bos(Path(folder), self.bos_token)

    def without_bos(self) -> "Tokenizer":
        """The same one as a model needs it whose texts had no BOS before them."""
        found = object.__new__(type(self))  # copies and pickles are the one that was loaded
        vars(found).update(vars(self), adds_bos=False)
        return found

    def encode_arrays(
        self, texts: Sequence[str], bos: bool = False, eos: bool = False
    ) -> list[np.ndarray]:
        """Int32 ids of each text, in parallel: the fast way.

        Raises UserError where BOS or EOS is asked of a tokenizer that has none.
        """
        head = [self._special("BOS", self.bos_id)] if bos else []
        tail = [self._special("EOS", self.eos_id)] if eos else []
        arrays = self._ids(texts) if texts else []
        if not head and not tail:
            return arrays
        first, last = np.asarray(head, np.int32), np.asarray(tail, np.int32)
        return [np.concatenate([first, ids, last]) for ids in arrays]

    def encode_parts(
        self, parts: Sequence[str], loss: Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Int32 ids of a text of parts as a model meets them, and the part that each id begins in.

        A part that is exactly one of `control_tokens` becomes that token; elsewhere those
        characters stay text. Where parts with loss follow parts without, a completion begins behind
        its prompt: no id spans that border, for the prompt alone has none that does. All else is
        encoded as one text, as engines encode a prompt: an id that spans the border where loss ends
        belongs to the part with loss, whose last characters it writes.
        """
        control = self.control_tokens
        ids: list[np.ndarray] = []
        owners: list[np.ndarray] = []
        before: list[int] = []  # ids of the prompt that a stretch completes, and its text
        prompt = ""
        for places in _stretches(parts, loss, control):
            text = "".join(parts[place] for place in places)
            if text in control and len(places) == 1:
                ids.append(np.asarray([control[text]], np.int32))
                owners.append(np.asarray(places, np.int64))
                before, prompt = [], ""
                continue
            found, ends = self._ids([text])[0], self.ends(text)
            joint = self._ids([prompt + text])[0] if prompt else found
            if prompt and np.array_equal(joint[: len(before)], before):
                found = joint[len(before) :]
                ends = self.ends(prompt + text)[len(before) :] - len(prompt)
            borders = np.cumsum([len(parts[place]) for place in places])
            owner = np.searchsorted(borders, begins(ends), side="right")
            ids.append(found)
            owners.append(np.asarray(places, np.int64)[np.minimum(owner, len(places) - 1)])
            before, prompt = found.tolist(), text
        empty = np.empty(0, np.int64)
        return np.concatenate([empty[:0].astype(np.int32), *ids]), np.concatenate([empty, *owners])

    def encode_batch(
        self, texts: Sequence[str], bos: bool = False, eos: bool = False
    ) -> list[list[int]]:
        """As ``encode_arrays``, as lists."""
        return [ids.tolist() for ids in self.encode_arrays(texts, bos, eos)]

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """Ids of one text."""
        return self.encode_arrays([text], bos, eos)[0].tolist()

    def _special(self, what: str, token: int | None) -> int:
        if token is None:
            raise UserError(
                f"the tokenizer {self.name!r} has no {what} token",
                advice=(
                    f"set `{what.lower()}_token` in its tokenizer_config.json, or `{what.lower()}: "
                    "false` in the task"
                ),
            )
        return token

    def prints(self) -> dict[str, Any]:
        """What decides over the ids of a text, by name; not where the tokenizer lies."""
        keys = ("sha256", "vocab_size", "bos_id", "eos_id", "bos_token", "eos_token", "adds_bos")
        return {key: getattr(self, key) for key in keys}

    def __reduce__(self) -> tuple[Any, ...]:
        return load_tokenizer, (self.name,)


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece BPE model (Mistral, Llama 2): ids are the library's own."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self._path = name, path
        data = _read(path)
        self.sha256 = hashlib.sha256(data).hexdigest()
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=data)
        except RuntimeError as error:
            raise UserError(
                f"{path} is not a sentencepiece model ({error})",
                path=path,
                advice=_COPY,
            ) from error
        self.vocab_size = self._model.vocab_size()
        bos, eos = self._model.bos_id(), self._model.eos_id()
        self.bos_id, self.eos_id = (None if i < 0 else i for i in (bos, eos))
        self.bos_token, self.eos_token = (
            None if i < 0 else self._model.id_to_piece(i) for i in (bos, eos)
        )
        self.special_tokens = {}

    def _ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        # Arrays are 1.5 times faster than lists: the ids need not become Python objects.
        threads = min(_threads(), len(texts))
        arrays = self._model.encode(list(texts), return_type="numpy", num_threads=threads)
        return [np.asarray(ids, np.int32) for ids in arrays]

    def ends(self, text: str) -> np.ndarray:
        found: Any = self._model.encode(text, return_type="offset_mapping")
        return np.asarray([end for _, end in found["offsets"]], np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode([int(i) for i in ids])

    def _save(self, folder: Path) -> None:
        write_sentencepiece(self._path, self._model, folder)


class TiktokenTokenizer(Tokenizer):
    """Llama 3's byte-level BPE in tiktoken form."""

    _PATTERN = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    _RESERVED = 256
    _NAMES = (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|reserved_special_token_0|>",
        "<|reserved_special_token_1|>",
        "<|finetune_right_pad_id|>",
        "<|step_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
        "<|image|>",
    )
    # Llama 3's reference cuts runs of this many characters that are all space or all not, because
    # the library's time grows with the square of a run's length.
    _LONGEST_RUN = re.compile(r"\s{25000}(?=\s)|\S{25000}(?=\S)")
    _LONGEST_PIECE = 400_000

    def __init__(self, name: str, path: Path) -> None:
        self.name, self._path = name, path
        data = _read(path)
        self.sha256 = hashlib.sha256(data).hexdigest()
        try:
            lines = (line.split() for line in data.splitlines() if line)
            self._ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
        except (ValueError, binascii.Error) as error:
            raise UserError(
                f"{path} is not a tiktoken file ({error})",
                path=path,
                advice=_COPY,
            ) from error
        reserved = range(self._RESERVED - len(self._NAMES) + 2)
        names = [*self._NAMES, *(f"<|reserved_special_token_{i}|>" for i in reserved[2:])]
        base = len(self._ranks)
        self.special_tokens = {token: base + i for i, token in enumerate(names)}
        self._encoding = tiktoken.Encoding(
            "llama3",
            pat_str=self._PATTERN,
            mergeable_ranks=self._ranks,
            special_tokens=self.special_tokens,
        )
        self.vocab_size = base + self._RESERVED
        self.bos_id, self.eos_id = base, base + 1
        self.bos_token, self.eos_token = names[:2]

    def _pieces(self, text: str) -> Iterator[str]:
        for start in range(0, len(text), self._LONGEST_PIECE):
            block, last = text[start : start + self._LONGEST_PIECE], 0
            for run in self._LONGEST_RUN.finditer(block):
                yield block[last : run.end()]
                last = run.end()
            if last < len(block):
                yield block[last:]

    def _ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        pieces = [list(self._pieces(text)) for text in texts]
        flat = [piece for group in pieces for piece in group]
        ids = iter(self._encoding.encode_ordinary_batch(flat, num_threads=_threads()))
        return [np.asarray([i for _ in group for i in next(ids)], np.int32) for group in pieces]

    def ends(self, text: str) -> np.ndarray:
        ids = self._ids([text])[0].tolist()
        # A token's bytes end where the next character's begin, or inside the character they share.
        pieces = self._encoding.decode_tokens_bytes(ids)
        ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        starts = np.frombuffer(text.encode(), np.uint8) & 0xC0 != 0x80
        return np.cumsum(starts)[ends - 1]

    def decode(self, ids: Sequence[int]) -> str:
        return self._encoding.decode([int(i) for i in ids if i < len(self._ranks)])

    def _save(self, folder: Path) -> None:
        write_tiktoken(self._ranks, self.special_tokens, self._PATTERN, folder)


class FastTokenizer(Tokenizer):
    """Any Hugging Face folder with a tokenizer.json."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self._folder = name, folder
        data = _read(folder / "tokenizer.json")
        self.sha256 = hashlib.sha256(data).hexdigest()
        try:
            self._fast = tokenizers.Tokenizer.from_str(data.decode())
        except Exception as error:  # the library raises bare Exception
            raise UserError(
                f"{folder / 'tokenizer.json'} is not a tokenizer ({error})",
                path=folder / "tokenizer.json",
                advice="copy it again",
            ) from error
        self._fast.encode_special_tokens = True
        self._fast.no_padding()
        self._fast.no_truncation()
        added = self._fast.get_added_tokens_decoder().items()
        self.special_tokens = {token.content: number for number, token in added if token.special}
        self.vocab_size = self._fast.get_vocab_size(with_added_tokens=True)
        settings = _settings(folder)
        self.bos_token, self.eos_token = (_content(settings, key) for key in ("bos", "eos"))
        self.bos_id, self.eos_id = (
            None if token is None else self._fast.token_to_id(token)
            for token in (self.bos_token, self.eos_token)
        )
        # By what the folder's post-processor does, not by `add_bos_token`, which not all classes
        # of transformers follow.
        self.adds_bos = self.bos_id in self._fast.encode("a").ids[:1]

    def _ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        batch = self._fast.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, np.int32) for encoding in batch]

    def ends(self, text: str) -> np.ndarray:
        offsets = self._fast.encode(text, add_special_tokens=False).offsets
        return np.asarray([end for _, end in offsets], np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        return self._fast.decode([int(i) for i in ids], skip_special_tokens=True)

    def _save(self, folder: Path) -> None:
        """Copies the folder's own files: special tokens written in a text keep its meaning."""
        for path in (path for name in _HF_FILES for path in self._folder.glob(name)):
            target = folder / path.relative_to(self._folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def begins(ends: np.ndarray) -> np.ndarray:
    """The character at which each id begins, of where they end; ids of one character share it."""
    before = np.concatenate([ends[:1] * 0, ends[:-1]])
    return np.minimum(before, np.maximum(ends - 1, 0))


def _stretches(
    parts: Sequence[str], loss: Sequence[float], control: Mapping[str, int]
) -> Iterator[list[int]]:
    """Places of parts that are encoded together: up to a control token or where loss begins."""
    places: list[int] = []
    for place, part in enumerate(parts):
        begins = place > 0 and loss[place] > 0 and not loss[place - 1] > 0
        if places and (part in control or begins or parts[places[-1]] in control):
            yield places
            places = []
        places.append(place)
    if places:
        yield places


def _settings(folder: Path) -> dict[str, Any]:
    """What the files beside a vocabulary say of it."""
    settings: dict[str, Any] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        settings |= {k: v for k, v in read_object(folder / file, _COPY).items() if v is not None}
    return settings


def _content(settings: dict[str, Any], key: str) -> str | None:
    token = settings.get(f"{key}_token")
    return token.get("content") if isinstance(token, dict) else token


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"the tokenizer file {path} cannot be read ({error.strerror})",
            path=path,
            advice="name a folder that holds tokenizer.model or tokenizer.json",
        ) from error


def _package_file(package: str, file: str, name: str, install: str) -> Path:
    """A file inside an installed package, which is not imported: that is slow or needs more."""
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(place) / file).is_file():
            return path
    raise UserError(
        f"the tokenizer {name!r} lies in the package {install}, which is not installed",
        advice=f"`pip install {install}`, or name a folder that holds the tokenizer",
    )


# Name -> package, file in it, what to install. The files are the publishers' own.
_NAMED = {
    "mistral-7b-v0.1": ("mistral_common", "data/tokenizer.model.v1", "mistral-common"),
    "llama3": ("llama_models", "llama3/tokenizer.model", "llama-models"),
}


@functools.lru_cache(maxsize=8)
def load_tokenizer(name_or_folder: str) -> Tokenizer:
    """The tokenizer of that name (``mistral-7b-v0.1``, ``llama3``) or in that folder.

    A folder holds tokenizer.json or tokenizer.model (sentencepiece or tiktoken); where it holds
    both, tokenizer.json decides, as in transformers: it has the added tokens. Raises UserError
    naming the folder or package that is missing, or a file beside tokenizer.model that tells of
    tokens which that does not have.
    """
    if name_or_folder in _NAMED:
        package, file, install = _NAMED[name_or_folder]
        path = _package_file(package, file, name_or_folder, install)
    else:
        folder = Path(name_or_folder)
        if not folder.is_dir():
            raise UserError(
                f"there is no tokenizer {name_or_folder!r}: it is neither a folder nor one of "
                f"{', '.join(_NAMED)}.",
                path=name_or_folder,
            )
        if (folder / "tokenizer.json").is_file():
            return FastTokenizer(name_or_folder, folder)
        path = folder / "tokenizer.model"
        if not path.is_file():
            raise UserError(
                f"the folder {folder} holds neither tokenizer.model nor tokenizer.json",
                path=folder,
                advice="name the folder the model was saved in",
            )
    with open(path, "rb") as file_:
        is_sentencepiece = file_.read(1) == b"\n"  # field 1 of its proto; tiktoken is base64 text
    kind = SentencePieceTokenizer if is_sentencepiece else TiktokenTokenizer
    tokenizer = kind(name_or_folder, path)
    if name_or_folder not in _NAMED:
        _check_beside(path.parent, tokenizer)
    return tokenizer


def _check_beside(folder: Path, tokenizer: Tokenizer) -> None:
    """Raise UserError where the files beside tokenizer.model say more than it does."""
    settings, differs = _settings(folder), list[str]()
    added = folder / "added_tokens.json"
    ids = [*settings.get("added_tokens_decoder", {}), *read_object(added, _COPY).values()]
    if max(map(int, ids), default=0) >= tokenizer.vocab_size:
        differs.append("added tokens")
    if "chat_template" in settings or any(folder.glob("*chat_template*")):
        differs.append("a chat template")
    for key, own in (("bos", tokenizer.bos_token), ("eos", tokenizer.eos_token)):
        if (said := _content(settings, key)) not in (None, own):
            differs.append(f"{key}_token {said}")
    if differs:
        raise UserError(
            f"beside tokenizer.model its files name {', '.join(differs)}, which only a "
            "tokenizer.json can hold",
            path=folder,
            advice=(
                "write one with transformers' "
                "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            ),
        )
