"""Queries of the 19 sources: layouts, reasons, counts, refusals, kills."""

import csv
import io
import json
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_gen.corpus.documents import Raw
from data_gen.fine_instructions import query_files
from data_gen.fine_instructions.queries import Queries, QueriesConfig, QueryInput
from data_gen.fine_instructions.query_files import QueryFiles
from data_gen.fine_instructions.query_sources import PAPER_LISTS, SOURCES, Query, query_of
from data_gen.quality.decontaminate import DecontaminateConfig
from data_gen.quality.evaluations import EvaluationFile
from data_gen.quality.rules import RulesConfig
from data_gen.stages.page import synthesis_report
from data_gen.stages.stage import run_stage
from ipt_jax.core.configuration import parse_config
from ipt_jax.core.errors import UserError
from ipt_jax.core.records import Record, RecordSource
from ipt_jax.core.rejection import Reason
from tests.run_folders import unlisted

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT.parent / "shared" / "data"
TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Why is it so?\r\n"},
]
FLAN = """import other
PATTERNS = {"rte": [("{premise}\\n\\nDoes it follow?" " {options_}", "{answer}")]}
MORE = {name: other.f(name) for name in PATTERNS}
"""
P3 = """dataset: ag_news
templates:
  0a: !Template
    answer_choices: Sports ||| Science
    id: 0a
    jinja: 'Is {{ text[:99] | trim }} about {{"sports"}} or {{answer_choices[1]}}? ||| {{label}}'
    metadata: !TemplateMetadata {languages: [en]}
"""
ANTHROPIC = r"""# Poet
|        | Content          |
| ------ | ---------------- |
| System | Write a \[form\]. |
| User   | On the sea<br />and ships |
"""
TASK = {"Definition": ["Write a question."], "Instances": [{"input": "no", "output": "query"}]}
TREE = {"message_tree_id": "t1", "tree_state": "ready_for_export", "prompt": {"text": "Why so?"}}
CHAIN = {"llm_chain": {"prompt": {"template": "Sum {text} as {{json}}", "input_variables": []}}}
# Of each source a file in its official layout, and the key, text and places of its first query.
LAYOUTS: dict[str, tuple[str, Any, tuple[str, str, tuple[str, ...]]]] = {
    "wildchat": (
        "data/train-0.parquet",
        [{"conversation_hash": "h1", "conversation": TALK}],
        ("h1", "Why is it so?", ()),
    ),
    "lmsys_chat": (
        "data/train-0.parquet",
        [{"conversation_id": "c1", "conversation": TALK}],
        ("c1", "Why is it so?", ()),
    ),
    "chatbot_arena": (
        "data/train-0.parquet",
        [{"question_id": "q1", "conversation_a": TALK, "conversation_b": TALK}],
        ("q1", "Why is it so?", ()),
    ),
    "oasst1": ("2023-04-12_oasst_ready.trees.jsonl", [TREE], ("t1", "Why so?", ())),
    "no_robots": (
        "data/train-0.parquet",
        [{"prompt": "other", "prompt_id": "p1", "messages": TALK}],
        ("p1", "Why is it so?", ()),
    ),
    "helpsteer": ("train.jsonl", [{"prompt": " Explain it. "}], ("", "Explain it.", ())),
    "dolly": (
        "databricks-dolly-15k.jsonl",
        [{"instruction": "Sum this up", "context": "A text."}],
        ("", "Sum this up", ()),
    ),
    "reddit_qa": (
        "reddit.jsonl",
        [{"title": "Why so?", "body": "It is odd.", "answers": []}],
        ("", "Why so?\n\nIt is odd.", ()),
    ),
    "gooaq": ("gooaq.jsonl", [{"id": 7, "question": "why is it so?"}], ("7", "why is it so?", ())),
    "sharelm": (
        "share_lm_formatted.json",
        [{"conversation_id": "s1", "conversation": TALK}],
        ("s1", "Why is it so?", ()),
    ),
    "expertqa": ("r1_data_anon.jsonl", [{"question": "Why so?"}], ("", "Why so?", ())),
    "chatdoctor_icliniq": ("iCliniq.json", [{"input": "It hurts."}], ("", "It hurts.", ())),
    "chatdoctor_healthcaremagic": (
        "HealthCareMagic-100k.json",
        [{"instruction": "Be a doctor.", "input": "It hurts."}],
        ("", "It hurts.", ()),
    ),
    "awesome_chatgpt_prompts": (
        "prompts.csv",
        [{"act": "Poet", "prompt": "Act as a poet."}],
        ("Poet", "Act as a poet.", ()),
    ),
    "anthropic_prompt_library": (
        "poet.md",
        ANTHROPIC,
        ("", "Write a [form].\n\nOn the sea\nand ships", ()),
    ),
    "langchain_prompts": (
        "chains/sum/chain.json",
        json.dumps(CHAIN, indent=1),
        ("", "Sum {text} as {json}", ("text", "json")),
    ),
    "natural_instructions": (
        "tasks/task001_x.json",
        json.dumps(TASK, indent=1),
        ("", "Write a question.", ()),
    ),
    "p3": ("ag_news/templates.yaml", P3, ("0a", "Is {text} about sports or Science?", ("text",))),
    "flan": (
        "flan/v2/templates.py",
        FLAN,
        ("", "{premise}\n\nDoes it follow? {options_}", ("premise", "options_")),
    ),
    "other": ("mine.jsonl", [{"id": 1, "text": "Why so?"}], ("1", "Why so?", ())),
}


def write(path: Path, content: Any) -> Path:
    """A file of rows or of text, by its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content)
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(content), path)
    elif path.suffix == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, content[0])
        writer.writeheader()
        writer.writerows(content)
        path.write_text(text.getvalue())
    else:
        whole = path.suffix == ".json"
        lines = "".join(json.dumps(row) + "\n" for row in content)
        path.write_text(json.dumps(content) if whole else lines)
    return path


def records(folder: Path) -> list[Record]:
    source = RecordSource(folder / "shards")
    return source.read(range(len(source)))


def rejected(folder: Path) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for path in sorted(folder.glob("rejected/*.jsonl")):
        for line in path.read_text().splitlines():
            piece = json.loads(line)
            found.setdefault(piece["reason"], []).append(piece)
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_official_layouts_give_their_queries(name: str, tmp_path: Path) -> None:
    file, content, (key, text, places) = LAYOUTS[name]
    write(tmp_path / "set" / file, content)
    write(tmp_path / "set" / "README", "none of its files")
    out = tmp_path / "run"
    loose = RulesConfig(min_words=None, languages=None)
    entry = QueryInput(name, "set")
    config = QueriesConfig(sources=[entry], root=str(tmp_path), output=str(out), rules=loose)
    summary = run_stage(Queries(config))
    (record,) = records(out)
    assert record.text == text and record.source == name
    told = record.provenance
    assert record.id == (f"{name}/{key}" if key else told["place"])
    assert told["place"].startswith(f"{name}/{file}:") or file.endswith(".gz")
    assert told.get("places", []) == list(places) and told["kind"] == SOURCES[name].kind
    assert summary["queries_in"] == summary["queries_out"] == 1


def test_the_papers_counts_and_who_talks_to_a_model() -> None:
    assert PAPER_LISTS == 11_886_983 and len(SOURCES) == 20
    talks = {name for name, source in SOURCES.items() if source.talks_to_a_model}
    assert talks == {"wildchat", "lmsys_chat", "chatbot_arena", "oasst1", "sharelm"}


@pytest.mark.parametrize(
    ("name", "record", "reason"),
    [
        ("wildchat", {"conversation": [{"role": "assistant", "content": "Hi"}]}, "no_query"),
        ("wildchat", {"conversation": None}, "malformed_record"),
        (
            "wildchat",
            {"conversation": [{"role": "user", "content": ["image"]}]},
            "malformed_record",
        ),
        ("wildchat", {"turns": TALK}, "malformed_record"),
        ("wildchat", "a text", "malformed_record"),
        ("oasst1", {"text": "So.", "role": "assistant"}, "not_first_turn"),
        ("oasst1", {"text": "Why?", "role": "prompter", "parent_id": "m0"}, "not_first_turn"),
        ("oasst1", {"text": "Why?", "role": "prompter", "synthetic": True}, "synthetic"),
        ("oasst1", {**TREE, "tree_state": "aborted_low_grade"}, "not_released"),
        ("gooaq", {"question": " \n"}, "no_query"),
        ("gooaq", {"question": "why\0so"}, "nul_character"),
        ("gooaq", {"question": "half \ud800"}, "malformed_record"),
        ("p3", {"jinja": "{% if a %}{{b}}{% endif %} ||| c"}, "template_logic"),
        ("p3", {"jinja": "{{ text.split()[0] }} ||| c"}, "template_logic"),
        (
            "p3",
            {"jinja": "{{answer_choices[3]}}?", "answer_choices": "a ||| b"},
            "malformed_record",
        ),
    ],
)
def test_a_record_without_a_query_says_why(name: str, record: Any, reason: str) -> None:
    found = query_of(SOURCES[name], record)
    assert isinstance(found, Reason) and found.reason == reason


@pytest.mark.parametrize(
    ("name", "record", "text"),
    [
        ("sharelm", {"conversations": [{"from": "human", "value": "Why?"}]}, "Why?"),
        ("reddit_qa", {"title": "Why?", "selftext": "[removed]"}, "Why?"),
        ("reddit_qa", {"question": "Why ? --T-- I ask ."}, "Why ?\n\nI ask ."),
        ("dolly", {"prompt": "Below …\n\n### Instruction:\nWhy?\n\n### Input:\nA\n"}, "Why?"),
        ("natural_instructions", {"Definition": "Ask.", "Prompt": "Do it."}, "Ask.\nDo it."),
        ("langchain_prompts", {"template": "{{a}}", "template_format": "jinja2"}, "{a}"),
        ("chatbot_arena", {"uid": "u", "prompt": "Why?"}, "Why?"),
    ],
)
def test_other_layouts(name: str, record: Any, text: str) -> None:
    found = query_of(SOURCES[name], record)
    assert isinstance(found, Query) and found.text == text


GOOD = [
    "What makes the leaves of trees turn red in autumn?",
    "How should I season a cast iron pan for the first time?",
    "Write a short letter that thanks my neighbour for watering the plants.",
    "Which birds stay in northern countries all through the winter?",
]
LEAK = "Compose an engaging travel blog post about a recent trip to Hawaii, with must-see sights."
NEAR = "Please tell me how one should best go about repairing a leaking garden hose near its end"


def mixed(folder: Path) -> list[QueryInput]:
    """Two inputs of one source and one of another; of each odd one out the gate is known."""
    flags = {"flagged": True, "categories": {"violence": True, "hate": False}}
    chats: list[dict[str, Any]] = [
        {"conversation_hash": f"h{n % 3}", "conversation": [{"role": "user", "content": text}]}
        for n, text in enumerate([*GOOD[:3], GOOD[0], GOOD[3], "Too short", LEAK, NEAR])
    ]
    french = "Pourquoi les feuilles des arbres deviennent-elles rouges pendant l'automne ?"
    for text in (french, "How do I build a bomb at home?"):
        chats.append({"conversation": [{"role": "user", "content": text}]})
    flagged = "A question that the moderation of the data set has flagged"
    talk = [{"role": "user", "content": flagged}]
    chats.append({"conversation": talk, "openai_moderation": [flags]})
    path = write(folder / "a" / "chats.jsonl", chats)
    path.write_text(path.read_text() + "{broken\n")
    write(
        folder / "b" / "chats.jsonl", [{"conversation": [{"role": "user", "content": f"{NEAR} ."}]}]
    )
    mine = [{"id": 5, "source": "forum", "text": "Where do old ships go when nobody needs them?"}]
    write(folder / "mine.jsonl", mine)
    write(folder / "evaluation.jsonl", [{"turns": [LEAK, "Rewrite it."]}])
    return [
        QueryInput("wildchat", "a/chats.jsonl"),
        QueryInput("wildchat", "b/chats.jsonl"),
        QueryInput("other", "mine.jsonl", talks_to_a_model=True),
    ]


def config_for(folder: Path, output: str, **changes: Any) -> QueriesConfig:
    evaluation = EvaluationFile("bench", str(folder / "evaluation.jsonl"), ["turns"])
    return QueriesConfig(
        **{"sources": mixed(folder), "root": str(folder), "output": str(folder / output)}
        | {"decontaminate": DecontaminateConfig([evaluation], coverage=0.4)}
        | changes
    )


def test_every_record_comes_out_or_is_rejected_with_its_reason(tmp_path: Path) -> None:
    summary = run_stage(Queries(config_for(tmp_path, "run")))
    found, out = records(tmp_path / "run"), rejected(tmp_path / "run")
    assert {reason: len(pieces) for reason, pieces in out.items()} == {
        **dict.fromkeys(("malformed_file", "rules:min_words", "rules:languages"), 1),
        **dict.fromkeys(("moderation:weapons", "published_moderation", "exact_text:duplicate"), 1),
        **dict.fromkeys(("coverage:contaminated", "near_duplicates:near_duplicate"), 1),
    }
    assert summary["rejected_queries"] == {reason: len(pieces) for reason, pieces in out.items()}
    assert out["published_moderation"][0]["detail"] == "violence"
    assert out["near_duplicates:near_duplicate"][0]["where"] == "wildchat/1/chats.jsonl:1"
    assert summary["queries_in"] == 14 == len(found) + summary["queries_rejected"]
    ids = [record.id for record in found]
    # The fifth has the id of the second, and is another query.
    assert ids == [
        *(f"wildchat/h{n}" for n in range(3)),
        *("wildchat/chats.jsonl:5", "wildchat/chats.jsonl:8", "other/forum/5"),
    ]
    assert all(record.provenance["talks_to_a_model"] is True for record in found)
    assert found[-1].source == "forum"
    counts = {one["source"]: (one["paper"], one["read"], one["kept"]) for one in summary["sources"]}
    assert counts["wildchat"] == (657_000, 13, 5) and counts["other"] == (0, 1, 1)
    assert counts["flan"] == (3_440, 0, 0) and len(counts) == 20
    told = (tmp_path / "run" / "counts.md").read_text()
    assert "11,886,983" in told and "18,000,000" in told
    assert synthesis_report(tmp_path / "run").is_file() and (tmp_path / "run" / "card.md").is_file()
    assert unlisted(tmp_path / "run") == set()


def test_gates_can_be_left_out_and_a_classifier_moderates(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"decontaminate": None, "near_duplicates": None}
    changes |= {"published_moderation": False}
    config = config_for(tmp_path, "run", **changes)
    seen: list[str] = []

    def classify(texts: Any) -> list[float]:
        seen.extend(texts)
        return [0.9 * ("ships" in text) for text in texts]

    summary = run_stage(Queries(config, classifier=classify))
    assert summary["rejected_queries"]["moderation:classifier"] == 1
    texts = [record.text for record in records(tmp_path / "run")]
    assert LEAK in texts and f"{NEAR} ." in texts and len(texts) == 8
    assert not any("bomb" in text for text in seen)  # a rule had it already


def test_blocks_of_any_size_give_the_same_queries(tmp_path: Path) -> None:
    made = []
    for size in (1, 3, 4096):
        run_stage(Queries(config_for(tmp_path, f"run{size}", records_per_shard=size)))
        made.append(records(tmp_path / f"run{size}"))
    assert made[0] == made[1] == made[2]


def test_a_killed_run_goes_on_to_the_same_shards(tmp_path: Path) -> None:
    def made(output: str) -> dict[str, bytes]:
        folder = tmp_path / output
        paths = [*folder.glob("shards/*"), *folder.glob("checked/*"), *folder.glob("rejected/*")]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}

    run_stage(Queries(config_for(tmp_path, "whole", records_per_shard=2)))
    code = f"""
import os, signal
from pathlib import Path
from data_gen.corpus.documents import Raw
from data_gen.fine_instructions import query_files
from data_gen.fine_instructions.queries import Queries
from data_gen.stages.stage import run_stage
from tests.data_gen.fine_instructions.test_queries import config_for
def kill(status):
    if status.units_done == 3:
        os.kill(os.getpid(), signal.SIGKILL)
run_stage(Queries(config_for(Path({str(tmp_path)!r}), "killed", records_per_shard=2)), kill)
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()
    assert len(list((tmp_path / "killed" / "checked").glob("part-*.arrayrecord"))) >= 2
    stage, blocks = Queries(config_for(tmp_path, "killed", records_per_shard=2)), list[str]()
    work = stage.work
    stage.work = lambda unit: blocks.append(unit.id) or work(unit)  # type: ignore[method-assign]
    run_stage(stage)
    assert made("killed") == made("whole")
    assert blocks and "000-wildchat/000000000" not in blocks  # what was whole is not read again


@pytest.mark.parametrize(
    ("name", "file", "content", "key", "record"),
    [
        ("wildchat", "a.jsonl", [{"conversations": TALK}], "conversation", "a.jsonl:1"),
        ("gooaq", "a.parquet", [{"query": "why?"}], "question", "a.parquet[0]"),
        ("awesome_chatgpt_prompts", "a.csv", [{"act": "Poet"}], "prompt", "a.csv:Poet"),
        ("natural_instructions", "task1.json", '{"Title": "x"}', "Definition", "task1.json"),
        ("langchain_prompts", "a.json", '{"llm": {}}', "sources", None),
        ("p3", "a.yaml", "templates: [", "sources", "a.yaml"),
        ("flan", "a.py", "PATTERNS = {", "sources", "a.py"),
        ("dolly", "a.jsonl", "", "sources", None),
        ("dolly", "a.jsonl", "{\n", "sources", "a.jsonl:1"),
    ],
)
def test_a_file_of_another_layout_is_refused(
    name: str, file: str, content: Any, key: str, record: str | None, tmp_path: Path
) -> None:
    path = write(tmp_path / file, content)
    entry = QueryInput(name, file)
    config = QueriesConfig(sources=[entry], root=str(tmp_path), output=str(tmp_path / "run"))
    with pytest.raises(UserError) as refused:
        run_stage(Queries(config))
    error = refused.value
    assert (error.key, str(error.path), error.record) == (key, str(path), record)
    write(tmp_path / "mended.jsonl", [{"question": GOOD[0]}])
    mended = replace(config, sources=[QueryInput("gooaq", "mended.jsonl")])
    assert run_stage(Queries(mended))["queries_out"] == 1  # in the same folder


def test_sources_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        Queries(QueriesConfig(output=str(tmp_path / "run")))
    assert refused.value.key == "sources"
    for bad in ({"source": "wildchats", "path": "x"}, {"source": "gooaq", "path": "x", "limit": 0}):
        with pytest.raises(UserError):
            QueryInput(**bad)
    with pytest.raises(UserError) as refused:
        absent = [QueryInput("gooaq", "x"), QueryInput("dolly", "y")]
        Queries(QueriesConfig(sources=absent, root=str(tmp_path)))
    assert refused.value.path == tmp_path / "x" and "dolly" in str(refused.value)
    (tmp_path / "x").mkdir()
    config = QueriesConfig(sources=[QueryInput("gooaq", "x")], root=str(tmp_path))
    with pytest.raises(UserError) as refused:
        run_stage(Queries(config))
    assert (refused.value.key, refused.value.path) == ("files", tmp_path / "x")


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"question": "why"}])
    config = QueriesConfig(
        sources=[QueryInput("gooaq", "a.jsonl")], root=str(tmp_path), output=str(tmp_path / "run")
    )
    with pytest.raises(UserError) as refused:
        run_stage(Queries(config))
    assert refused.value.key == "sources" and "rules:min_words" in str(refused.value)


def test_saved_data_sets_are_read_and_limits_hold(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="is read with 'ipt-jax[sources]'")
    rows = [{"id": n, "question": f"why does the number {n} come last?"} for n in range(9)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    out = tmp_path / "run"
    entry = QueryInput("gooaq", "saved", limit=4)
    config = QueriesConfig(sources=[entry], root=str(tmp_path), output=str(out))
    assert run_stage(Queries(config))["queries_in"] == 4
    assert [record.id for record in records(out)] == [f"gooaq/{n}" for n in range(4)]


def test_blocks_are_read_from_anywhere(tmp_path: Path) -> None:
    for name, size in (("a", 3), ("b", 0), ("c", 4)):
        write(
            tmp_path / "set" / f"{name}.jsonl", [{"question": f"{name}{n}?"} for n in range(size)]
        )
    files = QueryFiles("set", SOURCES["reddit_qa"], root=str(tmp_path), limit=6)
    with ExitStack() as stack:
        files.open(stack)
        files.counts = files.count()
        whole = files.read(0, 100)
        assert [place for place, _ in whole] == [
            *(f"a.jsonl:{n}" for n in (1, 2, 3)),
            *(f"c.jsonl:{n}" for n in (1, 2, 3)),
        ]
        for first in (5, 1, 3, 4, 0, 2):
            for count in (1, 2, 4):
                assert files.read(first, count) == whole[first : first + count]


def test_the_hub_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(file: Any, asked: Any) -> Any:
        yield Raw(f"{file.label}:1", None, "undecodable", "no UTF-8")
        yield from (Raw(f"{file.label}:{n}", {"conversation": TALK}) for n in range(2, 5))

    monkeypatch.setattr(query_files, "read_hub", read)
    files = QueryFiles("hf://lmsys/lmsys-chat-1m?split=train", SOURCES["lmsys_chat"], limit=3)
    with ExitStack() as stack:
        files.open(stack)
        files.counts = files.count()
        found = files.read(0, 2) + files.read(2, 2)
    assert files.counts == [3] and [bool(row.error) for _, row in found] == [True, False, False]
    assert found[-1][0] == "lmsys-chat-1m:train:3"


def test_the_config_names_every_source_of_the_paper() -> None:
    path = ROOT / "configs" / "synthesize" / "fi_queries.yaml"
    config = parse_config(QueriesConfig, ["--config", str(path)], prog="", description="")
    assert [entry.source for entry in config.sources] == list(SOURCES)[:-1]
    assert config.decontaminate is not None and config.decontaminate.coverage_ngram == 8


@pytest.mark.parametrize(
    ("name", "path", "rows", "queries"),
    [
        ("oasst1", "oasst_sample/en_100_tree.jsonl", 100, 95),
        ("oasst1", "oasst_sample/en_100_message.jsonl.gz", 100, 95),
        ("dolly", "dolly_sample/dolly.jsonl", 151, 151),
        ("chatbot_arena", "queries_arena_hard/arena-hard-v0.1_question.jsonl", 500, 500),
        ("expertqa", "expertqa", 1369, 1369),
        ("awesome_chatgpt_prompts", "awesome_chatgpt_prompts", 212, 212),
        ("langchain_prompts", "langchain_hub_prompts", 67, 67),
        ("gooaq", "hf_datasets_fixtures/gooaq", 3, 3),
        ("reddit_qa", "eli5_examples/examples_qda_short.json", 10, 10),
        ("natural_instructions", "natural_instructions_v1", 24, 24),
        ("flan", "flan_cot/aqua_train.tsv", 2728, 2728),
        ("other", "queries.jsonl.gz", 3702, 3702),
    ],
)
def test_real_files(name: str, path: str, rows: int, queries: int) -> None:
    if not (DATA / path).exists():
        pytest.skip(f"no {DATA / path}")
    files = QueryFiles(path, SOURCES[name], root=str(DATA))
    with ExitStack() as stack:
        files.open(stack)
        files.counts = files.count()
        found = [query_of(SOURCES[name], row.value) for _, row in files.read(0, rows + 1)]
    assert len(found) == sum(files.counts) == rows
    assert sum(isinstance(one, Query) for one in found) == queries
