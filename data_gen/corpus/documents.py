"""Documents, what is none, and the checks that tell them apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from data_gen.corpus.seen_ids import SeenIds
from ipt_jax.core.rejection import Rejection

MAX_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class Document:
    """One raw text."""

    id: str
    """Given by the corpus, else `file:line`; unique in a run."""
    text: str
    """Never empty, no NUL character."""
    source: str
    """The record's own `source`, else the file's name without its ending."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Other fields of the record."""
    parts: tuple[str, ...] = ()
    """Of a record of pairs, instruction and response in turn; they join to the text."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Of data that other projects made: what is known of how."""


# Reasons of a Rejection: `undecodable`, `not_json`, `no_text`, `empty`, `nul_character`,
# `duplicate_id`, `too_long`, `bad_id`; `damaged` for what cannot be read at all; `no_pair` where
# pairs are asked for; of web archives also `not_text` (neither HTML nor plain text), `http_status`
# (no success) and `bad_html`.


class Raw(NamedTuple):
    """A record before it is checked: `fields` where it could be read, else why not."""

    place: str
    fields: dict[str, Any] | None = None
    """Handed over: the check takes text, id and source out of it."""
    reason: str = ""
    detail: str = ""
    name: str = ""
    """The id of a record without fields, where it is known."""
    parts: tuple[str, ...] = ()
    """As Document's."""
    own: bool = False
    """The reader named the fields `text` and `id`, whatever the corpus calls its own."""
    provenance: Mapping[str, Any] = MappingProxyType({})
    """As Document's."""


class Checker:
    """The checks of one run, which remember the ids that came before."""

    def __init__(self, text_field: str, id_field: str, max_characters: int) -> None:
        self._keys = (text_field, id_field)
        self._max_characters = max_characters
        self._seen = SeenIds()

    def check(self, raw: Raw, source: str) -> Document | Rejection:
        """The record as a document, or why it is none; `source` for one that names none."""
        place, fields = raw.place, raw.fields
        if fields is None:
            return Rejection(raw.name or place, place, raw.reason, raw.detail)
        text_field, id_field = ("text", "id") if raw.own else self._keys
        text, given = fields.pop(text_field, None), fields.pop(id_field, None)
        if given is None or given == "":
            name = place
        elif isinstance(given, str | int):
            name = str(given)
        else:
            detail = f"'{id_field}' is a {type(given).__name__}"
            return Rejection.at(place, "bad_id", detail)
        if isinstance(text, bytes):
            try:
                text = text.decode()
            except UnicodeDecodeError as error:
                detail = f"the field '{text_field}' is not UTF-8 at byte {error.start}"
                return Rejection(name, place, "undecodable", detail)
        wrong = self._wrong(text, text_field)
        if wrong is not None:
            return Rejection(name, place, *wrong)
        if not self._seen.add(name):
            return Rejection(name, place, "duplicate_id", f"the id '{name}' came before")
        own_source = fields.pop("source", None)
        if isinstance(own_source, str) and own_source:
            source = own_source
        return Document(name, text, source, fields, raw.parts, raw.provenance)

    def _wrong(self, text: object, text_field: str) -> tuple[str, str] | None:
        if not isinstance(text, str):
            kind = "missing" if text is None else f"a {type(text).__name__}"
            return "no_text", f"the field '{text_field}' is {kind}"
        if not text or text.isspace():
            return "empty", f"the field '{text_field}' holds no text"
        if "\0" in text:
            return "nul_character", f"NUL at character {text.index(chr(0))}"
        if len(text) > self._max_characters:
            return "too_long", f"{len(text):,} characters; at most {self._max_characters:,}"
        return None
