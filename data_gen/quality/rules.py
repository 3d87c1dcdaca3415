"""Rules of length, form and language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from data_gen.quality.gate import Gate
from data_gen.quality.language import load_language_identifier
from ipt_jax.core.bounds import Config, NotEmpty, NotNegative, Positive, Share
from ipt_jax.core.errors import UserError, did_you_mean, require
from ipt_jax.core.records import Record
from ipt_jax.core.rejection import Reason
from ipt_jax.core.tokenizers import load_tokenizer

_RANGES = ("characters", "words", "tokens")


@dataclass(frozen=True)
class RulesConfig(Config):
    """Bounds that a record's text must keep; null for none. Checked in the order given here."""

    min_characters: NotNegative | None = 1
    """Fewest characters."""
    max_characters: NotNegative | None = None
    """Most characters."""
    min_words: NotNegative | None = None
    """Fewest words, parted by white space."""
    max_words: NotNegative | None = None
    """Most words."""
    min_alphabetic: Share | None = None
    """Least share of letters among the characters that are not white space."""
    max_repeated_lines: Share | None = None
    """Greatest share of lines that repeat an earlier one of the text; empty lines are left out."""
    min_tokens: NotNegative | None = None
    """Fewest tokens, without BOS and EOS."""
    max_tokens: NotNegative | None = None
    """Most tokens."""
    tokenizer: str | None = None
    """Name or folder of the tokenizer that counts them."""
    languages: Annotated[list[str], NotEmpty("name at least one")] | None = None
    """ISO 639 codes of the languages that may pass, such as `en`."""
    min_language_score: Share = 0.0
    """How sure the language must be, 0 to 1; unsure ones are rejected too."""
    language_characters: Positive = 2000
    """The language is told from so many characters in the middle of the text."""

    def check_together(self) -> None:
        for name in _RANGES:
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            right = low is None or high is None or low <= high
            require(f"max_{name}", high, right, f"at least min_{name}={low}")
        if (self.min_tokens is not None or self.max_tokens is not None) != bool(self.tokenizer):
            raise UserError(
                f"tokenizer={self.tokenizer!r}: goes together with `min_tokens` or `max_tokens`: "
                "give both or neither.",
                key="tokenizer",
            )


class RulesGate(Gate):
    """Rejects what breaks a rule; the reason is the rule's key in the config."""

    name = "rules"

    def __init__(self, config: RulesConfig) -> None:
        self._config = config
        self._tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else None
        self._identify = None
        if config.languages is not None:
            self._identify, known = load_language_identifier()
            for code in config.languages:
                if code not in known:
                    raise UserError(
                        f"rules: no language {code!r} is known. {did_you_mean(code, known)}",
                        key="rules.languages",
                    )

    def check(self, records: Sequence[Record]) -> list[Reason | None]:
        verdicts = [self._form(record.text) for record in records]
        if self._tokenizer is not None:
            left = [number for number, verdict in enumerate(verdicts) if verdict is None]
            arrays = self._tokenizer.encode_arrays([records[number].text for number in left])
            for number, ids in zip(left, arrays, strict=True):
                verdicts[number] = self._within("tokens", len(ids))
        for number, verdict in enumerate(verdicts):
            if verdict is None and self._identify is not None:
                verdicts[number] = self._language(records[number].text)
        return verdicts

    def _form(self, text: str) -> Reason | None:
        config = self._config
        wrong = self._within("characters", len(text))
        if wrong is None and (config.min_words is not None or config.max_words is not None):
            wrong = self._within("words", len(text.split()))
        if wrong is None and config.min_alphabetic is not None:
            share = alphabetic_share(text)
            if share < config.min_alphabetic:
                wrong = Reason("min_alphabetic", f"{share:.3f} of the characters are letters")
        if wrong is None and config.max_repeated_lines is not None:
            share = repeated_line_share(text)
            if share > config.max_repeated_lines:
                wrong = Reason("max_repeated_lines", f"{share:.3f} of the lines are repeated")
        return wrong

    def _within(self, what: str, count: int) -> Reason | None:
        low, high = getattr(self._config, f"min_{what}"), getattr(self._config, f"max_{what}")
        if low is not None and count < low:
            return Reason(f"min_{what}", f"{count:,} {what}; at least {low:,}")
        if high is not None and count > high:
            return Reason(f"max_{what}", f"{count:,} {what}; at most {high:,}")
        return None

    def _language(self, text: str) -> Reason | None:
        config = self._config
        if self._identify is None or config.languages is None:
            return None
        start = max(0, (len(text) - config.language_characters) // 2)
        language, sure = self._identify(text[start : start + config.language_characters])
        if language not in config.languages:
            return Reason("languages", f"it reads as {language!r}, {sure:.3f} sure")
        if sure < config.min_language_score:
            return Reason("min_language_score", f"{language!r} is only {sure:.3f} sure")
        return None


def alphabetic_share(text: str) -> float:
    """Letters among the characters that are not white space; 0 where there are none."""
    solid = "".join(text.split())
    return sum(map(str.isalpha, solid)) / len(solid) if solid else 0.0


def repeated_line_share(text: str) -> float:
    """Lines that repeat an earlier one among those that hold anything; 0 where there are none."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    return 1 - len(set(lines)) / len(lines) if lines else 0.0
