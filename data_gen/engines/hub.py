"""Models of the Hugging Face hub: fetched once, safetensors only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from data_gen.errors.shared import one_line
from ipt_jax.core.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# No pickles and no Python: what is never fetched is never loaded.
_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]


def is_hub_name(model: str) -> bool:
    """Whether `model` could be `owner/name` on the hub."""
    return _NAME.fullmatch(model) is not None


def fetch_model(model: str, revision: str | None = None) -> Path:
    """The local folder of a hub model, named by its commit; fetched where it is not there yet.

    HF_HOME, HF_TOKEN and HF_HUB_OFFLINE work as everywhere. Raises UserError where there is no
    such model or revision, or no way to it.
    """
    at = f" at revision '{revision}'" if revision else ""
    return fetch(
        *(model, revision),
        f"`engine.model` is '{model}': there is no such folder here, and the hub gives no such "
        f"model{at} ({{}}). Mend the name, give a local folder, or fetch it on a machine with a "
        "network (`hf download`) and set HF_HOME to that cache; private and gated models need "
        "HF_TOKEN.",
        "engine.model",
        allow_patterns=_FILES,
    )


def fetch(name: str, revision: str | None, refused: str, key: str, **what: Any) -> Path:
    """The local folder of what lies on the hub under `name`; `what`: as snapshot_download's.

    Raises UserError of `key` with `refused`, `{}` in it standing for the error's own words.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, **what))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(refused.replace("{}", one_line(error)), key=key, path=name) from error
