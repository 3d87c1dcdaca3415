"""A synthesised corpus measured: pairs read back, the judge, contamination, what is absent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from data_gen.engines import EngineConfig
from data_gen.instruction_pretrain.analysis.config import CorpusAnalysis
from data_gen.instruction_pretrain.analysis.corpus import analyse_corpus
from data_gen.instruction_pretrain.analysis.histograms import histogram
from data_gen.instruction_pretrain.analysis.synthesized import SynthesizedTexts
from data_gen.instruction_pretrain.config import SynthesisConfig
from data_gen.instruction_pretrain.formats import CONTEXT_CLOSE
from data_gen.methods import synthesize
from data_gen.quality.decontaminate import DecontaminateConfig
from data_gen.quality.evaluations import EvaluationFile
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import RecordSource
from ipt_jax.core.report.figures import Histogram
from tests.data_gen.analysis.scripted import ScriptedEngine

LEAK = "Which evaluation example has found its way into the pairs that were synthesized here?"


def write_pairs(prompt: str) -> str | None:
    """Two pairs, one with a repetition; no pair for texts with an odd number of letters."""
    text = prompt.removesuffix(f" {CONTEXT_CLOSE}\n\n").rpartition("<CON> ")[2]
    if len(text) % 2:
        return "nothing"
    leak = f"<QUE> {LEAK} <ANS> This. </END>\n\n" if "leak" in text else ""
    first = f"<QUE> How does it begin? <ANS> {text[:20].strip()} </END>"
    return f"{leak}{first}\n\n<QUE> And? <ANS> On. </END>\n\n{first}"


@pytest.fixture(scope="module")
def synthesis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthesis")
    corpus = folder / "corpus.jsonl"
    texts = [f"Text {n} about police and the president{' leaks' * (n == 10)}." for n in range(60)]
    texts = [text + "x" * (n % 3) for n, text in enumerate(texts)]
    lines = [json.dumps({"id": f"d{n}", "text": text}) for n, text in enumerate(texts)]
    corpus.write_text("\n".join(lines))
    settings = SynthesisConfig(
        input=[str(corpus)], output=str(folder / "out"), fraction=0.8, rounds=3, seed=5
    )
    synthesize(settings, engine=ScriptedEngine(write_pairs))
    return folder / "out"


def test_pairs_are_read_back_as_they_went_into_the_shards(synthesis: Path) -> None:
    corpus = SynthesizedTexts(synthesis)
    found = {text.id: text for text in corpus.read(range(len(corpus)))}
    summary = corpus.summary
    assert len(found) == 48
    assert sum(len(text.parsed.pairs) for text in found.values()) == summary["pairs"]
    kept = [text for text in found.values() if text.parsed.pairs]
    assert len(kept) == summary["documents_augmented"] and 0 < len(kept) < 48
    records = RecordSource(synthesis / "shards" / "augmented")
    for record in records.read(range(len(records))):
        documents = [found[name] for name in record.provenance["parents"]]
        assert record.provenance["pairs"] == sum(len(d.parsed.pairs) for d in documents)
        for document in documents:
            assert document.text in record.text
            assert all(pair.response in record.text for pair in document.parsed.pairs)


def test_draws_are_of_whole_chains_and_repeat(synthesis: Path) -> None:
    corpus = SynthesizedTexts(synthesis)
    assert [t.id for t in corpus.draw(7, 1)] == [t.id for t in corpus.draw(7, 1)]
    assert [t.id for t in corpus.draw(7, 1)] != [t.id for t in corpus.draw(7, 2)]
    assert len(corpus.draw(7, 1)) == 7 and len(corpus.draw(1000, 1)) == 48


def test_a_folder_that_was_changed_is_refused(synthesis: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(synthesis, copy)
    summary = json.loads((copy / "summary.json").read_text())
    for changes, says in (
        ({"seed": 6}, r"in samples\.json are not what ledger"),
        ({"fraction": 0.01}, "not what ledger"),
        ({"rounds": 1}, "turn 1 of chain-00000000 is not what ledger"),
        ({"method": "genqa/1"}, "not of instruction_pretrain but of 'genqa/1'"),
    ):
        changed = {**summary, "fingerprint": {**summary["fingerprint"], **changes}}
        (copy / "summary.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=says):
            SynthesizedTexts(copy)
    (copy / "summary.json").write_text(json.dumps(summary))
    (copy / "ledger.sqlite").unlink()
    with pytest.raises(UserError, match=r"ledger\.sqlite is gone"):
        SynthesizedTexts(copy)
    with pytest.raises(UserError, match=r"summary\.json cannot be read"):
        SynthesizedTexts(tmp_path)


def test_without_judge_and_evaluations_their_tables_are_absent(
    synthesis: Path, tmp_path: Path
) -> None:
    report = analyse_corpus(CorpusAnalysis(synthesis=str(synthesis), output=str(tmp_path / "out")))
    assert [one.what for one in report.absent] == [
        "Table 6 (accuracy, relevance, categories)",
        "Figure 6 (task scenarios)",
        "Table 10 (people's judgement)",
        "Table 9 (contamination)",
    ]
    assert not any(table.title.startswith(("Table 6", "Table 9")) for table in report.tables)
    found = report.measured["statistics"]
    count = report.measured["documents_augmented"]
    assert report.measured["texts_judged"] == count
    assert found["with_pairs_share"] == pytest.approx(count / 48)
    # The repetition is written and not kept.
    assert found["pairs"] - report.measured["pairs"] == count
    assert found["pairs_kept_per_text"] == pytest.approx(report.measured["pairs"] / 48)
    assert found["repeated_share"] == pytest.approx(count / found["pairs"])
    assert report.measured["domains"]["coverage"] is not None
    kept = next(h for h in report.figures if h.title == "Pairs kept of each text")
    assert isinstance(kept, Histogram) and kept.counts[0] == 48 - count and sum(kept.counts) == 48
    lines = (tmp_path / "out" / "generations.jsonl").read_text().splitlines()
    assert len(lines) == count
    assert len(report.samples) == 8


def test_a_judge_gives_table_6_and_figure_6(synthesis: Path, tmp_path: Path) -> None:
    def judge(prompt: str) -> str:
        if "Kinds:" in prompt:
            return '{"domains": ["news"]}'
        if "And?" in prompt:
            return '{"relevant": 1, "accurate": 0, "category": "Mathematics"}'
        if LEAK in prompt:
            return "I cannot say."
        return '{"relevant": 1, "accurate": 1, "category": "Question Answering"}'

    settings = CorpusAnalysis(
        synthesis=str(synthesis), output=str(tmp_path / "out"), judge=EngineConfig(),
        domains="judge", corpus="made up",
    )  # fmt: skip
    engine = ScriptedEngine(judge)
    report = analyse_corpus(settings, engines={"judge": engine})
    judged = report.measured["judged"]
    assert judged["without_verdict"] == {"no_json": 1}
    assert judged["judged"] == report.measured["pairs"] - 1
    assert (judged["accuracy"], judged["relevance"]) == (0.5, 1.0)
    table = next(t for t in report.tables if t.title.startswith("Table 6"))
    assert table.rows[0][1:4] == ("50.0", "100.0", "2")
    assert table.rows[1][1:4] == ("77.5", "92.9", "49")
    assert report.measured["domains"]["overlap"] == 1.0
    assert report.measured["domains"]["classifier"] == "judge"
    asked = len(engine.asked)
    assert analyse_corpus(settings, engines={"judge": engine}).measured == report.measured
    assert len(engine.asked) == asked


def test_contamination_of_raw_texts_and_of_pairs(synthesis: Path, tmp_path: Path) -> None:
    chosen = {t.id for t in SynthesizedTexts(synthesis).draw(100, 0) if t.parsed.pairs}
    assert "d10" in chosen  # its pairs hold the leak
    evaluations = tmp_path / "arc.jsonl"
    examples = [LEAK, "Text 9 about police and the president.", "Nowhere is this to be found."]
    evaluations.write_text("\n".join(json.dumps({"question": one}) for one in examples))
    report = analyse_corpus(
        CorpusAnalysis(
            synthesis=str(synthesis),
            output=str(tmp_path / "out"),
            contamination=DecontaminateConfig(
                evaluations=[EvaluationFile("ARC-e", str(evaluations))]
            ),
        )
    )
    table = next(t for t in report.tables if t.title == "Table 9: contamination")
    assert table.header == ("", "ARC-e")
    assert [row[1] for row in table.rows] == ["3", "1", "2", "1"]
    theirs = next(t for t in report.tables if t.title == "Table 9 in the paper")
    assert [row[-1] for row in theirs.rows] == ["14,042", "20", "22", "2"]


def test_a_histogram_holds_every_value() -> None:
    few = histogram("t", [0, 0, 2, 3], "x", "y", ((2, "mean"), (99, "far")))
    assert few.edges == (0.0, 1.0, 2.0, 3.0, 4.0) and few.counts == (2, 0, 1, 1)
    assert few.marks == ((2, "mean"),)
    many = histogram("t", [*range(1000), 50_000], "x", "y")
    assert sum(many.counts) == 1001 and len(many.counts) <= 41
    assert many.x_label == "x (last column: up to 50,000)"
    assert sum(histogram("t", [], "x", "y").counts) == 0
