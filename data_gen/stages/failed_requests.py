"""Requests that an engine could not answer: counted, said at the end of a run, asked again."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_gen.engines.base import Completion
from ipt_jax.core.errors import RunStopped

TOO_MANY_FAILED = 4  # exit code
_ATTEMPTS = re.compile(r" \(attempts: \d+\)$")
_NUMBER = re.compile(r"\d[\d.,]*")
_REASON_CHARACTERS = 160
_MOST_REASONS = 20  # kept in a summary


@dataclass
class FailedRequests:
    """Those of one run. In its summary as `requests_failed`, `requests_to_ask_again` and
    `request_errors`."""

    requests: int = 0
    """Requests that ended, in a completion or an error."""
    permanent: int = 0
    """Errors that would come again."""
    transient: int = 0
    """Errors that may not: the next run asks again."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Error texts with their numbers taken out, so that those of one kind are counted together."""

    @classmethod
    def of_summary(cls, summary: Mapping[str, Any]) -> FailedRequests:
        """What a summary says; none where it says nothing of them."""
        failed, again = summary.get("requests_failed", 0), summary.get("requests_to_ask_again", 0)
        reasons = Counter(summary.get("request_errors", {}))
        return cls(summary.get("completions", 0), failed - again, again, reasons)

    @property
    def failed(self) -> int:
        return self.permanent + self.transient

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return self.failed / max(self.requests, 1)

    def add(self, errors: Iterable[Completion]) -> None:
        """Count these; `requests` counts them already."""
        for error in errors:
            self.transient += error.error_kind == "transient"
            self.permanent += error.error_kind != "transient"
            self.reasons[_kind_of(error.text)] += 1

    def summary(self) -> dict[str, Any]:
        """Its part of a run's summary."""
        return {
            "requests_failed": self.failed,
            "requests_to_ask_again": self.transient,
            "request_errors": dict(self.reasons.most_common(_MOST_REASONS)),
        }

    def settled(self, most_share: float) -> bool:
        """Whether the run may count as finished, with these left as they are."""
        return not self.transient and self.share <= most_share

    def tell(self, most_share: float, texts: Path | None = None) -> None:
        """Say on stderr how many failed and why; their error texts stand in `texts`.

        Raises:
          RunStopped: with TOO_MANY_FAILED, where more than `most_share` of the requests failed.
        """
        if not self.failed:
            return
        ((reason, count),) = self.reasons.most_common(1)
        said = (
            f"{self.failed:,} of {self.requests:,} requests failed ({self.share:.1%}), {count:,} "
            f"of them with: {reason}."
        )
        if texts is not None:
            said += f" Every error text stands in {texts}."
        if self.transient:
            said += f" {self.transient:,} may pass: the same command asks them again."
        if self.share <= most_share:
            print(said, file=sys.stderr)
            return
        raise RunStopped(
            f"{said} That is more than `engine.max_failed_share` ({most_share:g}): mend the cause, "
            "then run the same command again; it asks only for what failed.",
            TOO_MANY_FAILED,
        )


def _kind_of(text: str) -> str:
    head, colon, rest = _ATTEMPTS.sub("", text).partition(":")
    if " " in head:  # no word such as http_429 stands in front
        head = _NUMBER.sub("#", head)
    return " ".join(f"{head}{colon}{_NUMBER.sub('#', rest)}".split())[:_REASON_CHARACTERS]
