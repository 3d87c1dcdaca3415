"""Public data that the papers' authors made, as records: `published.yaml` says what a row holds.

A row -> a record of each part of which it has the text or the pair -> shards; a row that has none
is rejected, and so is a part of it that cannot be used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from data_gen.corpus.documents import Raw
from data_gen.corpus.files import CorpusFile, read_errors, unreadable
from data_gen.corpus.pairs import PLAIN_FORM, PairLayout, as_pair
from data_gen.errors.shared import input_error
from data_gen.fine_instructions.instantiate import BEFORE, BETWEEN
from data_gen.fine_instructions.templates import Template, check_template
from ipt_jax.core.bounds import Config, config_of
from ipt_jax.core.errors import UserError, did_you_mean
from ipt_jax.core.json_lines import parse_json
from ipt_jax.core.rejection import Reason

_TAG = re.compile(r"</?fi>")
_NOTHING = (None, "", [])


@dataclass(frozen=True)
class PartFacts(Config):
    """Which keys of a row make a record of one part."""

    text: str = ""
    """Key of the text."""
    pair: PairLayout | None = None
    """Of the pair or pairs, in place of a text."""
    before: str = ""
    """Key of a text that stands before the first pair."""
    form: Literal["plain", "fine_instructions", "template"] = "plain"
    """`fine_instructions`: pairs in the form of section 4.2. `template`: its tags are checked."""
    id: tuple[str, ...] = ()
    """Keys whose values make its id; where one is not there, the id is the row's place."""
    parent: str = ""
    """Key of the id of the document that it was made of, which has to be in the data."""
    kept: Mapping[str, str] = field(default_factory=dict)
    """Name in the record's provenance, and key."""
    needs: tuple[str, ...] = ()
    """Which of those may not be empty."""

    @property
    def keys(self) -> list[str]:
        """Of its text or pair."""
        return [self.text] if self.pair is None else self.pair.keys

    @property
    def asked(self) -> list[str]:
        """What a row has to have."""
        more = (self.before, self.parent, *(self.kept[name] for name in self.needs))
        return [*self.keys, *filter(None, more)]


@dataclass(frozen=True)
class PublishedSet(Config):
    """A public data set."""

    name: str
    """Key in PUBLISHED."""
    published: str
    """Where it is, and which of its files hold the rows."""
    licence: str
    """As its authors state it; `none stated` where they do not."""
    parts: Mapping[str, PartFacts]
    """By the name of their shards."""
    scores: Mapping[str, str] = field(default_factory=dict)
    """`rows`: pattern of a file of rows; `beside`: the name of the file with their scores."""

    @classmethod
    def of_table(cls, name: str, facts: Mapping[str, Any]) -> PublishedSet:
        """The set of an entry in published.yaml. Raises UserError naming the key that is wrong."""
        parts = {
            part: config_of(PartFacts, keys, f"{name}.parts.{part}.")
            for part, keys in facts["parts"].items()
        }
        facts = {key: value for key, value in facts.items() if key != "parts"}
        return config_of(cls, facts, f"{name}.", name=name, parts=parts)


_TABLE = Path(__file__).with_name("published.yaml")
PUBLISHED: dict[str, PublishedSet] = {
    name: PublishedSet.of_table(name, facts)
    for name, facts in yaml.safe_load(_TABLE.read_text(encoding="utf-8")).items()
}
"""By name."""


class RowShape:
    """Makes records of the rows of one data set, file after file."""

    def __init__(self, facts: PublishedSet, least_score: int = 0) -> None:
        """`least_score`: pairs with a lower one are rejected."""
        self._facts, self._least = facts, least_score
        self._file: CorpusFile | None = None
        self._scores: list[Any] | None = None

    def __call__(self, raw: Raw, file: CorpusFile) -> Iterator[Raw]:
        """The records of a row. Raises UserError: the first row of a file lacks what each of the
        parts asks for, or the file's scores are not there."""
        fields = raw.fields
        if fields is None:
            yield raw
            return
        if file != self._file:
            self._check(fields, raw.place, file)
            self._file, self._scores = file, self._scores_of(file) if self._facts.scores else None
        held = {
            part: facts
            for part, facts in self._facts.parts.items()
            if any(fields.get(key) not in _NOTHING for key in facts.keys)
        }
        if not held:
            keys = " or ".join(" and ".join(one.keys) for one in self._facts.parts.values())
            yield Raw(raw.place, None, "no_record", f"it has no {keys}")
        for part, facts in held.items():
            found = self._record(part, facts, raw, fields)
            if isinstance(found, Reason):
                found = Raw(raw.place, None, *found, self._id(facts, fields) or "")
            yield found

    def _check(self, fields: Mapping[str, Any], place: str, file: CorpusFile) -> None:
        parts = self._facts.parts.values()
        lacking = [[key for key in one.asked if key not in fields] for one in parts]
        if all(lacking):
            (key, *_) = min(lacking, key=len)
            raise UserError(
                f"{file.path} is no file of `{self._facts.name}` ({self._facts.published}): its "
                f"record {place} has no `{key}`. {did_you_mean(key, map(str, fields))}",
                key=key,
                path=file.path,
                record=place,
            )

    def _id(self, facts: PartFacts, fields: Mapping[str, Any]) -> str | None:
        values = [fields.get(key) for key in facts.id]
        return None if any(one in _NOTHING for one in values) else "/".join(map(str, values))

    def _record(
        self, part: str, facts: PartFacts, raw: Raw, fields: Mapping[str, Any]
    ) -> Raw | Reason:
        told: dict[str, Any] = {"method": "published", "published": self._facts.name, "part": part}
        kept = {name: fields.get(key) for name, key in facts.kept.items()}
        told |= {name: value for name, value in kept.items() if value not in _NOTHING}
        for name in facts.needs:
            if not str(kept[name] or "").strip():
                return Reason(f"no_{name}", f"`{facts.kept[name]}` is empty")
        made = self._text(facts, fields)
        if isinstance(made, Reason):
            return made
        text, parts = made
        if facts.form == "template":
            told["complexity"] = Template(str(text), "").complexity
        if facts.parent:
            parent = fields.get(facts.parent)
            if parent in _NOTHING:
                return Reason("no_document", f"`{facts.parent}` is empty")
            told["parents"] = [str(parent)]
            if self._scores is not None:
                score = told["judge_score"] = self._score(raw.place)
                if score < self._least:
                    return Reason("low_score", f"{score}; at least {self._least}")
        own = {"id": self._id(facts, fields), "text": text, "source": self._facts.name}
        own["licence"] = self._facts.licence
        return Raw(raw.place, own, parts=parts, own=True, provenance=told)

    def _text(
        self, facts: PartFacts, fields: Mapping[str, Any]
    ) -> tuple[Any, tuple[str, ...]] | Reason:
        """Text and parts of a record."""
        if facts.pair is None:
            text = fields[facts.text]
            if facts.form == "template" and isinstance(text, str):
                # What the query was is not asked: without its tags the template is one.
                return check_template(text, _TAG.sub("", text)) or (text, ())
            return text, ()
        form = (BEFORE, BETWEEN) if facts.form == "fine_instructions" else PLAIN_FORM
        there = {key: fields[key] for key in facts.keys if key in fields}
        made = as_pair(Raw("", there), [facts.pair], form)
        if made.fields is None:
            return Reason(made.reason, made.detail)
        parts = made.parts
        if facts.before:
            before = fields.get(facts.before)
            if not isinstance(before, str) or not before.strip():
                return Reason(f"no_{facts.before}", f"`{facts.before}` holds no text")
            parts = (f"{before.strip()}\n\n{parts[0]}", *parts[1:])
        return "".join(parts), parts

    def _scores_of(self, file: CorpusFile) -> list[Any] | None:
        rows, beside = self._facts.scores["rows"], self._facts.scores["beside"]
        path, key = (re.sub(rows, beside, name) for name in (file.path, file.key))
        found = replace(file, path=path, key=key)
        if path != file.path:
            with read_errors(found):
                try:
                    with found.open() as opened:
                        return parse_json(opened.read())
                except FileNotFoundError:
                    pass
                except ValueError as error:
                    raise unreadable(found, error) from error
        if self._least:
            raise UserError(
                f"least_score={self._least}: there are no scores of {file.path}, which lie beside "
                f"it as {path}. Name the files themselves in `input`, put those of the scores "
                "beside them, or leave `least_score` at 0.",
                key="least_score",
                path=path,
            )
        return None

    def _score(self, place: str) -> int:
        """Of a row, by its number in the file."""
        number = int(place.rpartition(":")[2])
        assert self._scores is not None and self._file is not None
        try:
            return int(self._scores[number - 1])
        except (IndexError, TypeError, ValueError) as error:
            raise input_error(
                f"the scores beside {self._file.path} have none for its row {place} ({error}): "
                "they belong to another version of it; download both again.",
                path=self._file.path,
                record=place,
            ) from error
