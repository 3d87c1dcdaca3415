"""As many tokens of pairs as their documents have: FineInstructions, section 4.2 and its footnote.

Judged pairs of a document are tried in a random order; one that fits what is left of the
document's tokens is kept. What stays over goes to the next document of the block.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any

import numpy as np

from data_gen.engines import Completion, Request
from data_gen.fine_instructions.drawing import within_budget
from data_gen.quality.inputs import InputShards
from data_gen.stages.blocks import BlockTotals, UnitOutput
from data_gen.stages.card import Card
from data_gen.stages.config import StageConfig
from data_gen.stages.stage import Stage, Summary
from data_gen.stages.units import RecordUnits
from ipt_jax.core.bounds import NotEmpty, Positive
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record, RecordSource
from ipt_jax.core.rejection import Reason, Rejection
from ipt_jax.core.seeds import generator_of
from ipt_jax.core.tokenizers import load_tokenizer

METHOD, KEPT = "fi_budget", "kept"
CountTokens = Callable[[Sequence[str]], list[int]]


@dataclass(frozen=True, kw_only=True)
class BudgetConfig(StageConfig):
    """Pairs and their documents in, pairs with as many tokens as those out."""

    method: str = METHOD
    output: str = "runs/fi_budget"
    """Folder of the run; made where missing."""
    input: Annotated[list[str], NotEmpty("folders of pairs")] = field(
        default_factory=lambda: ["runs/fi_judged/shards"]
    )
    """Folders of record shards of pairs, judged ones for the paper's main result."""
    documents: Annotated[list[str], NotEmpty("folders of documents")] = field(
        default_factory=lambda: ["runs/fi_instantiate/shards/raw"]
    )
    """Folders of record shards of the documents that they were made of; one without pairs gives
    its tokens to those behind it."""
    tokenizer: str = "llama3"
    """Name or folder of the tokenizer of the model that is trained."""
    documents_per_block: Positive = 1024
    """What a document leaves goes no further than to the end of its block, so that blocks are
    made one by one, anywhere, in any order."""


@dataclass(frozen=True)
class DocumentPairs:
    """A document with its pairs."""

    document: Record
    pairs: Sequence[Record]


@dataclass(frozen=True)
class Budgeted:
    """What became of a document's pairs."""

    kept: Sequence[int]
    """Places of the pairs that are kept, in order."""
    sizes: Sequence[int]
    """Tokens of each pair."""
    tokens: int
    """Of the document, its BOS and EOS counted as the pairs' are."""
    given: int
    """What was left by the documents before."""
    left: int
    """What it leaves itself."""


def budget_block(
    documents: Iterable[tuple[Record, Sequence[Record]]], count: CountTokens, seed: int
) -> list[Budgeted]:
    """The documents of one block, in order, each with what the one before left over.

    Args:
      documents: each with its pairs.
      count: tokens of texts, with what a training example has around it.
      seed: with a document's id it decides in which order its pairs are tried.
    """
    found: list[Budgeted] = []
    left = 0
    for document, pairs in documents:
        (tokens, *sizes) = count([document.text, *(pair.text for pair in pairs)])
        given = left
        generator = generator_of(seed, "budget", document.id)
        kept, left = within_budget(sizes, tokens + given, generator)
        found.append(Budgeted(kept, sizes, tokens, given, left))
    return found


@dataclass(frozen=True)
class Block:
    """Successive documents, by their rows, with the rows of their pairs."""

    id: str
    first: int
    """Row of the first document."""
    pairs: Sequence[np.ndarray]
    """For each document the rows of its pairs, ascending."""


def document_rows(documents: InputShards, pairs: InputShards) -> np.ndarray:
    """Int64 [pairs], the row of the document that each pair was made of.

    Raises UserError: two documents with one id, or a pair of no document.
    """
    ids = _digests(record.id for record in RecordUnits(documents))
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    if (same := np.flatnonzero(ids[1:] == ids[:-1])).size:
        one, other = (documents.where(int(order[same[0] + n])) for n in (0, 1))
        raise UserError(
            f"`documents`: {one} and {other} have the same id: name each folder once.",
            key="documents",
        )
    parents = _digests(map(_parent_of, RecordUnits(pairs)))
    places = np.minimum(np.searchsorted(ids, parents), max(0, len(ids) - 1))
    lost = np.flatnonzero(ids[places] != parents) if len(ids) else np.arange(len(parents))
    if lost.size:
        record = pairs.read([int(lost[0])])[0]
        raise UserError(
            f"the pair {record.id!r} ({pairs.where(int(lost[0]))}) was made of the document "
            f"{_parent_of(record)!r}, which is none of `documents` ({lost.size:,} pairs are "
            "such): name the folder that it lies in.",
            key="documents",
            record=record.id,
        )
    return order[places]


class Blocks(Sequence[Block]):
    """All documents in blocks, the pairs found by their documents' ids."""

    def __init__(self, documents: InputShards, pairs: InputShards, size: int) -> None:
        """Raises UserError as `document_rows`."""
        self._size, self._documents = size, len(documents)
        owners = document_rows(documents, pairs)
        self._rows = np.argsort(owners, kind="stable")
        """[pairs], rows of pairs in the order of their documents."""
        self._starts = np.searchsorted(owners[self._rows], np.arange(self._documents + 1))

    def __len__(self) -> int:
        return -(-self._documents // self._size)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = index * self._size
        last = min(first + self._size, self._documents)
        starts = self._starts[first : last + 1].tolist()
        rows = [self._rows[a:b] for a, b in pairwise(starts)]
        return Block(f"block/{index:08d}", first, rows)


class BudgetPairs(Stage[BudgetConfig, Block]):
    """Keeps pairs within the tokens of their documents; the others are told of one by one."""

    name, version, Config = METHOD, 1, BudgetConfig
    parts, places = (KEPT,), {KEPT: "shards"}
    free = ("documents", "tokenizer")
    units_in_memory = 1

    def __init__(self, config: BudgetConfig) -> None:
        """Raises UserError: no such folder or tokenizer."""
        super().__init__(config)
        self._documents, self._pairs = InputShards(config.documents), InputShards(config.input)
        self._tokenizer = load_tokenizer(config.tokenizer)

    def identity(self) -> Mapping[str, Any]:
        return {
            "pairs": self._pairs.fingerprints,
            "documents": self._documents.fingerprints,
            "tokenizer": self._tokenizer.prints(),
        }

    def units(self, raw: RecordSource | None) -> Blocks:
        return Blocks(self._documents, self._pairs, self.config.documents_per_block)

    @property
    def units_per_block(self) -> int:
        return max(1, self.config.records_per_shard // self.config.documents_per_block)

    def work(self, unit: Block) -> Generator[Request, Completion, UnitOutput]:
        yield from ()  # nothing is asked
        members, counts = self._read(unit), Counter[str]()
        records: list[tuple[str, Record]] = []
        pieces: list[Rejection] = []
        done = budget_block(
            ((one.document, one.pairs) for one in members), self._count, self.config.seed
        )
        for one, found in zip(members, done, strict=True):
            kept = set(found.kept)
            for place, (pair, size) in enumerate(zip(one.pairs, found.sizes, strict=True)):
                if place in kept:
                    records.append((KEPT, pair))
                    counts["pair_tokens"] += size
                    continue
                said = f"{size:,} tokens; the document has {found.tokens:,}, {found.given:,} were "
                said += f"left before it, and the pairs that are kept leave {found.left:,}"
                pieces.append(Rejection(pair.id, one.document.id, "over_budget", said))
            counts["documents"] += 1
            counts["document_tokens"] += found.tokens
            counts["documents_with_pairs"] += bool(kept)
        counts["tokens_left"] = done[-1].left
        counts["in"] = len(records) + len(pieces)
        return UnitOutput(records, pieces, counts)

    def failed(self, unit: Block, failure: Reason) -> UnitOutput:
        pieces = [
            Rejection(pair.id, one.document.id, *failure)
            for one in self._read(unit)
            for pair in one.pairs
        ]
        return UnitOutput(rejected=pieces, counts={"in": len(pieces)})

    def _read(self, unit: Block) -> list[DocumentPairs]:
        last = unit.first + len(unit.pairs)
        documents = self._documents.read(range(unit.first, last))
        rows = np.sort(np.concatenate(unit.pairs)) if unit.pairs else np.empty(0, np.int64)
        at = dict(zip(rows.tolist(), self._pairs.read(rows.tolist()), strict=True))
        return [
            DocumentPairs(document, [at[row] for row in own.tolist()])
            for document, own in zip(documents, unit.pairs, strict=True)
        ]

    def _count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as a training example: BOS where the tokenizer adds one, and EOS."""
        adds_bos = self._tokenizer.adds_bos
        return list(map(len, self._tokenizer.encode_arrays(texts, bos=adds_bos, eos=True)))

    def finish(self, totals: BlockTotals) -> Summary:
        counts, documents = totals.counts, max(1, totals.counts["documents"])
        kept = counts["in"] - totals.rejected.total()
        return {
            "in": counts["in"],
            "out": kept,
            "rejected": totals.rejected.total(),
            "documents": counts["documents"],
            "documents_with_pairs": counts["documents_with_pairs"],
            "document_tokens": counts["document_tokens"],
            "pair_tokens": counts["pair_tokens"],
            "tokens_left_at_ends_of_blocks": counts["tokens_left"],
            "pairs_per_document": round(kept / documents, 3),
        }

    def card(self, summary: Summary) -> Card:
        return Card(
            title="FineInstructions pairs within their documents' tokens",
            about=(
                f"{summary['out']:,} pairs with {summary['pair_tokens']:,} tokens, of "
                f"{summary['documents']:,} documents with {summary['document_tokens']:,}: no more "
                "than those have, so that both train a model for as long (FineInstructions, "
                "section 4.2)."
            ),
            gates=["A pair fits what its document's tokens, and those left before it, leave."],
            model={"tokenizer": self.config.tokenizer},
        )


def _parent_of(record: Record) -> str:
    """The document that a pair was made of. Raises UserError where it names none or several."""
    parents = record.provenance.get("parents")
    if isinstance(parents, list) and len(parents) == 1 and isinstance(parents[0], str):
        return parents[0]
    raise UserError(
        f"the pair {record.id!r} names the documents {parents!r} in its provenance (`parents`): "
        "give pairs that were made of one document each.",
        key="input",
        record=record.id,
    )


def _digests(ids: Iterable[str]) -> np.ndarray:
    """Uint64 [N]: eight bytes for an id, however long it is."""
    found = bytearray()
    for name in ids:
        found += hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()
    return np.frombuffer(found, np.uint64)
