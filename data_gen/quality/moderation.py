"""Moderation: a list of patterns, and any classifier that gives each text a score."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from data_gen.errors.shared import load_yaml
from data_gen.quality.gate import Gate
from ipt_jax.core.bounds import Config
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record
from ipt_jax.core.rejection import Reason

DEFAULT_RULES = Path(__file__).with_name("moderation_rules.yaml")


class Classifier(Protocol):
    """Scores texts; the higher, the less a text should be trained on."""

    def __call__(self, texts: Sequence[str]) -> Sequence[float]:
        """One finite number for each text, in order."""
        ...


@dataclass(frozen=True)
class ModerationConfig(Config):
    """What the moderation gate rejects."""

    rules: str | None = str(DEFAULT_RULES)
    """YAML file of patterns, in the form of `data_gen/quality/moderation_rules.yaml`; null for
    none."""
    model: str | None = None
    """Folder of a Hugging Face text classifier (safetensors) whose scores are asked for; null for
    none."""
    labels: list[str] | None = None
    """The model's labels whose probabilities make the score, summed; null for all but its first."""
    threshold: float = 0.5
    """A text whose score is at least this is rejected as `classifier`."""
    batch_size: int = 32
    """Texts that the model reads at a time."""


def load_rules(path: str | Path) -> list[tuple[str, re.Pattern[str]]]:
    """Name and pattern of each rule, in order. Raises UserError naming file and rule."""
    path = Path(path).expanduser()
    refuse = partial(UserError, key="moderation.rules", path=path)
    content = load_yaml(path, "rule file", "moderation.rules")
    listed = content.get("rules") if isinstance(content, dict) else None
    if not isinstance(listed, list) or not listed:
        raise refuse(f"the rule file {path} holds no list `rules`: see {DEFAULT_RULES.name}.")
    rules: list[tuple[str, re.Pattern[str]]] = []
    for number, rule in enumerate(listed, 1):
        if not isinstance(rule, dict) or set(rule) != {"name", "pattern"}:
            said = f"rule {number} of {path} must have a `name` and a `pattern` alone."
            raise refuse(said, record=str(number))
        name = str(rule["name"])
        said = f"the pattern of rule {name!r} of {path}"
        try:
            pattern = re.compile(str(rule["pattern"]), re.IGNORECASE | re.VERBOSE)
        except re.error as error:
            raise refuse(f"{said} is no regular expression ({error}).", record=name) from error
        if pattern.search("") is not None:
            said += " matches an empty text, so that it would reject every record: correct it."
            raise refuse(said, record=name)
        rules.append((name, pattern))
    return rules


class ModerationGate(Gate):
    """Rejects a record in which a rule's pattern is found, or whose score is too high."""

    name = "moderation"

    def __init__(self, config: ModerationConfig, classifier: Classifier | None = None) -> None:
        """`classifier` replaces the model that `config` names."""
        if classifier is None and config.model is not None:
            classifier = load_classifier(config)
        self._rules = load_rules(config.rules) if config.rules is not None else []
        if not self._rules and classifier is None:
            raise UserError(
                "moderation has neither `rules` nor `model`: give one, or take it out of `gates`.",
                key="moderation",
            )
        self._classifier, self._threshold = classifier, config.threshold

    def check(self, records: Sequence[Record]) -> list[Reason | None]:
        verdicts = [self._by_rule(record.text) for record in records]
        left = [number for number, verdict in enumerate(verdicts) if verdict is None]
        if self._classifier is None or not left:
            return verdicts
        scores = self._classifier([records[number].text for number in left])
        if len(scores) != len(left):
            raise UserError(
                f"the moderation classifier gave {len(scores)} scores for {len(left)} texts: it "
                "must give one for each, in order.",
                key="moderation.model",
            )
        for number, score in zip(left, scores, strict=True):
            if not math.isfinite(score):
                raise UserError(
                    f"the moderation classifier gave {score} for the record "
                    f"{records[number].id!r}: it must give finite numbers.",
                    key="moderation.model",
                    record=records[number].id,
                )
            if score >= self._threshold:
                verdicts[number] = Reason("classifier", f"score {score:.4f}")
        return verdicts

    def _by_rule(self, text: str) -> Reason | None:
        for name, pattern in self._rules:
            found = pattern.search(text)
            if found is not None:
                return Reason(name, f"at character {found.start()}: {found.group()[:100]!r}")
        return None


def load_classifier(config: ModerationConfig) -> Classifier:
    """The text classifier in the folder `config.model`, on CPU or the first GPU.

    Raises UserError where there is no such folder, it cannot be loaded, or lacks a label.
    """
    import torch
    from transformers import pipeline

    folder = Path(config.model or "").expanduser()
    refuse = partial(UserError, key="moderation.model", path=folder)
    if not (folder / "config.json").is_file():
        raise refuse(f"there is no model folder {folder}: correct `moderation.model`.")
    try:
        model: Any = pipeline(
            "text-classification",
            str(folder),
            device="cuda" if torch.cuda.is_available() else "cpu",
            model_kwargs={"use_safetensors": True},
            trust_remote_code=False,
            top_k=None,
            function_to_apply="softmax",
        )
    except (OSError, ValueError, KeyError) as error:
        raise refuse(
            f"the classifier in {folder} cannot be loaded ({error}): give a folder with a "
            "tokenizer and safetensors weights."
        ) from error
    names = list(model.model.config.id2label.values())
    wanted = config.labels if config.labels is not None else names[1:]
    missing = [label for label in wanted if label not in names]
    if missing or not wanted:
        raise UserError(
            f"the classifier in {folder} has the labels {', '.join(names)}, not "
            f"{', '.join(missing) or 'none'}: correct `moderation.labels`.",
            key="moderation.labels",
            path=folder,
        )

    def classify(texts: Sequence[str]) -> list[float]:
        found = model(list(texts), batch_size=config.batch_size, truncation=True)
        return [sum(one["score"] for one in of if one["label"] in wanted) for of in found]

    return classify
