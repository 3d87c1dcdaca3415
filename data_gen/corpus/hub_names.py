"""Names of data sets on the Hugging Face hub, as `input` writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self
from urllib.parse import parse_qsl, urlencode

from data_gen.errors.shared import input_error
from ipt_jax.core.errors import did_you_mean

HUB = "hf://"
_KEYS = ("subset", "split")


@dataclass(frozen=True)
class HubName:
    """`hf://NAME[@REVISION][?subset=…&split=…]`."""

    name: str
    """As the hub lists it, with its owner."""
    revision: str = ""
    """Branch, tag or commit; the default branch where empty."""
    subset: str = ""
    """The library's `name` of a configuration; the only or default one where empty."""
    split: str = "train"
    """The library's `split`."""

    @classmethod
    def parse(cls, path: str) -> Self:
        """Raises UserError for a name or a key that cannot be."""
        base, _, query = path.removeprefix(HUB).partition("?")
        name, _, revision = base.partition("@")
        given = dict(parse_qsl(query, keep_blank_values=True))
        for key in given:
            if key not in _KEYS:
                raise input_error(
                    f"'{path}' in `input` asks for `{key}`. {did_you_mean(key, _KEYS)}", path=path
                )
        if not name or name.count("/") > 1 or "" in name.split("/") or "" in given.values():
            raise input_error(
                f"'{path}' in `input` is no data set on the hub: write "
                "hf://OWNER/NAME[@REVISION][?subset=SUBSET&split=SPLIT], or "
                "hf://datasets/OWNER/NAME/PATH for one of its files.",
                path=path,
            )
        return cls(name, revision, given.get("subset", ""), given.get("split", "train"))

    def __str__(self) -> str:
        query = {key: value for key in _KEYS if (value := getattr(self, key))}
        revision = f"@{self.revision}" if self.revision else ""
        return f"{HUB}{self.name}{revision}?{urlencode(query)}"

    @property
    def label(self) -> str:
        """`owner/name:subset:split`, which ids are made of."""
        return ":".join(part for part in (self.name, self.subset, self.split) if part)
