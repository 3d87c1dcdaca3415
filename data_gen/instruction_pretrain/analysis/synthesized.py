"""Pairs of a synthesis folder, read back from what the model wrote.

Training texts are varied by templates, so that pairs cannot be read back from them. The ledger
keeps every completion, and the folder says by which settings texts were drawn and chained: the
pairs are parsed again as synthesis did. What the folder shows as samples is compared with that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_gen.instruction_pretrain.formats import ParsedPairs, parse_pairs
from data_gen.instruction_pretrain.stage import METHOD, Chain, Chains
from data_gen.stages.ingest import RAW
from data_gen.stages.ledger import LEDGER_NAME, ClosedLedger
from ipt_jax.core.errors import UserError
from ipt_jax.core.json_lines import load_json
from ipt_jax.core.records import RecordSource
from ipt_jax.core.seeds import generator_of

synthesis_error = partial(UserError, key="synthesis")
_CHAIN = re.compile(r"chain-(\d+)")  # in the id of a record


@dataclass(frozen=True)
class SynthesizedText:
    """A raw text and what the synthesizer wrote about it."""

    id: str
    """Of the document."""
    source: str
    """Where the document came from."""
    text: str
    """The raw text."""
    generated: str
    """As it was written."""
    parsed: ParsedPairs
    """As synthesis parsed it."""
    cut: bool
    """Whether the generation ended at the token limit."""
    completion_tokens: int
    """Tokens written, by the synthesizer's own tokenizer, tags included."""


class SynthesizedTexts:
    """The texts of a finished synthesis folder that were chosen to get pairs."""

    def __init__(self, folder: str | Path) -> None:
        """Raises UserError where the folder is no finished one of this method, or its ledger and
        its samples disagree."""
        self.folder = Path(folder).expanduser()
        self.summary = self._json("summary.json")
        settings = self.summary.get("fingerprint", {})
        if not str(settings.get("method", "")).startswith(f"{METHOD}/"):
            raise synthesis_error(
                f"{self.folder / 'summary.json'} is not of {METHOD} but of "
                f"{settings.get('method')!r}: name a folder that launch/synthesize.py wrote.",
                path=self.folder / "summary.json",
            )
        raw = RecordSource(self.folder / "shards" / RAW, verify=False)
        self._chains = Chains(raw, settings["seed"], settings["fraction"], settings["rounds"])
        self._most_pairs: int = settings["max_pairs"]
        ledger = self.folder / LEDGER_NAME
        if not ledger.is_file():
            raise synthesis_error(
                f"{ledger} is gone: pairs are read back from the model's answers in it.",
                path=ledger,
            )
        self._compare_samples()

    def __len__(self) -> int:
        """Chains; each has up to as many texts as the run had rounds."""
        return len(self._chains)

    def read(self, numbers: Sequence[int]) -> Iterator[SynthesizedText]:
        """The texts of these chains. A text that the engine could not answer is left out."""
        with ClosedLedger(self.folder) as ledger:
            for number in numbers:
                yield from self._of_chain(ledger, self._chains[number])

    def draw(self, texts: int, seed: int) -> list[SynthesizedText]:
        """About `texts` texts with their chains, each chain as likely as any other."""
        order = generator_of(seed, "analysis").permutation(len(self))
        found: list[SynthesizedText] = []
        for number in order.tolist():
            if len(found) >= texts:
                break
            found += self.read([number])
        return found[:texts]

    def _of_chain(self, ledger: ClosedLedger, chain: Chain) -> Iterator[SynthesizedText]:
        for turn, completion in ledger.of_unit(chain.id):
            # Ingesting refuses documents that do not fit alone, so each document has a turn.
            if turn >= len(chain.documents):
                raise self._changed(f"turn {turn} of {chain.id} is")
            document = chain.documents[turn]
            yield SynthesizedText(
                id=document.id,
                source=document.source,
                text=document.text,
                generated=completion.text,
                parsed=parse_pairs(completion.text, max_pairs=self._most_pairs),
                cut=completion.finish_reason == "length",
                completion_tokens=completion.completion_tokens,
            )

    def _compare_samples(self) -> None:
        for sample in self._json("samples.json"):
            named = _CHAIN.search(sample["id"])
            number = int(named[1]) if named else len(self)
            chain = self.read([number]) if number < len(self) else ()
            found = {text.id: text.parsed.pairs for text in chain}
            for document in sample["documents"]:
                shown = [(pair["instruction"], pair["response"]) for pair in document["pairs"]]
                pairs = found.get(document["id"], ())
                if shown != [(pair.question, pair.answer) for pair in pairs]:
                    raise self._changed(f"the pairs of {document['id']!r} in samples.json are")

    def _changed(self, what: str) -> UserError:
        return synthesis_error(
            f"{self.folder}: {what} not what ledger.sqlite and summary.json lead to: the folder "
            "was changed, or another version of this code wrote it. Run synthesis again.",
            path=self.folder,
        )

    def _json(self, name: str) -> Any:
        path = self.folder / name
        try:
            return load_json(path)
        except (OSError, ValueError) as error:
            raise synthesis_error(
                f"{path} cannot be read ({error}): name the folder of a finished synthesis run.",
                path=path,
            ) from error
