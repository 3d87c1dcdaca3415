"""Domains: the scores of App. F on known sets, the list of words, the judge's replies."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_gen.engines import Completion, EngineConfig
from data_gen.instruction_pretrain.analysis.domain_scores import (
    collection_distribution,
    domain_distribution,
    domain_scores,
)
from data_gen.instruction_pretrain.analysis.domains import DomainJudge, Keywords, parse_domains
from data_gen.instruction_pretrain.collection import DATASETS, DOMAINS
from data_gen.stages.cached import CachedEngine
from ipt_jax.core.errors import UserError
from tests.data_gen.analysis.scripted import ScriptedEngine


def test_coverage_and_overlap_are_the_appendix_s() -> None:
    found = domain_scores(
        [
            ({"news"}, [{"news"}, {"code"}]),  # coverage 1, overlap 1/2
            ({"news", "fiction"}, [{"news"}, set()]),  # coverage 1/2, overlap 1/2
            ({"news", "fiction"}, [{"news"}, {"fiction"}]),  # 1, 1
            ({"trivia"}, []),  # 0, 0
            (set(), [{"news"}]),  # in no mean
        ]
    )
    assert found.coverage == pytest.approx(2.5 / 4)
    assert found.coverage_multi_domain == pytest.approx(1.5 / 2)
    assert found.overlap == pytest.approx(2 / 4)
    assert (found.texts, found.texts_multi_domain, found.texts_without_domain) == (4, 2, 1)
    none = domain_scores([(set(), [])])
    assert none.coverage is none.coverage_multi_domain is none.overlap is None


def test_a_distribution_adds_up_to_one() -> None:
    found = domain_distribution([{"news"}, {"news", "code"}, set()])
    assert found["news"] == 0.75 and found["code"] == 0.25 and found["trivia"] == 0.0
    assert sum(share or 0 for share in found.values()) == 1.0
    assert set(domain_distribution([]).values()) == {None}


def test_the_row_of_the_collection_counts_data_sets() -> None:
    domains = [d.domain for d in DATASETS.values() if not d.unseen and d.domain in DOMAINS]
    found = collection_distribution()
    assert sum(share or 0 for share in found.values()) == pytest.approx(1)
    assert found["fiction"] == pytest.approx(domains.count("fiction") / len(domains))


def test_words_point_to_domains() -> None:
    words = Keywords()
    texts = [
        "def main(): return sql.compile(array) # debug the loop",
        "Police said on Monday the president's campaign had ended, officials reported.",
        "Qwrt zxcv.",
    ]
    assert words.classify(texts) == [{"code"}, {"news"}, set()]
    assert words.failed == {"no_word_of_the_list": 1}


def test_a_list_of_one_s_own_and_its_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "words.yaml"
    path.write_text("news: [alpha, beta, gamma]\ncode: [delta, epsilon]\n")
    words = Keywords(path)
    # Three of news, two of code: both count; two and one: only the first.
    assert words.classify(["alpha beta gamma delta epsilon", "Alpha, beta delta"]) == [
        {"news", "code"},
        {"news"},
    ]
    for text, says in (
        ("weather: [rain]", "words.weather='weather': there is no such"),
        ("news: rain", "words.news='rain': must be a list"),
        ("[]", "words=.*: must be a mapping"),
        ("news: [", "cannot be read"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=says):
            Keywords(path)


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ('{"domains": ["News", "social media"]}', {"news", "social_media"}),
        ('{"domains": ["sports"]}', "unknown_domain"),
        ('{"domains": []}', "no_domains"),
        ("news", "no_json"),
    ],
)
def test_the_judge_s_replies(reply: str, found: set[str] | str) -> None:
    assert parse_domains(Completion("", reply, "stop", 1, 1)) == found


def test_the_judge_is_asked_about_equal_texts_once(tmp_path: Path) -> None:
    engine = ScriptedEngine(
        lambda prompt: "?" if "beta" in prompt else '{"domains": ["code", "news"]}'
    )
    judge = DomainJudge(CachedEngine("judge", EngineConfig(), tmp_path, engine).ask, 20)
    both = {"code", "news"}
    assert judge.classify(["alpha", "beta", "alpha", "beta"]) == [both, set(), both, set()]
    assert judge.failed == {"no_json": 2} and len(engine.asked) == 2
    assert all(f"{name}:" in engine.asked[0].prompt[0].content for name in DOMAINS)  # type: ignore[union-attr]
