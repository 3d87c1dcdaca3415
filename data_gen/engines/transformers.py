"""The engine for machines without a GPU: transformers' model, our own decoding loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_gen.engines.base import Completion, FinishReason, Request, TokenLogprob
from data_gen.engines.model_folder import check_model_folder, folder_revision
from data_gen.engines.prompts import PromptEncoder
from data_gen.engines.sampling import Constraints, apply_grammar_mask, sample_tokens
from data_gen.engines.slots import ATTENTION_NAME, SlotCache, slot_attention
from data_gen.engines.stopping import cut_at_stop
from data_gen.engines.streaming import RequestSource
from data_gen.errors.shared import model_error, one_line


@dataclass
class _Row:
    """One request in flight."""

    request: Request
    prompt_ids: list[int]
    matcher: Any | None
    generator: np.random.Generator
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def length_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.ids)


class TransformersEngine:
    """A causal language model of transformers in bfloat16 with continuous batching.

    Requests are read ahead by a window and taken longest first, `batch_size` at a time; a row that
    ends makes place for the next request. Measured with SmolLM2-135M on 2 cores, 24 real abstracts
    (7,675 prompt tokens), two to four pairs each by constrained decoding, prefill included: 200
    tokens/s; transformers' own `generate` with a top-p draw and such a constraint gave 54 in a
    single try (it pads finished rows, sorts the vocabulary for top-p and copies the cache). vllm-
    cpu 0.32 took 99 s to start and failed on seeds of requests. Masks and draws take about a tenth
    of a decode step.
    On a machine busy with other work fewer torch threads are faster, since threads wait for each
    other at every operation.
    """

    name = "transformers"

    def __init__(
        self,
        folder: str | Path,
        *,
        batch_size: int = 24,
        context_tokens: int | None = None,
        sort_window: int = 1024,
    ) -> None:
        """Load a local Hugging Face folder; weights from safetensors only, remote code never.

        Raises UserError where the folder, its weights or its tokenizer are missing or damaged.
        """
        import transformers
        from transformers import AttentionInterface, AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # bars of a second each would tear ours

        self.version = transformers.__version__
        self.folder = Path(folder)
        check_model_folder(self.folder)
        AttentionInterface.register(ATTENTION_NAME, slot_attention)
        self._encoder = PromptEncoder.load(self.folder)
        self.count_tokens = self._encoder.count
        self.tokenizer: Any = self._encoder.tokenizer
        try:
            self._model: Any = AutoModelForCausalLM.from_pretrained(
                self.folder,
                dtype=torch.bfloat16,
                attn_implementation=ATTENTION_NAME,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
            ).eval()
        except Exception as error:  # whatever a damaged folder makes the loaders raise
            raise model_error(
                f"the model in {self.folder} cannot be loaded ({one_line(error)}): copy the "
                "folder again, or name another one with `engine.model`.",
                path=self.folder,
            ) from error
        config = self._model.config
        limits = [config.max_position_embeddings, getattr(config, "sliding_window", None)]
        self.context_tokens = min(
            limit for limit in (*limits, context_tokens) if limit
        )  # within the window, sliding and full attention are the same
        self.batch_size, self.sort_window = batch_size, sort_window
        self.model = self.folder.name
        self.revision = folder_revision(self.folder)
        ends = config.eos_token_id
        ends = getattr(self._model.generation_config, "eos_token_id", None) or ends
        self._end_ids = {ends} if isinstance(ends, int) else set(ends or ())
        self._constraints = Constraints(self.tokenizer, config.vocab_size)

    def close(self) -> None:
        """Free the weights."""
        self._model = None

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        """See Engine. `sort_window` requests are read ahead, and the next ones when all are taken.

        A prompt that leaves no room in the context comes back as `error`.
        """
        feed = RequestSource(requests)
        cache = SlotCache(self.batch_size)
        waiting: deque[_Row] = deque()
        active: list[_Row] = []
        # New rows are taken in when a quarter of the slots is free: prefills pay off together.
        least_free = max(1, self.batch_size // 4)
        while True:
            free = self.batch_size - len(active)
            if free >= least_free and not waiting and not feed.exhausted:
                rows = [self._row(request) for request in feed.take(self.sort_window)]
                yield from (row for row in rows if isinstance(row, Completion))
                kept = [row for row in rows if isinstance(row, _Row)]
                kept.sort(key=lambda row: (-len(row.prompt_ids), row.request.id))
                waiting.extend(kept)
            if waiting and (free >= least_free or not active):
                new = [waiting.popleft() for _ in range(min(free, least_free, len(waiting)))]
                logits, first = self._prefill(cache, new, len(active)), len(active)
                active += new
            elif active:
                logits, first = self._decode(cache, active), 0
            elif feed.exhausted:
                return
            else:
                feed.wait()
                continue
            yield from self._extend(cache, active, logits, first)

    def _row(self, request: Request) -> _Row | Completion:
        ids = self._encoder.fitting(request, self.context_tokens)
        if isinstance(ids, Completion):
            return ids
        regex = request.sampling.regex
        matcher = self._constraints.matcher(regex) if regex is not None else None
        return _Row(request, ids, matcher, np.random.Generator(np.random.Philox(request.seed)))

    @torch.inference_mode()
    def _prefill(self, cache: SlotCache, new: list[_Row], first: int) -> torch.Tensor:
        lengths = [len(row.prompt_ids) for row in new]
        input_ids = torch.zeros((len(new), max(lengths)), dtype=torch.long)
        for place, row in enumerate(new):
            input_ids[place, : lengths[place]] = torch.tensor(row.prompt_ids)
        cache.start_prefill(torch.arange(first, first + len(new)), max(lengths))
        ends, place_of = torch.tensor(lengths).sub(1).unique(return_inverse=True)
        logits = self._model(
            input_ids=input_ids,
            position_ids=torch.arange(max(lengths)).unsqueeze(0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=ends,  # the last token of each row, whatever its length
        ).logits
        return logits[torch.arange(len(new)), place_of].float()

    @torch.inference_mode()
    def _decode(self, cache: SlotCache, active: list[_Row]) -> torch.Tensor:
        positions = torch.tensor([row.length_tokens - 1 for row in active])
        cache.start_decode(positions)
        seen = torch.arange(int(positions.max()) + 1)[None, :] <= positions[:, None]
        return (
            self._model(
                input_ids=torch.tensor([[row.ids[-1]] for row in active]),
                position_ids=positions[:, None],
                attention_mask=seen[:, None, None, :],
                past_key_values=cache,
                use_cache=True,
            )
            .logits[:, -1]
            .float()
        )

    @torch.inference_mode()
    def _extend(
        self, cache: SlotCache, active: list[_Row], logits: torch.Tensor, first: int
    ) -> Iterator[Completion]:
        """Add a token to the rows from `first` on; give back those that end and free them."""
        rows = active[first:]
        # The model's own distribution, before masks and temperature.
        own = {
            place: torch.log_softmax(logits[place], dim=-1)
            for place, row in enumerate(rows)
            if row.request.sampling.logprobs is not None
        }
        apply_grammar_mask(logits, [row.matcher for row in rows])
        tokens = sample_tokens(
            logits, [row.request.sampling for row in rows], [row.generator for row in rows]
        )
        for place, scores in own.items():
            rows[place].logprobs.append(self._logprob(scores, tokens[place], rows[place]))
        done: list[int] = []
        for place, (row, token) in enumerate(zip(rows, tokens, strict=True), start=first):
            row.ids.append(token)
            if (completion := self._completion(row, token)) is not None:
                done.append(place)
                yield completion
        for place in reversed(done):  # from the back, so that the last row is never a dead one
            last = len(active) - 1
            if place != last:
                cache.move(last, place)
                active[place] = active[last]
            active.pop()

    def _logprob(self, scores: torch.Tensor, token: int, row: _Row) -> TokenLogprob:
        top, ids = torch.topk(scores, row.request.sampling.logprobs or 0)
        likeliest = zip(ids.tolist(), top.tolist(), strict=True)
        return TokenLogprob(
            self.tokenizer.decode([token]),
            float(scores[token]),
            tuple((self.tokenizer.decode([other]), value) for other, value in likeliest),
        )

    def _completion(self, row: _Row, token: int) -> Completion | None:
        """The finished completion, or None while the row goes on."""
        params = row.request.sampling
        reason: FinishReason | None = None
        kept = row.ids
        if token in self._end_ids:
            reason, kept = "stop", row.ids[:-1]
        elif row.matcher is not None:
            row.matcher.consume_token(token)
            if row.matcher.is_stopped():
                reason = "stop"
        if reason is None and params.stop:
            cut = cut_at_stop(self._text, row.ids, params.stop)
            if cut is not None:
                return _complete(row, "stop", cut)
        full = len(row.ids) >= params.max_tokens or row.length_tokens >= self.context_tokens
        if reason is None and full:
            reason = "length"
        if reason is None:
            return None
        return _complete(row, reason, self._text(kept))

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)


def _complete(row: _Row, reason: FinishReason, text: str) -> Completion:
    return Completion(
        row.request.id,
        text,
        reason,
        len(row.prompt_ids),
        len(row.ids),
        logprobs=tuple(row.logprobs) if row.request.sampling.logprobs is not None else None,
    )
