"""An engine that says what a test wants it to say."""

from __future__ import annotations

from collections.abc import Callable

from data_gen.engines import Completion, Prompt, Request
from tests.data_gen.fakes import FakeEngine


class ScriptedEngine(FakeEngine):
    """Answers by a function of the prompt; a stop string ends the answer, as engines do it.

    None is an error of the engine.
    """

    def __init__(
        self, say: Callable[[str], str | None], *, cut: bool = False, context_tokens: int = 4096
    ) -> None:
        super().__init__(context_tokens=context_tokens)
        self._say, self._cut = say, cut

    def count_tokens(self, text: Prompt) -> int:
        return len(str(text).split())

    def answer(self, request: Request) -> Completion:
        self.asked.append(request)
        prompt = request.prompt
        text = self._say(prompt if isinstance(prompt, str) else prompt[0].content)
        tokens = self.count_tokens(str(prompt))
        if text is None:
            return Completion(request.id, "no", "error", tokens, 0, error_kind="permanent")
        for stop in request.sampling.stop:
            text = text.split(stop)[0]
        reason = "length" if self._cut else "stop"
        return Completion(request.id, text, reason, tokens, len(text.split()))
