"""From prompts to token ids, for engines that hold the tokenizer themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_gen.engines.base import Completion, Prompt, Request, turns_of
from data_gen.errors.shared import one_line
from ipt_jax.core.errors import UserError


class PromptError(Exception):
    """A chat that the model's template refuses; a failure of its request alone."""


class PromptEncoder:
    """A Hugging Face tokenizer; text gets no special tokens, a chat those of its template."""

    def __init__(self, tokenizer: Any, folder: Path) -> None:
        self.tokenizer, self._folder = tokenizer, folder

    @classmethod
    def load(cls, folder: Path) -> PromptEncoder:
        """Read the tokenizer of a local folder. Raises UserError where it cannot be read."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # whatever a damaged folder makes the loaders raise
            raise UserError(
                f"the tokenizer in {folder} cannot be loaded ({one_line(error)}): copy "
                "the folder again, or name another.",
                path=folder,
            ) from error
        return cls(tokenizer, folder)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt.

        Raises:
          UserError: a chat, and the tokenizer has no chat template.
          PromptError: a chat that the template refuses (two turns of the user, an unknown role).
        """
        # Folders that keep control tokens out of documents would keep out the prompt's own, too.
        return self.tokenizer(
            self.render(prompt), add_special_tokens=False, split_special_tokens=False, verbose=False
        )["input_ids"]

    def fitting(self, request: Request, context_tokens: int) -> list[int] | Completion:
        """Token ids of a request's prompt; of one that leaves no room, or is refused, the error."""
        try:
            ids = self.encode(request.prompt)
        except PromptError as error:
            return Completion.failed(request, str(error))
        if ids and len(ids) < context_tokens:
            return ids
        said = f"{len(ids)} prompt tokens; the context holds {context_tokens}"
        return Completion.failed(request, said, prompt_tokens=len(ids))

    def count(self, text: Prompt) -> int:
        """Tokens of a prompt; special tokens written in text count as one each, none are added."""
        return len(self.encode(text))

    def render(self, prompt: Prompt) -> str:
        """The text that a prompt's ids are of. Raises as `encode`."""
        from jinja2 import TemplateError

        if isinstance(prompt, str):
            return prompt
        if not self.tokenizer.chat_template:
            raise UserError(
                f"the tokenizer in {self._folder} has no chat template, and the requests are "
                "chats: add chat_template.jinja from the model's source, or take a model tuned "
                "for chat.",
                path=self._folder,
            )
        try:
            return self.tokenizer.apply_chat_template(
                turns_of(prompt), tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise PromptError(f"the chat template refuses the messages: {error}") from error
