"""Questions to an engine, each asked exactly once however often a measurement is run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from data_gen.engines import (
    Completion,
    Engine,
    EngineConfig,
    Message,
    Prompt,
    Request,
    SamplingParams,
    identify_engine,
    max_in_flight,
    open_engine,
)
from data_gen.stages.failed_requests import FailedRequests
from data_gen.stages.ledger import Ledger
from data_gen.stages.runner import Progress, no_progress, run_units
from ipt_jax.core.errors import UserError
from ipt_jax.core.rejection import Reason
from ipt_jax.core.seeds import seed_of

ProgressFactory = Callable[[str], AbstractContextManager[Progress]]
"""Shows the progress of the part of a measurement that it is given the title of."""


def silent(title: str) -> AbstractContextManager[Progress]:
    """For callers that show nothing."""
    return nullcontext(no_progress)


@dataclass(frozen=True)
class Query:
    """A prompt with a name of its own within a measurement."""

    name: str
    """Comes back with the completion."""
    prompt: Prompt
    """What the model sees."""
    sampling: SamplingParams
    """How tokens are drawn; where they are, the question's id seeds the draws."""

    @property
    def id(self) -> str:
        """Name in the ledger: another prompt under the same name is another question."""
        prompt = self.prompt if isinstance(self.prompt, str) else [asdict(m) for m in self.prompt]
        content = json.dumps([prompt, asdict(self.sampling)], sort_keys=True)
        return f"{self.name}#{hashlib.sha256(content.encode()).hexdigest()[:16]}"


class CachedEngine:
    """An engine with a ledger of what it has answered; opened only when something is asked."""

    def __init__(
        self, name: str, config: EngineConfig, folder: Path, engine: Engine | None = None
    ) -> None:
        """`engine` replaces the one that `config` names. Answers are kept below `folder`.

        Raises:
          UserError: as identify_engine, and where the config asks for constrained tokens.
        """
        if config.constrain:
            raise UserError(
                f"{name}: `constrain` is true: what a model writes is measured as it writes it. "
                "Set false.",
                key=f"{name}.constrain",
            )
        self.name, self.config = name, config
        self.failed = FailedRequests()
        self._given, self._engine = engine, engine
        self.identity = asdict(identify_engine(config, engine))
        fingerprint = {
            **self.identity,
            "context_tokens": config.context_tokens,
            "vllm.dtype": config.vllm.dtype,
        }
        digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]
        # A folder for each model and setting: another model never finds the answers of this one.
        place = folder / "answers" / digest
        place.mkdir(parents=True, exist_ok=True)
        self._ledger_of = lambda: Ledger(place)

    @property
    def engine(self) -> Engine:
        """Opened at the first use."""
        if self._engine is None:
            self._engine = open_engine(self.config)
        return self._engine

    @property
    def context_tokens(self) -> int:
        """Most tokens of prompt and completion together."""
        return min(self.config.context_tokens, self.engine.context_tokens)

    def ask(
        self, questions: Sequence[Query], title: str = "", bars: ProgressFactory = silent
    ) -> dict[str, Completion]:
        """Completions by the questions' names; what was answered in an earlier run is not asked.

        Errors of the engine are completions too, with finish reason `error`.
        """
        names = [question.name for question in questions]
        if len(set(names)) != len(names):
            raise ValueError("two questions have the same name")
        found: dict[str, Completion] = {}
        with self._ledger_of() as ledger, bars(f"{self.name} {title}".strip()) as progress:
            for done in run_units(
                questions,
                _process,
                self.engine,
                ledger,
                units_in_flight=2 * max_in_flight(self.config),
                turns_expected=len(questions),
                progress=progress,
            ):
                if isinstance(done.outcome, Reason):
                    raise RuntimeError(f"{done.unit.name}: {done.outcome.detail}")
                found[done.unit.name] = done.outcome
                self.failed.requests += 1
                self.failed.add(done.errors)
        return found

    def close(self) -> None:
        """Free the model, where it was opened here; a later question opens it again."""
        if self._engine is not None and self._given is None:
            self._engine.close()
            self._engine = None


def _process(question: Query) -> Generator[Request, Completion, Completion]:
    seed = seed_of(0, question.id)
    completion = yield Request(question.id, question.prompt, question.sampling, seed)
    return completion


def as_user(text: str) -> Prompt:
    """A chat of one turn of the user's."""
    return (Message("user", text),)


def count_errors(completions: Mapping[str, Completion]) -> int:
    """Requests that the engine could not answer."""
    return sum(completion.finish_reason == "error" for completion in completions.values())
