"""Who tells the domains of texts (App. F): a judge, or a list of words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Protocol

from data_gen.engines import Completion, SamplingParams
from data_gen.engines.replies import object_of
from data_gen.errors.shared import load_yaml
from data_gen.instruction_pretrain.collection import DOMAINS
from data_gen.stages.cached import Query, as_user
from ipt_jax.core.bounds import NotEmpty, OneOf, check_value
from ipt_jax.core.errors import UserError

OUR_KEYWORDS = Path(__file__).with_name("domain_words.yaml")
_WORDS = Annotated[
    dict[Annotated[str, OneOf(DOMAINS)], list[str]], NotEmpty("a list of words for each domain")
]
_WORD = re.compile(r"[a-z][a-z'-]*|[^\sa-z]+")
_DESCRIBED = {
    "encyclopedia": "articles of an encyclopedia about people, places, history or nature",
    "fiction": "stories, novels, plays, fairy tales",
    "academic_tests": "exam questions, exercises and passages of school tests",
    "trivia": "quizzes and collections of curious facts",
    "news": "reports on current events",
    "expert_materials": "papers, manuals, law, medicine, science, finance and trade writing",
    "social_media": "posts, comments, reviews, blogs, personal messages",
    "code": "programs and writing about programs",
}


class DomainClassifier(Protocol):
    """Gives each text the domains it belongs to, out of DOMAINS; none where it cannot tell."""

    name: str
    """For the tables."""
    failed: Counter[str]
    """Texts that it could not tell anything about, by reason; their sets are empty."""

    def classify(self, texts: Sequence[str]) -> list[set[str]]: ...


class Keywords:
    """Counts words of a list: transparent, needs no model, and knows no meaning. A baseline."""

    name = "keywords (a rough baseline)"

    def __init__(self, path: str | Path = OUR_KEYWORDS) -> None:
        """Raises UserError where the file is not a mapping of DOMAINS to lists of words."""
        self.failed: Counter[str] = Counter()
        self._domains: dict[str, list[str]] = {}
        for domain, words in _read(Path(path).expanduser()).items():
            for word in words:
                self._domains.setdefault(word.lower(), []).append(domain)

    def classify(self, texts: Sequence[str]) -> list[set[str]]:
        """The domain with the most different words of its list in the text, and those that have
        at least two and two thirds as many."""
        return [self._of(text) for text in texts]

    def _of(self, text: str) -> set[str]:
        hits: Counter[str] = Counter()
        for word in set(_WORD.findall(text.lower())):
            hits.update(self._domains.get(word, ()))
        if not hits:
            self.failed["no_word_of_the_list"] += 1
            return set()
        most = max(hits.values())
        return {d for d, n in hits.items() if n == most or (n >= 2 and 3 * n >= 2 * most)}


Ask = Callable[[Sequence[Query]], Mapping[str, Completion]]


class DomainJudge:
    """Asks a chat model, one text at a time."""

    name = "judge"

    def __init__(self, ask: Ask, max_tokens: int) -> None:
        """`ask` answers questions by name, as CachedEngine.ask does."""
        self.failed: Counter[str] = Counter()
        self._ask, self._max_tokens = ask, max_tokens

    def classify(self, texts: Sequence[str]) -> list[set[str]]:
        """Equal texts are asked about once."""
        names = {text: f"domains/{number}" for number, text in enumerate(dict.fromkeys(texts))}
        sampling = SamplingParams(max_tokens=self._max_tokens)
        completions = self._ask(
            [Query(name, as_user(domain_prompt(text)), sampling) for text, name in names.items()]
        )
        found = {text: parse_domains(completions[name]) for text, name in names.items()}
        self.failed.update(one for one in map(found.__getitem__, texts) if isinstance(one, str))
        return [set() if isinstance(one := found[text], str) else one for text in texts]


def domain_prompt(text: str) -> str:
    """The prompt, in our own words."""
    listed = "\n".join(f"{name}: {_DESCRIBED[name]}" for name in DOMAINS)
    return (
        "Say what kinds of source the text below belongs to. Name one; name more only where the "
        f"text plainly belongs to each.\n\nKinds:\n{listed}\n\n<<<TEXT\n{text.strip()}\nTEXT>>>"
        '\n\nReply with JSON alone, in this form:\n{"domains": ["..."]}\n'
    )


def parse_domains(completion: Completion) -> set[str] | str:
    """The domains, or why there are none: `engine_error`, `cut`, `no_json`, `several`,
    `no_domains`, `unknown_domain`."""
    found = object_of(completion)
    if isinstance(found, str):
        return found
    named = found.get("domains")
    if not isinstance(named, list) or not named:
        return "no_domains"
    domains = {str(name).strip().lower().replace(" ", "_") for name in named}
    return domains if domains <= set(DOMAINS) else "unknown_domain"


def _read(path: Path) -> dict[str, list[str]]:
    values = load_yaml(path, "list of words", "keywords")
    try:
        check_value(_WORDS, values, "words")
    except UserError as error:
        raise UserError(f"{path}: {error}", key=error.key, path=path) from error
    return values
