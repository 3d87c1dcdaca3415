"""What an instruction-augmented corpus holds: Tables 6, 9, 11, 12 and Figure 6, and its pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_gen.engines import Completion, Engine
from data_gen.instruction_pretrain.analysis.config import CorpusAnalysis
from data_gen.instruction_pretrain.analysis.contamination import Contamination, contamination_of
from data_gen.instruction_pretrain.analysis.corpus_tables import corpus_report
from data_gen.instruction_pretrain.analysis.domain_scores import (
    collection_distribution,
    domain_distribution,
    domain_scores,
)
from data_gen.instruction_pretrain.analysis.domains import (
    OUR_KEYWORDS,
    DomainClassifier,
    DomainJudge,
    Keywords,
)
from data_gen.instruction_pretrain.analysis.generations import (
    Generation,
    generation_statistics,
)
from data_gen.instruction_pretrain.analysis.pair_judge import (
    JudgedPairs,
    judge_question,
    judged_pairs,
    pair_verdicts,
)
from data_gen.instruction_pretrain.analysis.synthesized import SynthesizedText, SynthesizedTexts
from data_gen.stages.cached import CachedEngine, ProgressFactory, Query, silent
from data_gen.stages.measurement import GENERATIONS_NAME, Measurement
from ipt_jax.core.report.values import Sample

JUDGE = "judge"
_SHOWN = 8  # texts with pairs in the report


def analyse_corpus(
    config: CorpusAnalysis,
    *,
    engines: Mapping[str, Engine] | None = None,
    bars: ProgressFactory = silent,
    on_start: Callable[[Path], None] = lambda folder: None,
) -> Measurement:
    """Measure the folder `config.synthesis` and write `config.output`.

    `engines` (by `judge`) replace the one that the config names.

    Raises:
      UserError: the folder is no finished synthesis, or a model, words or evaluations are bad.
      RunStopped: the report is written, and too many requests failed.
    """
    corpus = SynthesizedTexts(config.synthesis)
    folder = Path(config.output).expanduser()
    judge = None
    if config.judge is not None:
        judge = CachedEngine(JUDGE, config.judge, folder, (engines or {}).get(JUDGE))
    on_start(folder)
    counted = corpus.draw(config.counted_texts, config.seed)
    chosen = [text for text in counted if text.parsed.pairs][: config.judged_texts]
    asked: list[tuple[Query, Completion]] = []

    def ask(questions: Sequence[Query], title: str = "domains") -> dict[str, Completion]:
        assert judge is not None
        found = judge.ask(questions, title, bars)
        asked.extend((question, found[question.name]) for question in questions)
        return found

    try:
        judged = None if judge is None else _judge(chosen, ask, judge.config.max_tokens)
        classifier: DomainClassifier
        if judge is not None and config.domains == JUDGE:
            classifier = DomainJudge(ask, judge.config.max_tokens)
        else:
            classifier = Keywords(config.keywords or OUR_KEYWORDS)
        domains = _domains(chosen, classifier)
    finally:
        if judge is not None:
            judge.close()
    contamination: Contamination | None = None
    if config.contamination.evaluations:
        contamination = contamination_of(corpus.folder, config.contamination)
    values: dict[str, Any] = {
        "corpus": config.corpus,
        "synthesizer": corpus.summary["model"],
        "documents_augmented": corpus.summary["documents_augmented"],
        "pairs": corpus.summary["pairs"],
        "texts_counted": len(counted),
        "texts_judged": len(chosen),
        "seed": config.seed,
        "statistics": _statistics(counted),
        "domains": domains,
    }
    if judged is not None and judge is not None:
        values["judged"] = {"judge": dict(judge.identity), **asdict(judged)}
    if contamination is not None:
        values["contamination"] = asdict(contamination)
    report = corpus_report(config, values, counted, contamination)
    report.samples += [
        Sample(text.id, [(text.text, [(p.question, p.answer) for p in text.parsed.pairs])])
        for text in chosen[:_SHOWN]
    ]
    report.write(folder, _lines(chosen, asked))
    if judge is not None:
        judge.failed.tell(judge.config.max_failed_share, folder / GENERATIONS_NAME)
    return report


def _judge(
    texts: Sequence[SynthesizedText],
    ask: Callable[[Sequence[Query], str], dict[str, Completion]],
    max_tokens: int,
) -> JudgedPairs:
    questions = [
        judge_question(f"pair/{text.id}/{place}", text.text, pair, max_tokens)
        for text in texts
        for place, pair in enumerate(text.parsed.pairs)
    ]
    return judged_pairs(pair_verdicts(questions, ask(questions, "pairs")))


def _domains(texts: Sequence[SynthesizedText], classifier: DomainClassifier) -> dict[str, Any]:
    """Texts and pairs in one call: a model is asked about all of them at once."""
    flat = [text.text for text in texts]
    flat += [f"{pair.question}\n{pair.answer}" for text in texts for pair in text.parsed.pairs]
    found = classifier.classify(flat)
    of_texts, of_pairs = found[: len(texts)], iter(found[len(texts) :])
    grouped = [[next(of_pairs) for _ in text.parsed.pairs] for text in texts]
    return {
        "classifier": classifier.name,
        "failed": dict(classifier.failed),
        **asdict(domain_scores(list(zip(of_texts, grouped, strict=True)))),
        "distribution": {
            "collection": collection_distribution(),
            "raw": domain_distribution(of_texts),
            "pairs": domain_distribution([one for of_text in grouped for one in of_text]),
        },
    }


def _statistics(texts: Sequence[SynthesizedText]) -> dict[str, Any]:
    """As of generations; tokens are the synthesizer's own, of whole completions."""
    generations = [Generation(text.text, text.generated, text.cut) for text in texts]
    found = asdict(generation_statistics(generations, lambda text: len(text.split())))
    found["words_per_pair"] = found.pop("tokens_per_pair")
    del found["same_formats_share"]  # shots of a corpus are texts of its own chains
    kept = sum(len(text.parsed.pairs) for text in texts)
    tokens = sum(text.completion_tokens for text in texts)
    found["pairs_kept_per_text"] = kept / len(texts) if texts else None
    found["tokens_per_pair"] = tokens / kept if kept else None
    return found


def _lines(
    texts: Sequence[SynthesizedText], asked: Sequence[tuple[Query, Completion]]
) -> Iterator[dict[str, Any]]:
    """What the synthesizer wrote, then what the judge said."""
    for text in texts:
        yield {
            "model": "synthesizer",
            "id": text.id,
            "completion": text.generated,
            "text": text.text,
        }
    for question, completion in asked:
        prompt = question.prompt if isinstance(question.prompt, str) else question.prompt[0].content
        yield {
            "model": JUDGE,
            "id": question.name,
            "completion": completion.text,
            "finish_reason": completion.finish_reason,
            "prompt": prompt,
        }
