"""Tokenizers written as the folder that ``transformers.AutoTokenizer`` reads, exact to the id."""

import json
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from ipt_jax.core.errors import UserError
from ipt_jax.core.json_lines import load_json
from ipt_jax.core.records import atomic_write

_SPACE = "▁"


def _write(folder: Path, fast: Tokenizer, bos: str, eos: str, **more: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "tokenizer.json", fast.to_str(pretty=True))
    settings = {
        # The class that takes tokenizer.json as it is; LlamaTokenizer would build its own.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        # Text never becomes a control token, as in training.
        "split_special_tokens": True,
        "model_max_length": 1_000_000_000,
        **more,
    }
    atomic_write(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")


def enable_special_tokens(folder: Path) -> None:
    """Let BOS and EOS that a prompt names become tokens under this folder's tokenizer.

    For models that were trained with them inside their texts (``encode: parts``).
    """
    path = folder / "tokenizer_config.json"
    settings = load_json(path) if path.is_file() else {}
    settings["split_special_tokens"] = False
    atomic_write(path, json.dumps(settings, indent=2) + "\n")


def leave_out_bos(folder: Path, bos: str) -> None:
    """Let this folder's tokenizer put no BOS before a text, if it does.

    Raises UserError where another step than a template of its post-processor puts it there.
    """
    path, beside = folder / "tokenizer.json", folder / "tokenizer_config.json"

    def adds() -> bool:
        return Tokenizer.from_file(str(path)).encode("a").tokens[:1] == [bos]

    if not adds():
        return
    content = load_json(path)
    content["post_processor"] = _without(content["post_processor"], bos)
    atomic_write(path, json.dumps(content, ensure_ascii=False, indent=2))
    settings = load_json(beside) if beside.is_file() else {}
    atomic_write(beside, json.dumps(settings | {"add_bos_token": False}, indent=2) + "\n")
    if adds():
        raise UserError(
            f"texts were trained on with `bos: false`, but the tokenizer puts {bos} before a text "
            "by other means than a TemplateProcessing",
            advice="export with a tokenizer that puts none",
        )


def _without(processor: Any, bos: str) -> Any:
    if isinstance(processor, dict):
        return {key: _without(value, bos) for key, value in processor.items()}
    if isinstance(processor, list):
        begins = [{"SpecialToken": {"id": bos, "type_id": kind}} for kind in (0, 1)]
        return [_without(one, bos) for one in processor if one not in begins]
    return processor


def _bos_first(bos: str, bos_id: int) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, bos_id)]
    )


def _merges(scores: dict[str, float], ids: dict[str, int]) -> list[tuple[str, str]]:
    """Merges in the order sentencepiece would make them: by the score of what they give.

    Mistral scores all its runs of spaces alike, and sentencepiece then merges leftmost first,
    which ranks cannot say. Doubling first (1+1, 2+2, 4+4, 8+8), then the longest left part with
    the longest right part, gives the same pieces for a run of any length.
    """

    def order(left: str, right: str) -> tuple[int, int, int]:
        if (left + right).strip(_SPACE):
            return 0, ids[left], ids[right]
        if left == right and len(left) & (len(left) - 1) == 0:
            return 0, len(left), len(right)
        return 1, -len(left), -len(right)

    pairs = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                pairs.append((-score, order(left, right), left, right))
    return [(left, right) for _, _, left, right in sorted(pairs)]


def write_sentencepiece(
    path: Path, model: sentencepiece.SentencePieceProcessor, folder: Path
) -> None:
    """Write tokenizer.model, tokenizer.json and tokenizer_config.json of a BPE model.

    Raises UserError where the fast form would not give sentencepiece's ids.
    """
    proto: Any = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    data = path.read_bytes()
    proto.ParseFromString(data)
    kinds = proto.SentencePiece
    spec, normal = proto.trainer_spec, proto.normalizer_spec
    plain = (
        spec.model_type == spec.BPE
        and not normal.precompiled_charsmap
        and not normal.remove_extra_whitespaces
        and normal.add_dummy_prefix
    )
    if not plain or model.bos_id() < 0 or model.eos_id() < 0:
        raise UserError(
            f"the sentencepiece model {path} is not of Llama's kind (BPE, no normalisation, with "
            "BOS and EOS) and has no exact fast form",
            path=path,
            advice="use a tokenizer folder with tokenizer.json",
        )
    ids = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == kinds.NORMAL}
    unknown = model.id_to_piece(model.unk_id())
    bpe = models.BPE(
        ids, _merges(scores, ids), byte_fallback=True, fuse_unk=True, unk_token=unknown
    )
    fast = Tokenizer(bpe)
    fast.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    fast.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    control = [p.piece for p in proto.pieces if p.type in (kinds.CONTROL, kinds.UNKNOWN)]
    fast.add_special_tokens([AddedToken(p, special=True, normalized=False) for p in control])
    own = [p.piece for p in proto.pieces if p.type == kinds.USER_DEFINED]
    fast.add_tokens([AddedToken(p, normalized=False) for p in own])
    bos, eos = model.id_to_piece(model.bos_id()), model.id_to_piece(model.eos_id())
    fast.post_processor = _bos_first(bos, model.bos_id())
    _check(path, model, fast)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "tokenizer.model", data)
    _write(folder, fast, bos, eos, unk_token=unknown)


def _check(path: Path, model: sentencepiece.SentencePieceProcessor, fast: Tokenizer) -> None:
    """Runs of spaces are where conversions of such models have gone wrong."""
    fast.encode_special_tokens = True
    for length in range(65):
        text = f"def f():\n{' ' * length}return  1\t# {'=' * length}"
        if model.encode(text) != fast.encode(text, add_special_tokens=False).ids:
            raise UserError(
                f"the fast form of the sentencepiece model {path} gives other ids for a run of "
                f"{length} spaces",
                path=path,
                advice="use a tokenizer folder with its own tokenizer.json",
            )


def _byte_letters() -> dict[int, str]:
    """GPT-2's table: each byte as a printable letter, the form tokenizer.json keeps bytes in."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}


def write_tiktoken(
    ranks: dict[bytes, int], special_tokens: dict[str, int], pattern: str, folder: Path
) -> None:
    """Write tokenizer.json and tokenizer_config.json of a tiktoken vocabulary (Llama 3)."""
    letters = _byte_letters()

    def shown(token: bytes) -> str:
        return "".join(letters[b] for b in token)

    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [(a, b) for a, b in pairs if a in ranks and b in ranks]
        known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(shown(a), shown(b)) for a, b in known]
    vocab = {shown(token): rank for token, rank in ranks.items()}
    # tiktoken takes a whole word that is in the vocabulary without merging it.
    fast = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    fast.decoder = decoders.ByteLevel()
    ordered = sorted(special_tokens, key=special_tokens.__getitem__)
    fast.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ordered])
    bos, eos = ordered[:2]
    fast.post_processor = _bos_first(bos, special_tokens[bos])
    _write(folder, fast, bos, eos)
