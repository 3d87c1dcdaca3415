"""What a folder of record shards holds."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ipt_jax.core.errors import UserError
from ipt_jax.core.files import atomic_write
from ipt_jax.core.json_lines import read_object
from ipt_jax.core.shards import ShardReader

_LOG = logging.getLogger(__name__)
FORMAT = "ipt-jax-records/1"
TOKENS_FORMAT = "ipt-jax-tokens/1"
MANIFEST_NAME = "manifest.json"
_COPY = "copy it again or write the shards again"


def file_sha256(path: str | Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class ShardInfo:
    """One line of the manifest."""

    name: str
    """File name in the manifest's folder."""
    records: int
    """Records in the shard."""
    bytes: int
    """Size of the file."""
    sha256: str
    """Of the file's bytes."""
    text_bytes: int = 0
    """UTF-8 bytes of all texts, before compression."""
    tokens: dict[str, int] = field(default_factory=dict)
    """Tokens of all texts (without BOS and EOS) by tokenizer name, where counted."""


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds; a folder without one holds nothing a reader would take."""

    folder: Path
    """Where the shards lie; not written into the file, so that a folder may be moved."""
    shards: tuple[ShardInfo, ...]
    """In the order of their names, which is the order of the records."""
    format: str = FORMAT
    """What the records are: texts, or tokens (``TOKENS_FORMAT``)."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Of token shards: what they were made from and how."""

    @property
    def records(self) -> int:
        """Records in all shards."""
        return sum(shard.records for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Sha256 over shard names, counts and checksums: the same for the same records."""
        lines = [f"{s.name} {s.records} {s.sha256}\n" for s in self.shards]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @classmethod
    def load(cls, folder: str | Path, format: str = FORMAT) -> "Manifest":
        """Read ``folder/manifest.json``. Raises UserError naming it if missing or not ours."""
        path = Path(folder) / MANIFEST_NAME
        content = _read(path)
        found = content.get("format")
        if found != format:
            kinds = {FORMAT: "texts (record shards)", TOKENS_FORMAT: "tokens (token shards)"}
            what = f": it lists {kinds[found]}" if found in kinds else ": it is of no known version"
            raise UserError(
                f"{path} has the format {found!r}, not {format!r}{what}",
                path=path,
                advice=f"name a folder of {kinds[format]}, or write the shards again",
            )
        try:
            shards = tuple(
                ShardInfo(
                    name=str(s["name"]),
                    records=int(s["records"]),
                    bytes=int(s["bytes"]),
                    sha256=str(s["sha256"]),
                    text_bytes=int(s.get("text_bytes", 0)),
                    tokens={str(k): int(v) for k, v in s.get("tokens", {}).items()},
                )
                for s in content["shards"]
            )
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise UserError(
                f"{path} does not describe its shards as it should ({error!r}): it is damaged",
                path=path,
                advice="write the shards again",
            ) from error
        for shard in shards:
            if Path(shard.name).name != shard.name:
                raise UserError(
                    f"{path} names the shard {shard.name!r} outside its own folder: shards lie "
                    "beside their manifest",
                    path=path,
                    advice="write the shards again",
                )
            counts = {"text_bytes": shard.text_bytes, **shard.tokens}
            # A record takes at least a byte of its file, so that a count beyond that is none.
            if not 0 <= shard.records <= shard.bytes or min(counts.values()) < 0:
                raise UserError(
                    f"{path} gives the shard {shard.name} {shard.records:,} records in "
                    f"{shard.bytes:,} bytes, {counts}: that cannot be, so it is damaged",
                    path=path,
                    advice=_COPY,
                )
        details = content.get("details")
        return cls(Path(folder), shards, format, details if isinstance(details, dict) else {})

    def reader(self) -> ShardReader:
        """The shards' bytes at random access."""
        paths = [self.folder / shard.name for shard in self.shards]
        return ShardReader(paths, [shard.records for shard in self.shards])

    def write(self, folder: str | Path) -> None:
        """Write ``folder/manifest.json`` in one step."""
        content: dict[str, Any] = {"format": self.format}
        if self.details:
            content["details"] = dict(self.details)
        content["shards"] = [asdict(shard) for shard in self.shards]
        atomic_write(Path(folder) / MANIFEST_NAME, json.dumps(content, indent=1) + "\n")


def _read(path: Path) -> dict[str, Any]:
    return read_object(
        path,
        "it is damaged: write the shards again",
        "this folder holds no finished record shards: run the stage that writes them to its end, "
        "or name the folder that has the manifest",
    )


def manifest_format(folder: str | Path) -> str | None:
    """The format that ``folder/manifest.json`` states; None where the folder has none.

    Raises UserError where the manifest is damaged.
    """
    path = Path(folder) / MANIFEST_NAME
    return str(_read(path).get("format")) if path.is_file() else None


def check_shards(manifest: Manifest, verify: bool, skip_damaged: bool = False) -> None:
    """Raises UserError naming a shard that is missing, cut short or, with ``verify``, changed.

    With ``skip_damaged`` one that is there but not as listed is only logged.
    """
    for shard in manifest.shards:
        path = manifest.folder / shard.name
        if not path.is_file():
            raise UserError(
                f"shard {path} is missing though {MANIFEST_NAME} lists it",
                path=path,
                advice="copy it back or write the shards again",
            )
        size, wrong = path.stat().st_size, None
        if size != shard.bytes:
            wrong = (
                f"shard {path} has {size:,} bytes where {MANIFEST_NAME} says {shard.bytes:,}: it "
                "was cut short or changed"
            )
        elif verify and file_sha256(path) != shard.sha256:
            wrong = (
                f"the sha256 of shard {path} differs from the one in {MANIFEST_NAME}: it is "
                "damaged or was changed"
            )
        if wrong is None:
            continue
        error = UserError(wrong, path=path, advice=_COPY)
        if not skip_damaged:
            raise error
        _LOG.warning("%s Its damaged records are left out.", error)
