"""The bank: templates with the vectors of their descriptions and an index of them.

    FOLDER/vectors/     of the descriptions, one each (data_gen/embedding/store.py)
    FOLDER/index/       of those vectors (data_gen/embedding/index.py)
    FOLDER/tags.npy     uint16 [N]: how many tags each template has
    FOLDER/origins.npy  uint16 [N]: where its query came from, a number in bank.json
    FOLDER/talks.npy    bool [N]: whether its query says that it was put to a language model
    FOLDER/bank.json    names of origins, counts, what the index is worth; written last

Templates stay in their own shards: `text` is the template, `provenance["documents"]` describes the
documents that suit it, and `provenance["query_source"]`, else `source`, says where its query came
from.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_gen.embedding.build_index import INDEX_FILES, IndexConfig, build_index
from data_gen.embedding.embedder import Embedder, EncoderConfig, open_embedder
from data_gen.embedding.index import Gpu, Index
from data_gen.embedding.store import STORE_FILES, VectorStore, write_vectors
from data_gen.fine_instructions.templates import Template
from data_gen.stages.config import OutputConfig
from data_gen.stages.units import RecordUnits
from ipt_jax.core.bounds import Positive
from ipt_jax.core.errors import UserError
from ipt_jax.core.fingerprint import digest_of
from ipt_jax.core.json_lines import load_json
from ipt_jax.core.manifest import file_sha256
from ipt_jax.core.records import Record, RecordSource, atomic_write
from ipt_jax.core.run_folder import RUN_FILES, RunFolder, prints_of

KIND, VERSION = "fi_bank", 1
BANK, TAGS, ORIGINS, TALKS = "bank.json", "tags.npy", "origins.npy", "talks.npy"
_OWNS = (
    *(*RUN_FILES, BANK, TAGS, ORIGINS, TALKS),
    *(f"vectors/{name}" for name in STORE_FILES),
    *(f"index/{name}" for name in INDEX_FILES),
)


@dataclass(frozen=True, kw_only=True)
class BankConfig(OutputConfig):
    """Shards of templates in, a bank to match documents against out."""

    output: str = "runs/fi_bank"
    """Folder of the bank; made where missing."""
    templates: str = "runs/fi_templates/shards/templates"
    """Folder of the templates' shards."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Which embeds descriptions, whole: `chunks` is of documents."""
    index: IndexConfig = field(default_factory=IndexConfig)
    """How they are searched."""
    rows_per_block: Positive = 4096
    """Descriptions embedded at a time; a run that is killed loses at most so many."""
    seed: int = 0
    """Of the samples on which the index is trained and measured."""


def build_bank(
    config: BankConfig,
    progress: Callable[[str], None] = lambda said: None,
    *,
    embedder: Embedder | None = None,
    queries_QE: np.ndarray | None = None,
    on_start: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Make the folder `config.output`, or go on where it stopped; gives what bank.json says.

    Args:
      embedder: in place of the one that the config names.
      queries_QE: vectors of documents, to measure the index with what will be asked.

    Raises:
      UserError: there are no templates, one has no description, and as `write_vectors`,
        `build_index` and `RunFolder.open`.
    """
    source = RecordSource(Path(config.templates).expanduser())
    if not len(source):
        raise UserError(
            f"templates={config.templates}: the bank is empty, there is nothing to match documents "
            "with. See in its `rejected/` why no query became a template.",
            key="templates",
            path=config.templates,
        )
    embedder = embedder or open_embedder(replace(config.encoder, chunks=0))
    prints = {
        "templates": source.fingerprint,
        "encoder": embedder.fingerprint,
        "settings": embedder.settings,
        "index": asdict(config.index),
        "seed": config.seed,
        "method": f"{KIND}/{VERSION}",
    }
    folder = Path(config.output).expanduser()
    with RunFolder.open(folder, KIND, prints_of(prints), owns=_OWNS, fresh=config.fresh) as run:
        if run.finished:
            return load_json(folder / BANK)
        run.begin()
        if on_start is not None:
            on_start(folder)
        store = write_vectors(
            folder / "vectors",
            _Descriptions(source),
            embedder,
            source.fingerprint,
            rows_per_block=config.rows_per_block,
            progress=lambda rows: progress(f"{rows:,} of {len(source):,} descriptions embedded"),
        )
        index = build_index(
            store.vectors[:, 0],
            folder / "index",
            embedder.fingerprint,
            _print_of(store),
            config.index,
            queries_QE=queries_QE,
            seed=config.seed,
            progress=progress,
        )
        progress("counting tags")
        tags_N, origins_N, talks_N, names = _survey(source)
        for name, values in ((TAGS, tags_N), (ORIGINS, origins_N), (TALKS, talks_N)):
            data = io.BytesIO()
            np.save(data, values)
            atomic_write(folder / name, data.getvalue())
        made = {
            "templates": len(source),
            "templates_fingerprint": source.fingerprint,
            "encoder": embedder.fingerprint,
            "origins": names,
            "by_origin": dict(zip(names, np.bincount(origins_N).tolist(), strict=True)),
            "by_tags": {str(tags): int(n) for tags, n in enumerate(np.bincount(tags_N)) if n},
            "files": {name: file_sha256(folder / name) for name in (TAGS, ORIGINS, TALKS)},
            "factory": index.manifest["factory"],
            "measured": index.manifest["measured"],
            "recall_reached": index.manifest.get("reached", True),
        }
        atomic_write(folder / BANK, json.dumps(made, indent=1) + "\n")
        run.finish()
    return made


class Bank:
    """A finished bank with its templates."""

    def __init__(self, folder: str | Path, templates: str | Path, encoder: str, gpu: Gpu = "auto"):
        """
        Args:
          encoder: fingerprint of the encoder of the documents.

        Raises:
          UserError: the bank is not finished, is empty, of another encoder or of other templates,
            or a file of it was changed.
        """
        self.folder = Path(folder).expanduser()
        try:
            self.about = load_json(self.folder / BANK)
        except FileNotFoundError as error:
            raise UserError(
                f"there is no finished bank in `bank` ({self.folder}): make it of the templates, "
                "or correct the path.",
                key="bank",
                path=self.folder,
            ) from error
        self.templates = RecordSource(Path(templates).expanduser(), verify=False)
        if self.about["templates_fingerprint"] != self.templates.fingerprint:
            raise UserError(
                f"`bank` ({self.folder}) was made of other templates than `templates` ({templates})"
                " holds: make it again, or name the shards that it was made of.",
                key="templates",
                path=templates,
            )
        for name, sha256 in self.about["files"].items():
            path = self.folder / name
            if not path.is_file() or file_sha256(path) != sha256:
                said = f"{path} is gone or was changed: make the bank again."
                raise UserError(said, key="bank", path=path)
        self.index = open_index(self.folder, encoder, gpu)
        self.tags_N = np.load(self.folder / TAGS)
        self.origins_N = np.load(self.folder / ORIGINS)
        self.talks_N = np.load(self.folder / TALKS)

    @property
    def fingerprint(self) -> str:
        """The same for the same templates, encoder and way of searching."""
        manifest = self.index.manifest
        parts = [manifest[key] for key in ("vectors", "factory", "rescore")]
        return digest_of([*parts, manifest["measured"]["probes"]])

    def __len__(self) -> int:
        return len(self.templates)

    def from_origins(self, wanted: Sequence[str]) -> np.ndarray:
        """bool [N]: the template's query came from one of these.

        Names are compared without case, punctuation and what stands round them: `lmsys_chat` is
        `lmsys/lmsys-chat-1m`.
        """
        bare = [bare_name(name) for name in wanted]
        real = [any(name in bare_name(origin) for name in bare) for origin in self.about["origins"]]
        return np.array(real, bool)[self.origins_N]


def open_index(folder: Path, encoder: str, gpu: Gpu = "auto") -> Index:
    """The index of a bank. Raises UserError as `VectorStore` and `Index`."""
    store = VectorStore(folder / "vectors", encoder)
    return Index(folder / "index", store.vectors[:, 0], encoder, gpu=gpu)


class _Descriptions:
    """The descriptions of templates, as `write_vectors` reads them."""

    def __init__(self, source: RecordSource) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def read(self, numbers: Sequence[int], /) -> list[tuple[str, str]]:
        return [(record.id, description_of(record)) for record in self._source.read(numbers)]


def description_of(record: Record) -> str:
    """What documents suit a template. Raises UserError, naming it, where it does not say."""
    description = record.provenance.get("documents")
    if not isinstance(description, str) or not description.strip():
        raise UserError(
            f"the template {record.id!r} does not say which documents suit it (`documents` in its "
            "provenance): make the templates again with this version.",
            key="templates",
            record=record.id,
        )
    return description


def origin_of(record: Record) -> str:
    """Where a template's query came from."""
    return str(record.provenance.get("query_source") or record.source)


def _survey(source: RecordSource) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Tags and origin of each template, whether its query talks to a model, names of origins."""
    numbers: dict[str, int] = {}

    def rows() -> Iterator[tuple[int, int, bool]]:
        for record in RecordUnits(source):
            tags = min(Template(record.text, "").complexity, np.iinfo(np.uint16).max)
            talks = bool(record.provenance.get("talks_to_a_model", False))
            yield tags, numbers.setdefault(origin_of(record), len(numbers)), talks

    found_N3 = np.fromiter(rows(), np.dtype((np.uint16, 3)), len(source))
    return found_N3[:, 0], found_N3[:, 1], found_N3[:, 2].astype(bool), list(numbers)


def _print_of(store: VectorStore) -> str:
    header = store.header
    return digest_of([header.fingerprint, header.settings, header.texts, header.count])


def bare_name(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
