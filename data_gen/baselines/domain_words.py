"""Words of a domain: pieces of its vocabulary that a general one does not have."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from ipt_jax.core.errors import UserError
from ipt_jax.core.tokenizers import SentencePieceTokenizer, Tokenizer, load_tokenizer

_SPACE = "▁"  # stands for the space before a word
_SHORTEST = 10  # characters of a domain word (Cheng et al., section 3.1)
_LONGEST_PIECE = 32  # characters; sentencepiece's own limit of 16 would cut long medical terms


class DomainWords:
    """Finds the domain's words in a sentence."""

    def __init__(self, model: bytes, general: Tokenizer, name: str = "the vocabulary") -> None:
        """`model`: a sentencepiece model of the domain. Raises UserError where it is none."""
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UserError(f"{name} is not a sentencepiece model ({error}).", path=name) from error
        self.sha256 = hashlib.sha256(model).hexdigest()
        pieces = (self._model.id_to_piece(number) for number in range(len(self._model)))
        long = [p[1:] for p in pieces if p.startswith(_SPACE) and len(p) > _SHORTEST]
        self.words = frozenset(word for word in long if word.isalpha()) - _known(long, general)

    def find(self, sentence: str, most_pieces: int) -> list[str]:
        """Its domain words in order, each once whatever its case; none where it is longer than
        `most_pieces`."""
        pieces = self._model.encode(sentence, out_type=str)
        if len(pieces) > most_pieces:
            return []
        found: dict[str, str] = {}
        for piece, following in zip(pieces, [*pieces[1:], _SPACE], strict=True):
            # A piece that letters follow is the beginning of another word.
            if piece[1:] in self.words and piece[0] == _SPACE and not following[0].isalnum():
                found.setdefault(piece[1:].lower(), piece[1:])
        return list(found.values())


def _known(words: Sequence[str], general: Tokenizer) -> set[str]:
    """Those that are one token, as they stand or in lower case (a sentence may begin with them)."""
    known: set[str] = set()
    # Some vocabularies put the space before a word themselves.
    for form in ("{}", " {}"):
        for change in (str, str.lower):
            ids = general.encode_batch([form.format(change(word)) for word in words])
            known |= {word for word, own in zip(words, ids, strict=True) if len(own) == 1}
    return known


def open_general(name: str) -> Tokenizer:
    """The general vocabulary: a name or folder of `load_tokenizer`, or a sentencepiece file."""
    path = Path(name).expanduser()
    return SentencePieceTokenizer(name, path) if path.is_file() else load_tokenizer(name)


def train_vocabulary(sentences: Iterable[str], pieces: int) -> bytes:
    """A sentencepiece model of at most so many pieces.

    BPE, as LLaMA's own: it counts in whole numbers, so that the same sentences give the same bytes
    on any machine, and it makes pieces of more whole words than the unigram model does. Raises
    UserError where they are too few.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=pieces,
            hard_vocab_limit=False,
            max_sentencepiece_length=_LONGEST_PIECE,
            model_type="bpe",
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(
            f"no vocabulary can be made of this corpus ({' '.join(str(error).split())[:200]}): "
            "name one that is there in `domain_vocabulary`, or lower `vocabulary_pieces`.",
            key="domain_vocabulary",
        ) from error
    return model.getvalue()
