"""What every engine takes and gives: requests in, completions back in any order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

FinishReason = Literal["stop", "length", "error"]
ErrorKind = Literal["permanent", "transient"]


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    """Who speaks."""
    content: str
    """What is said."""


Prompt = str | tuple[Message, ...]
"""Text as the model shall see it, or a chat that the model's template renders; the model writes
the next turn of the assistant."""


def turns_of(messages: Sequence[Message]) -> list[dict[str, str]]:
    """The turns of a chat as JSON has them."""
    return [{"role": one.role, "content": one.content} for one in messages]


@dataclass(frozen=True)
class SamplingParams:
    """How a completion's tokens are drawn."""

    max_tokens: int = 256
    """Most tokens of the completion."""
    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    top_k: int = 0
    """Draw among this many likeliest tokens; 0 for all."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that hold this probability together."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion; they are cut from its text."""
    regex: str | None = None
    """The whole completion matches this pattern (unless cut by max_tokens)."""
    logprobs: int | None = None
    """Give each token's log-probability and so many likeliest tokens beside it; None for none."""


@dataclass(frozen=True)
class Request:
    """One prompt. The engine adds no special tokens to text; those written in it count as such."""

    id: str
    """Comes back in the completion; unique among the requests of a call."""
    prompt: Prompt
    """Text, or the messages of a chat."""
    sampling: SamplingParams
    """How to draw."""
    seed: int = 0
    """Random numbers depend on this alone, not on the batch that the request shares; whether the
    probabilities do is the engine's matter. 0 to 2**63 - 1."""


@dataclass(frozen=True)
class TokenLogprob:
    """One written token under the model's own distribution, before temperature and constraints."""

    token: str
    """Its text; a piece of a character may show as U+FFFD."""
    logprob: float
    """Natural logarithm of its probability."""
    likeliest: tuple[tuple[str, float], ...] = ()
    """The likeliest tokens at this place with theirs, best first."""


@dataclass(frozen=True)
class Completion:
    """What the model wrote for one request."""

    request_id: str
    """Id of the request."""
    text: str
    """Generated text without stop string and end-of-sequence token; an error's reason."""
    finish_reason: FinishReason
    """`stop`: ended by itself; `length`: cut at max_tokens or the context; `error`: see text."""
    prompt_tokens: int
    """Tokens of the prompt."""
    completion_tokens: int
    """Tokens written, the end token included."""
    error_kind: ErrorKind | None = None
    """Of an error: `permanent` would fail again, `transient` may go better in a later run."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One for each written token where asked for; servers may leave out the end token."""
    attempts: int = 1
    """Times that the engine asked for it."""

    @classmethod
    def failed(
        cls, request: Request, said: str, kind: ErrorKind = "permanent", prompt_tokens: int = 0
    ) -> Completion:
        """An error, with what is said of it."""
        return cls(request.id, said, "error", prompt_tokens, 0, error_kind=kind)


class Engine(Protocol):
    """A language model that answers many requests at once."""

    name: str
    """Engine's key in the registry."""
    version: str
    """Version of the library that runs the model."""
    model: str
    """Model name or folder name."""
    revision: str
    """What tells these weights from others of the same name."""
    context_tokens: int
    """Most tokens of prompt and completion together."""

    def count_tokens(self, text: Prompt) -> int:
        """Tokens of a prompt, exactly as `generate` counts them."""
        ...

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        """Answer every request once, in any order, each as soon as it is whole.

        `requests` is read as completions are taken, in the caller's thread and never more than
        the engine's window ahead of them, so that it may be endless. Where it gives None, nothing
        is ready just now: the engine asks it again, at the latest after handing over the next
        completion, or a moment later where none is under way.
        """
        ...

    def close(self) -> None:
        """Free the model."""
        ...
