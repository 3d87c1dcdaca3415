"""lm-evaluation-harness, and a count of the contexts that it cuts; a process of its own.

python -m ipt_jax.evaluation.lm_eval_process COUNTS.json run --model counted …
"""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

_HFLM: Any = HFLM  # the registry's decorator hides its type
CUT: set[tuple[str, int]] = set()
"""Task and number of each item whose context was cut."""


@register_model("counted")
class CountedLM(_HFLM):
    """The harness's model for transformers; it notes what the model's context cannot hold."""

    _items: dict[Any, set[tuple[str, int]]]

    def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list:
        self._note_items([request.args for request in requests], requests)
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(self, requests: list, *arguments: Any, **settings: Any) -> list:
        for texts, context, continuation in requests:
            # Texts scored whole come in windows without a text, and nothing of them is cut.
            if texts is not None and len(context) + len(continuation) > self.max_length + 1:
                CUT.update(self._items[texts])
        return super()._loglikelihood_tokens(requests, *arguments, **settings)

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """One BOS before a text, as in training: the harness puts it there, and the tokenizer's
        own would be a second that is scored as well."""
        before, self.add_bos_token = self.add_bos_token, False
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        finally:
            self.add_bos_token = before

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        self._note_items([request.args[0] for request in requests], requests)
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def tok_batch_encode(
        self, strings: list[str], padding_side: str = "left", left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple:  # fmt: skip
        if left_truncate_len:
            _, mask = super().tok_batch_encode(strings, padding_side)
            for text, tokens in zip(strings, mask.sum(1).tolist(), strict=True):
                if tokens > left_truncate_len:
                    CUT.update(self._items[text])
        return super().tok_batch_encode(strings, padding_side, left_truncate_len, truncation)

    def _note_items(self, texts: Sequence[Any], requests: list) -> None:
        self._items = defaultdict(set)
        for text, request in zip(texts, requests, strict=True):
            self._items[text].add((request.task_name, request.doc_id))


def main() -> None:
    counts = Path(sys.argv.pop(1))
    cli_evaluate()
    counts.write_text(json.dumps(Counter(task for task, _ in CUT)), encoding="utf-8")


if __name__ == "__main__":
    main()
