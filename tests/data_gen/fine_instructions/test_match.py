"""Documents matched with templates: who gets what, and what is refused."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_gen.corpus import Document, read_corpus
from data_gen.embedding.build_index import IndexConfig
from data_gen.embedding.embedder import EncoderConfig, HashedWords
from data_gen.embedding.store import write_vectors
from data_gen.engines.config import RayConfig
from data_gen.fine_instructions.bank import Bank, BankConfig, build_bank
from data_gen.fine_instructions.calibrate import CALIBRATE
from data_gen.fine_instructions.look_up import LookUp, RayLookUp
from data_gen.fine_instructions.match import FiMatch, MatchConfig
from data_gen.stages.stage import run_stage
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record, RecordSource, ShardWriter

pytest.importorskip("faiss", reason="ipt-jax[matching]")
ENCODER = EncoderConfig(model="hashed-words")
SUBJECTS = ["heart blood veins", "frogs toads ponds", "rates money banks", "stars planets moons"]


def write_templates(folder: Path, templates: list[Record]) -> Path:
    with ShardWriter(folder) as shards:
        for template in templates:
            shards.write(template)
    return folder


def template(number: int) -> Record:
    """Of one of the subjects: simple and from a forum, or, every eighth, from a chat, of 4 tags."""
    real = number % 8 == 0
    text = "How is <fi>thing</fi>" + " or <fi>other thing</fi>" * 3 * real
    told = {"documents": f"{SUBJECTS[number % 7 % 4]} text", "query_source": "x/WildChat-1M"}
    if not real:
        told["query_source"] = "reddit_qa"
    return Record(f"t{number}", f"{text} {number}?", "fi_templates", provenance=told)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 templates; `templates/` and `bank/` below."""
    folder = tmp_path_factory.mktemp("bank")
    templates = write_templates(folder / "templates", [template(n) for n in range(160)])
    config = BankConfig(output=str(folder / "bank"), templates=str(templates), encoder=ENCODER)
    made = build_bank(config)
    assert made["by_tags"] == {"1": 140, "4": 20}
    assert made["by_origin"] == {"x/WildChat-1M": 20, "reddit_qa": 140}
    assert build_bank(config) == made
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each begins with one subject and ends with another; one says nothing, one is of none."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    pairs = [(SUBJECTS[n % 4], SUBJECTS[(n + 1) % 4]) for n in range(40)]
    texts = [f"{first} text " * 6 + f"{last} text " * 6 for first, last in pairs]
    texts += ["?!", "wholly other things"]
    lines = [json.dumps({"id": f"d{n}", "text": text, "at": n}) for n, text in enumerate(texts)]
    path.write_text("\n".join(lines))
    return path


def config(folder: Path, corpus: Path, output: Path, **changed: Any) -> MatchConfig:
    settings = {"encoder": ENCODER, "threshold": 0.7, "batch": 3, "records_per_shard": 8}
    return MatchConfig(
        **{
            "input": [str(corpus)],
            "output": str(output),
            "templates": str(folder / "templates"),
            "bank": str(folder / "bank"),
            **settings,
            **changed,
        }
    )


def shards(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output / "shards" / "matched").iterdir()}


def records(output: Path) -> list[Record]:
    source = RecordSource(output / "shards" / "matched")
    return source.read(range(len(source)))


def test_documents_get_templates_of_what_their_parts_are_about(
    bank: Path, corpus: Path, tmp_path: Path
) -> None:
    summary = run_stage(FiMatch(config(bank, corpus, tmp_path)))
    assert (summary["documents_in"], summary["documents_augmented"]) == (42, 40)
    assert summary["plain_reasons"] == {"no_vector": 1, "no_template": 1}
    assert sum(summary["best_scores"].values()) == 41
    texts = {json.loads(line)["id"]: json.loads(line) for line in corpus.open()}
    subjects = {f"t{n}": SUBJECTS[n % 7 % 4] for n in range(160)}
    for record in records(tmp_path):
        given, told = texts[record.id], record.provenance["templates"]
        assert (record.text, record.provenance["metadata"]) == (given["text"], {"at": given["at"]})
        assert record.provenance["seen_characters"] == len(record.text)
        assert 0 < len({one["id"] for one in told}) == len(told) <= 6
        assert all(0.7 <= one["score"] <= 1.001 for one in told)
        assert [one["chunk"] for one in told] == sorted({one["chunk"] for one in told})
        for one in told:
            assert one["text"] == template(int(one["id"][1:])).text
            half = given["text"][: len(given["text"]) // 2]
            if one["chunk"] in (1, 5):
                assert (subjects[one["id"]] in half) == (one["chunk"] == 1)
    assert sum(summary["templates_by_chunk"].values()) == summary["templates"]
    assert {"1", "5"} <= summary["templates_by_chunk"].keys()
    # The next stage reads them as its corpus.
    read = list(read_corpus([str(tmp_path / "shards" / "matched")]))
    assert all(isinstance(one, Document) for one in read)
    assert (
        read[0].metadata["provenance"]["templates"] == records(tmp_path)[0].provenance["templates"]
    )


def test_templates_are_drawn_to_be_as_complex_as_real_ones(
    bank: Path, corpus: Path, tmp_path: Path
) -> None:
    shares = {}
    for weights in ("complexity", "none"):
        given = config(bank, corpus, tmp_path / weights, weights=weights)
        tags = run_stage(FiMatch(given))["templates_by_tags"]
        shares[weights] = tags.get("4", 0) / sum(tags.values())
    assert shares["complexity"] == 1 and 0.04 < shares["none"] < 0.25
    with pytest.raises(UserError) as refused:
        FiMatch(config(bank, corpus, tmp_path / "x", real_sources=["oasst1"]))
    assert refused.value.key == "real_sources"


def test_queries_that_talk_to_a_model_say_how_complex_real_ones_are(
    bank: Path, corpus: Path, tmp_path: Path
) -> None:
    told = [template(number) for number in range(160)]
    for one in told:
        one.provenance["talks_to_a_model"] = one.provenance.pop("query_source") == "x/WildChat-1M"
    place = write_templates(tmp_path / "templates", told)
    build_bank(BankConfig(output=str(tmp_path / "bank"), templates=str(place), encoder=ENCODER))
    run_stage(FiMatch(config(bank, corpus, tmp_path / "named")))
    run_stage(FiMatch(config(tmp_path, corpus, tmp_path / "said")))
    tags = [
        [[one["tags"] for one in record.provenance["templates"]] for record in records(output)]
        for output in (tmp_path / "named", tmp_path / "said")
    ]
    assert tags[0] == tags[1] and {4} == {tag for some in tags[0] for tag in some}


def test_what_is_no_documents_fault_stops_the_run(
    bank: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise MemoryError("no room")

    monkeypatch.setattr(LookUp, "find", broken)
    with pytest.raises(RuntimeError, match="no room"):
        run_stage(FiMatch(config(bank, corpus, tmp_path)))
    monkeypatch.undo()
    assert run_stage(FiMatch(config(bank, corpus, tmp_path)))["documents_augmented"] == 40


def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    bank: Path, corpus: Path, tmp_path: Path
) -> None:
    run_stage(FiMatch(config(bank, corpus, tmp_path / "whole")))
    stage = FiMatch(config(bank, corpus, tmp_path / "killed"))
    stage.open()
    work, seen = stage.work, list[str]()

    def until_the_fourth(unit: Any) -> Any:
        seen.append(unit.id)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return work(unit)

    stage.work = until_the_fourth
    with pytest.raises(KeyboardInterrupt):
        run_stage(stage)
    again, begun = FiMatch(config(bank, corpus, tmp_path / "killed")), list[str]()
    resumed = again.work
    again.work = lambda unit: (begun.append(unit.id), resumed(unit))[1]
    run_stage(again)
    assert "documents-000000000000" not in begun and seen[-1] in begun
    assert shards(tmp_path / "killed") == shards(tmp_path / "whole")


def test_vectors_of_a_store_are_found_by_id(bank: Path, corpus: Path, tmp_path: Path) -> None:
    class Texts(list[tuple[str, str]]):
        def read(self, numbers: Any, /) -> list[tuple[str, str]]:
            return [self[number] for number in numbers]

    found = [json.loads(line) for line in corpus.open()][:30]
    texts = Texts((one["id"], one["text"]) for one in reversed(found))
    write_vectors(tmp_path / "vectors", texts, HashedWords(), "texts")
    with_store = config(bank, corpus, tmp_path / "store", vectors=str(tmp_path / "vectors"))
    assert run_stage(FiMatch(with_store))["plain_reasons"] == {"no_vector": 12}
    run_stage(FiMatch(config(bank, corpus, tmp_path / "own")))
    told = [
        {record.id: record.provenance["templates"] for record in records(tmp_path / name)}
        for name in ("store", "own")
    ]
    assert len(told[0]) == 30 and told[0].items() <= told[1].items()
    assert {one.provenance["seen_characters"] for one in records(tmp_path / "store")} == {None}


def test_a_threshold_that_nothing_passes_gives_the_highest_scores(
    bank: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"text": "heart blood veins text and more"}))
    with pytest.raises(UserError) as refused:
        run_stage(FiMatch(config(bank, corpus, tmp_path / "run", threshold=0.99)))
    assert (refused.value.key, refused.value.advice) == ("threshold", CALIBRATE)
    best = HashedWords().embed(["heart blood veins text and more"])[0].astype(float)
    wanted = HashedWords().embed([f"{subject} text" for subject in SUBJECTS])[:, 0].astype(float)
    assert f"{np.floor((best @ wanted.T).max() * 100) / 100:.2f} (1 documents)" in str(
        refused.value
    )
    assert not (tmp_path / "run" / "summary.json").exists()


def test_banks_that_do_not_go_with_the_run_are_refused(
    bank: Path, corpus: Path, tmp_path: Path
) -> None:
    empty = write_templates(tmp_path / "empty", [])
    mute = write_templates(tmp_path / "mute", [Record("t", "a <fi>b</fi>", "x")])
    for templates, field, value in ((empty, "path", str(empty)), (mute, "record", "t")):
        made = BankConfig(output=str(tmp_path / "b"), templates=str(templates), encoder=ENCODER)
        with pytest.raises(UserError) as refused:
            build_bank(replace(made, fresh=True))
        assert (refused.value.key, getattr(refused.value, field)) == ("templates", value)
    with pytest.raises(UserError) as refused:
        Bank(bank / "bank", bank / "templates", "another")
    assert refused.value.key == "encoder.model"
    others = write_templates(tmp_path / "others", [template(n) for n in range(9)])
    for changed, key in (({"templates": str(others)}, "templates"), ({"bank": "none"}, "bank")):
        with pytest.raises(UserError) as refused:
            FiMatch(config(bank, corpus, tmp_path / "run", **changed))
        assert refused.value.key == key


def test_a_bank_may_be_compressed(bank: Path, tmp_path: Path) -> None:
    index = IndexConfig(exact_vectors=10, factory="IVF{lists},SQ8", measure_queries=8)
    config = BankConfig(
        output=str(tmp_path), templates=str(bank / "templates"), encoder=ENCODER, index=index
    )
    assert build_bank(config)["recall_reached"]
    found = Bank(tmp_path, bank / "templates", HashedWords().fingerprint)
    assert found.index.manifest["factory"] == "IVF4,SQ8" and len(found) == 160


@pytest.mark.slow
def test_actors_of_ray_find_the_same(
    bank: Path, corpus: Path, tmp_path: Path, ray_cluster: Any
) -> None:
    run_stage(FiMatch(config(bank, corpus, tmp_path / "here")))
    there = config(bank, corpus, tmp_path / "there", ray=RayConfig(actors=2, cpus_per_actor=0))
    stage = FiMatch(there)
    stage.open()
    ray_cluster.kill(stage._look_up._actors[0], no_restart=False)  # lost, and started again
    stage.open = lambda: None
    run_stage(stage)
    assert shards(tmp_path / "there") == shards(tmp_path / "here")
    with pytest.raises(UserError) as refused:
        missing = functools.partial(LookUp, ENCODER, tmp_path, "who", 5, "never")
        RayLookUp(missing, RayConfig(actors=1, cpus_per_actor=0))
    assert refused.value.path == tmp_path / "vectors"


@pytest.fixture
def ray_cluster() -> Any:
    ray = pytest.importorskip("ray", reason="Ray is an extra (ray)")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()
    made.shutdown()
