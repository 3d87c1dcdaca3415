"""What every engine takes and gives: requests in, completions back in any order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True)
class Sampling:
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


@dataclass(frozen=True)
class Request:
    """One prompt. The engine adds no special tokens; those in the prompt's text count as such."""

    id: str
    """Comes back in the completion; unique among the requests of a call."""
    prompt: str
    """Text as the model shall see it."""
    sampling: Sampling
    """How to draw."""
    seed: int = 0
    """Draws depend on this alone, not on the batch that the request shares."""


@dataclass(frozen=True)
class Completion:
    """What the model wrote for one request."""

    request_id: str
    """Id of the request."""
    text: str
    """Generated text without stop string and end-of-sequence token."""
    finish_reason: FinishReason
    """`stop`: ended by itself; `length`: cut at max_tokens or the context; `error`: see text."""
    prompt_tokens: int
    """Tokens of the prompt."""
    completion_tokens: int
    """Tokens written, the end token included."""


class Engine(Protocol):
    """A language model that answers many requests at once."""

    @property
    def name(self) -> str:
        """Engine's key in the registry."""
        ...

    @property
    def version(self) -> str:
        """Version of the library that runs the model."""
        ...

    @property
    def model(self) -> str:
        """Model name or folder name."""
        ...

    @property
    def revision(self) -> str:
        """What tells these weights from others of the same name."""
        ...

    @property
    def context_tokens(self) -> int:
        """Most tokens of prompt and completion together."""
        ...

    def count_tokens(self, text: str) -> int:
        """Tokens of a prompt, exactly as `generate` counts them."""
        ...

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Answer every request once, in any order, each as soon as it is whole."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...
