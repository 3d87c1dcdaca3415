"""Tuning data of students: the engine's own tokens, who is left out and why, what is held out."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from data_gen.engines import Request
from data_gen.engines.transformers import TransformersEngine
from data_gen.fine_instructions.genericize import Genericize, GenericizeConfig
from data_gen.fine_instructions.instantiate import Instantiate, InstantiateConfig
from data_gen.fine_instructions.students import (
    Candidate,
    ChatParts,
    Example,
    Students,
    StudentsConfig,
    draw_examples,
    equal_shares,
)
from data_gen.methods import stage_of
from data_gen.stages.stage import run_stage
from ipt_jax.chains.tune import TuneConfig
from ipt_jax.core.configuration import parse_config
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record
from ipt_jax.core.tokenizers import load_tokenizer
from ipt_jax.data.encode import read_examples
from ipt_jax.data.sources import open_source
from ipt_jax.data.tasks import Task
from ipt_jax.models.lora import adapter_shapes
from tests.data_gen.analysis.scripted import ScriptedEngine
from tests.data_gen.fine_instructions.stages import records_of, rejected_of, write_shards
from tests.launching import ROOT

QUERIES = [
    "  what effects does gout have on the heart?",
    "Solve the equation x + 2 = 5 for a child\n\nof ten",
    "Wie alt ist Köln? 🙂",
    "Write a python function about <|im_end|> please",
    *(f"How far is town {n} from here?" for n in range(36)),
]
LAST = " ... and the end of it all."
REPLIES = {
    "gen": lambda query: {
        "template": query.strip().rpartition(" ")[0] + " <fi>a thing</fi>",
        "compatible_document_description": "An article with facts: é.",
    },
    "inst": lambda asked: {
        "instruction": "What of it?", "answer": f"So: <excerpt>The document<...>{LAST}</excerpt>"
    } if "none" not in asked[:60] else None,
}  # fmt: skip


def teach(folder: Path) -> tuple[dict[str, Any], dict[str, list[Request]]]:
    """Shards of both teachers, and the requests by which a tuned model is asked, by id."""
    queries = [Record(f"q{n}", text, "gooaq") for n, text in enumerate(QUERIES)]
    documents = [
        Record(f"d{n}", f"The document {n} says “it” of code\n and 2 + {n}." + LAST, "news",
               provenance={"templates": [
                   {"id": f"t{k}", "text": text, "chunk": 0, "score": 0.9}
                   for k, text in enumerate(["none <fi>a</fi>", "Say <fi>a</fi> \"<fi>b</fi>\""])
               ]})
        for n in range(30)
    ]  # fmt: skip
    asked: dict[str, list[Request]] = {}
    for name, config, records in (
        ("gen", GenericizeConfig(form="tuned"), queries),
        ("inst", InstantiateConfig(form="published", same_language=False,
                                                tokenizer="mistral-7b-v0.1"), documents),
    ):  # fmt: skip
        engine = ScriptedEngine(lambda asked, name=name: json.dumps(REPLIES[name](asked)))
        given = [write_shards(folder / f"{name}-in", records)]
        made: Any = replace(config, input=given, output=str(folder / name))
        run_stage(stage_of(made), engine=engine)
        asked[name] = engine.asked
    shards = folder / "inst/shards"
    return {
        "genericizer": {"input": [str(folder / "gen/shards/templates")]},
        "instantiator": {
            "input": [str(shards / "pairs"), str(shards / "null")],
            "documents": [str(shards / "raw")],
        },
    }, asked  # fmt: skip


@pytest.fixture(scope="module")
def engine(smollm2: Path) -> TransformersEngine:
    return TransformersEngine(smollm2)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return teach(tmp_path_factory.mktemp("taught"))


def config_of(
    taught: Any, smollm2: Path, output: Path, student: Any, **more: Any
) -> StudentsConfig:
    given = {"null_share": 0.5, "held_out_share": 0.0, "tokenizer": str(smollm2), **more}
    return StudentsConfig(student=student, output=str(output), **taught[0][student], **given)


@pytest.mark.parametrize(("student", "teacher"), [("genericizer", "gen"), ("instantiator", "inst")])
def test_a_prompt_has_the_tokens_that_the_engine_sends(
    taught: Any,
    smollm2: Path,
    engine: Any,
    tmp_path: Path,
    student: str,
    teacher: str,
) -> None:
    config = config_of(taught, smollm2, tmp_path / "out", student)
    summary = run_stage(Students(config))
    records = records_of(tmp_path / "out/shards")
    assert len(records) == summary["out"] == len(taught[1][teacher]) - (student == "genericizer")
    sent = {one.id.rpartition("/")[0]: engine._row(one).prompt_ids for one in taught[1]["gen"]}
    sent |= {one.id.replace("/", "#"): engine._row(one).prompt_ids for one in taught[1]["inst"]}
    said = {one.id.rpartition("/")[0]: one.prompt[0].content for one in taught[1]["gen"]}
    said |= {one.id.replace("/", "#"): one.prompt[0].content for one in taught[1]["inst"]}
    # As the trainer reads them, with the shipped mixture's task.
    mixture = yaml.safe_load((ROOT / f"configs/mixtures/fi_{student}.yaml").read_text())
    (fields,) = mixture["tasks"].values()
    task = Task("t", **{**fields, "source": str(tmp_path / "out/shards")})
    tokenizer = load_tokenizer(str(smollm2))
    read = read_examples(open_source(task), task, tokenizer, range(len(records)))
    tokens = 0
    for record, trained in zip(records, read, strict=True):
        name = record.provenance["parents"][0].removeprefix("fi_templates/")
        ids, loss = trained.tokens.tolist(), np.asarray(trained.loss).tolist()
        tokens += len(ids)
        border = loss.index(1)
        assert ids[:border] == sent[name] and set(loss[border:]) == {1}
        assert ids[-1] in engine._end_ids and ids[-1] not in ids[border:-1]
        assert json.loads(tokenizer.decode(ids[border:-1])) == REPLIES[teacher](said[name])
        assert record.text.endswith("<|im_end|>") and record.source == student
    assert tokens == summary["tokens"]


def test_each_record_is_kept_or_told_of_and_what_is_held_out_is_a_corpus(
    taught: Any, smollm2: Path, tmp_path: Path
) -> None:
    chat = ChatParts(str(smollm2), True)
    everything = Students(config_of(taught, smollm2, tmp_path / "x", "genericizer"))._examples
    counts = [chat.count(one.asked, one.reply) for one in everything.read(range(len(QUERIES)))]
    longest = max(one for one in counts if isinstance(one, int))
    more = {"held_out_share": 0.3, "sequence_tokens": longest - 1, "examples": 12}
    config = config_of(taught, smollm2, tmp_path / "gen", "genericizer", **more)
    summary = run_stage(Students(config))
    reasons = rejected_of(tmp_path / "gen")
    assert summary["in"] == len(QUERIES) == summary["out"] + summary["rejected"]
    assert summary["reasons"] == Counter(reasons.values()) and summary["out"] == 12
    assert reasons.keys() | {one.provenance["parents"][0] for one in records_of(
        tmp_path / "gen/shards"
    )} == {f"fi_templates/q{n}" for n in range(len(QUERIES))}  # fmt: skip
    assert reasons["fi_templates/q3"] == "control_text" and reasons["fi_templates/q1"] == "too_long"
    lines = [json.loads(one) for one in (tmp_path / "gen/held_out.jsonl").open()]
    held_out = {one["id"] for one in lines}
    told = [name for name, why in reasons.items() if why == "held_out"]
    assert held_out == {name.rpartition("/")[2] for name in told}
    assert 4 < len(held_out) == summary["held_out"] < 25
    # The student is tried on them as its teacher was.
    engine = ScriptedEngine(lambda asked: json.dumps(REPLIES["gen"](asked)))
    tried = GenericizeConfig(input=[str(tmp_path / "gen/held_out.jsonl")], form="tuned",
                             output=str(tmp_path / "tried"))  # fmt: skip
    assert run_stage(Genericize(tried), engine=engine)["templates"] == len(held_out)


def test_no_pair_of_a_document_that_is_held_out_is_tuned_on_and_a_stopped_run_goes_on(
    taught: Any, smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"held_out_share": 0.3, "null_share": 0.2, "records_per_shard": 4, "stratify": True}
    config = config_of(taught, smollm2, tmp_path / "whole", "instantiator", **more)
    summary = run_stage(Students(config))
    kept = records_of(tmp_path / "whole/shards")
    lines = [json.loads(one) for one in (tmp_path / "whole/held_out.jsonl").open()]
    documents = {one.provenance["parents"][0].partition("#")[0] for one in kept}
    assert documents | {one["id"] for one in lines} == {f"d{n}" for n in range(30)}
    assert len(documents) + len(lines) == 30 and len(lines) > 3
    # A quarter of the pairs is a fifth of all.
    null = sum(one.text.endswith("assistant\nnull<|im_end|>") for one in kept)
    assert summary["null"] == round(len(documents) / 4) == null
    assert sum(summary["strata_kept"].values()) == len(kept) == summary["out"]
    tried = InstantiateConfig(
        input=[str(tmp_path / "whole/held_out.jsonl")], form="published", same_language=False,
        tokenizer="mistral-7b-v0.1", output=str(tmp_path / "tried"),
    )  # fmt: skip
    engine = ScriptedEngine(lambda asked: json.dumps(REPLIES["inst"](asked)))
    assert run_stage(Instantiate(tried), engine=engine)["templates_asked"] == 2 * len(lines)

    real, done = Students._record, list[str]()

    def stopping(self: Students, example: Example) -> Record:
        if len(done) == 9:
            raise KeyboardInterrupt
        done.append(example.record.id)
        return real(self, example)

    stopped = replace(config, output=str(tmp_path / "stopped"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Students, "_record", stopping)
        run_stage(Students(stopped))
    again = run_stage(Students(stopped))
    assert {**again, "seconds": 0} == {**summary, "seconds": 0}
    assert records_of(tmp_path / "stopped/shards") == kept


@given(st.dictionaries(st.text("abcdef", max_size=2), st.integers(1, 40)), st.integers(0, 200))
def test_strata_get_as_equal_shares_as_can_be(sizes: dict[str, int], wanted: int) -> None:
    shares = equal_shares(sizes, wanted)
    assert sum(shares.values()) == min(wanted, sum(sizes.values()))
    assert all(0 <= shares[name] <= size for name, size in sizes.items())
    rich = [shares[name] for name, size in sizes.items() if shares[name] < size]
    assert not rich or min(rich) >= max(shares.values()) - 1


def test_draws_depend_on_no_order_and_null_has_its_share() -> None:
    strata = {"a": 50, "b": 8, "c": 2}
    answers = [
        Candidate(row * 7919 % 101, row, f"r{row}", False, name, 9)
        for row, name in enumerate(name for name, size in strata.items() for _ in range(size))
    ]
    nulls = [Candidate(row % 13, row, f"r{row}", True, "n", 9) for row in range(60, 100)]
    config = StudentsConfig(examples=40, null_share=0.25, stratify=True)
    kept = draw_examples([*answers, *nulls], config)
    assert Counter(one.stratum for one in kept) == {"a": 20, "b": 8, "c": 2, "n": 10}
    assert kept == draw_examples([*nulls, *answers][::-1], config)
    assert [one.row for one in kept] == sorted(one.row for one in kept)
    alike = draw_examples([*answers, *nulls], replace(config, stratify=False))
    assert 22 <= Counter(one.stratum for one in alike)["a"] <= 28
    assert len(draw_examples([*answers[:6], *nulls], config)) == 8
    assert len(draw_examples(answers, config)) == 40  # none is kept free for what is not there


@pytest.mark.parametrize(
    ("about", "template", "stratum"),
    [
        ("What is 3 + 4?", "What is <fi>a sum</fi>?", "64+ tokens, 1+ tags, math"),
        ("Solve x by algebra in C++.", "<fi>a</fi>" * 3, "64+ tokens, 2+ tags, code"),
        ("Who wrote Emma in 1815?", "<fi>a</fi>" * 20, "64+ tokens, 8+ tags, other"),
        ("The scriptures of the gitana", "", "64+ tokens, 1+ tags, other"),
    ],
)
def test_strata(about: str, template: str, stratum: str) -> None:
    example = Example(Record("r", "x", "s"), "x", "y", template, about, {})
    assert (example.stratum(64), example.stratum(127)) == (stratum, stratum)


def refused(make: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        make()
    return caught.value


def test_what_cannot_be_learned_of_is_refused(taught: Any, smollm2: Path, tmp_path: Path) -> None:
    config = config_of(taught, smollm2, tmp_path / "out", "genericizer")
    assert refused(lambda: replace(config, student="instantiator")).key == "documents"
    other = replace(config, input=taught[0]["instantiator"]["input"])
    error = refused(lambda: run_stage(Students(other)))
    assert (error.key, error.record) == ("input", "d0#1")


def with_chat_template(smollm2: Path, folder: Path, template: str | None) -> str:
    folder.mkdir()
    for path in smollm2.iterdir():
        if "chat_template" not in path.name:
            (folder / path.name).symlink_to(path)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return str(folder)


def test_turns_end_as_the_bases_own_chat_template_ends_them(smollm2: Path, tmp_path: Path) -> None:
    bare = with_chat_template(smollm2, tmp_path / "bare", None)
    assert refused(lambda: ChatParts(bare, True)).path == Path(bare)
    assert ChatParts(bare, False)("asked", "reply") == (
        ("asked", "reply", "<|im_end|>"), (0.0, 1.0, 1.0)
    )  # fmt: skip
    # As Llama 3's: tokens that are neither BOS nor EOS, and white space taken off.
    other = with_chat_template(
        smollm2, tmp_path / "other",
        "{% for m in messages %}<file_sep>{{ m.role }}<repo_name>\n\n{{ m.content | trim }}"
        "<|endoftext|>{% endfor %}{% if add_generation_prompt %}<file_sep>assistant<repo_name>\n\n"
        "{% endif %}",
    )  # fmt: skip
    chat = ChatParts(other, True)
    parts, loss = chat(" Why?\n", '{"a": 1}')
    head = ("<file_sep>", "user", "<repo_name>", "\n\nWhy?", "<|endoftext|>", "<file_sep>")
    assert parts == (*head, "assistant", "<repo_name>", "\n\n", '{"a": 1}', "<|endoftext|>")
    assert loss == (0.0,) * 9 + (1.0, 1.0)
    ids, owners = chat.tokenizer.encode_parts(parts, loss)
    assert chat.count(" Why?\n", '{"a": 1}') == len(ids)  # the engine's own for the prompt
    assert Counter(owners.tolist())[0] == Counter(owners.tolist())[10] == 1


@pytest.mark.parametrize("name", ["genericizer", "instantiator"])
def test_the_configs_lead_from_shards_to_an_adapter(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    for path in (f"configs/tune/fi_{name}.yaml", f"configs/tune/fi_{name}_smollm2.yaml"):
        config = parse_config(TuneConfig, ["--config", path], prog="x", description="")
        students, training = config.students, config.training
        assert students is not None and students.student == name
        assert students.sequence_tokens <= training.data.row_tokens
        assert training.data.packing == "best_fit"
        mixture = yaml.safe_load(Path(str(training.data.mixture)).read_text())
        (task,) = mixture["tasks"].values()
        assert task["source"] == "fi_students/shards" and task["encode"] == "parts"
        if training.adapter is not None:  # bfloat16
            shapes = adapter_shapes(training.model.decoder(), training.adapter)
            assert sum(map(math.prod, shapes.values())) * 2 < 12e6
        else:
            assert str(training.run_folder) == f"{mixture['root']}/train"
            assert mixture["root"] == str(config.folder)
