"""The 19 sources of real queries (FineInstructions, section 3.1), with the paper's counts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from data_gen.corpus.dataset_files import MALFORMED, DataFile, Located
from data_gen.fine_instructions.query_layouts import (
    Layout,
    anthropic_rows,
    encoded_definition,
    first_turn,
    flan_rows,
    langchain_prompt,
    langchain_rows,
    oasst_root,
    oasst_rows,
    p3_prompt,
    p3_rows,
    post,
    task_definition,
    task_rows,
    text_of,
    unwrapped,
)
from ipt_jax.core.rejection import Reason

PAPER_STATES = 18_000_000
"""Queries as section 3.1 says; those that it lists by source add up to two thirds of that."""
Kind = Literal["conversation", "question", "instruction", "prompt_template"]
_PLACE = re.compile(r"\{([A-Za-z_]\w*)\}")


@dataclass(frozen=True)
class QuerySource:
    """Where queries come from."""

    name: str
    """Key in SOURCES, in ids and records."""
    title: str
    """As the paper names it."""
    paper_queries: int
    """As many the paper took of it (section 3.1)."""
    kind: Kind
    """What a query of it is."""
    licence: str
    """As its authors state it; `none stated` where they do not."""
    published: str
    """Where its official files are."""
    files: tuple[str, ...]
    """Patterns of them, where a folder is given."""
    layouts: tuple[Layout, ...]
    """The first that fits a record counts."""
    read: Callable[[DataFile], Iterator[Located]] = DataFile.rows
    """The records of one of these files."""

    @property
    def talks_to_a_model(self) -> bool:
        """Whether its queries were put to a language model: templates are drawn to be as complex
        as those (section 3.2)."""
        return self.kind == "conversation"

    def lacks(self, record: Any) -> str:
        """The key that a record lacks for the layout it is nearest to; none: one fits."""
        if any(layout.fits(record) for layout in self.layouts):
            return ""
        keys = record if isinstance(record, Mapping) else ()
        lacking = [[key for key in layout.needs if key not in keys] for layout in self.layouts]
        return min(lacking, key=len)[0]


@dataclass(frozen=True)
class Query:
    """What somebody asked."""

    key: str
    """The record's own id; empty where it has none."""
    text: str
    """Without white space around it, lines parted by newlines alone."""
    places: tuple[str, ...] = ()
    """Of a prompt template, the names in braces: what it leaves open."""


def query_of(source: QuerySource, record: Any) -> Query | Reason:
    """The query in a record, or why there is none: `malformed_record`, `no_query`,
    `nul_character`, or a reason of the source's own."""
    layout = next((one for one in source.layouts if one.fits(record)), None)
    if layout is None:
        return Reason("malformed_record", f"it has no `{source.lacks(record)}`")
    try:
        text = layout.text(record)
        if isinstance(text, Reason):
            return text
        text = text.replace("\r\n", "\n").strip()
        given = next((record[key] for key in layout.key if record.get(key) not in (None, "")), "")
        key = str(given)
        (key + text).encode()  # half a surrogate pair is no text, and escapes can make it
    except MALFORMED as error:
        return Reason("malformed_record", f"{type(error).__name__}: {error}")
    if not text:
        return Reason("no_query", "its query is empty")
    if "\0" in text:
        return Reason("nul_character", f"NUL at character {text.index(chr(0))}")
    template = source.kind == "prompt_template"
    return Query(key, text, tuple(dict.fromkeys(_PLACE.findall(text))) if template else ())


def flagged(record: Any) -> str:
    """What the data set itself says against a record's first turn, by the moderation that the
    paper uses too (WildChat, LMSys Chat, Chatbot Arena publish its answers); none: nothing."""
    found = record.get("openai_moderation") if isinstance(record, Mapping) else None
    if isinstance(found, list):  # one for each turn
        found = found[0] if found else None
    if not isinstance(found, Mapping) or not found.get("flagged"):
        return ""
    categories = found.get("categories")
    named = [k for k, said in categories.items() if said] if isinstance(categories, Mapping) else []
    return ", ".join(named) or "no category named"


_TURNS = Layout(("conversation",), first_turn("conversation"), ("conversation_id",))
_ASKED = Layout(("question",), text_of("question"), ("id", "q_id"))
_PATIENT = (Layout(("input",), text_of("input")),)
_PARQUET = ("data/train*.parquet",)
_SOURCES = (
    QuerySource(
        *("wildchat", "WildChat", 657_000, "conversation", "ODC-BY"),
        "Zhao et al. (2024); hf.co/datasets/allenai/WildChat-1M",
        _PARQUET,
        (replace(_TURNS, key=("conversation_hash", "conversation_id")),),
    ),
    QuerySource(
        *("lmsys_chat", "LMSys Chat", 559_000, "conversation", "LMSYS-Chat-1M agreement"),
        "Zheng et al. (2023a); hf.co/datasets/lmsys/lmsys-chat-1m",
        _PARQUET,
        (_TURNS,),
    ),
    QuerySource(
        *("chatbot_arena", "Chatbot Arena", 26_500, "conversation", "CC BY 4.0 (prompts)"),
        "Zheng et al. (2023b); hf.co/datasets/lmsys/chatbot_arena_conversations; copies in "
        "github.com/lmarena/arena-hard-auto, data/",
        (*_PARQUET, "question.jsonl"),
        (
            Layout(("conversation_a",), first_turn("conversation_a"), ("question_id",)),
            Layout(("prompt",), text_of("prompt"), ("uid", "question_id")),
        ),
    ),
    QuerySource(
        *("oasst1", "OAsst1", 3_920, "conversation", "Apache-2.0"),
        "Köpf et al. (2023); hf.co/datasets/OpenAssistant/oasst1",
        ("*oasst_ready.trees.jsonl", *_PARQUET),
        (
            Layout(("prompt", "message_tree_id"), oasst_root, ("message_tree_id",)),
            Layout(("text", "role"), oasst_root, ("message_id",)),
            Layout(("text",), text_of("text")),
        ),
        oasst_rows,
    ),
    QuerySource(
        *("no_robots", "NoRobots", 9_490, "instruction", "CC BY-NC 4.0"),
        "Rajani et al. (2023); hf.co/datasets/HuggingFaceH4/no_robots",
        _PARQUET,
        (
            Layout(("messages",), first_turn("messages"), ("prompt_id",)),
            Layout(("prompt",), text_of("prompt"), ("prompt_id",)),
        ),
    ),
    QuerySource(
        *("helpsteer", "HelpSteer", 10_000, "instruction", "CC BY 4.0"),
        "Wang et al. (2023b); hf.co/datasets/nvidia/HelpSteer",
        ("train.jsonl", "validation.jsonl", *_PARQUET),
        (Layout(("prompt",), text_of("prompt")),),
    ),
    QuerySource(
        *("dolly", "Dolly", 14_700, "instruction", "CC BY-SA 3.0"),
        "Conover et al. (2023); hf.co/datasets/databricks/databricks-dolly-15k",
        ("databricks-dolly-15k.jsonl", *_PARQUET),
        # Without `context`, the article that annotators had before them: the document has its part.
        (
            Layout(("instruction",), text_of("instruction")),
            Layout(("prompt",), unwrapped),
        ),
    ),
    QuerySource(
        *("reddit_qa", "Reddit QA", 7_470_000, "question", "none stated"),
        "questions of forums; hf.co/datasets/nreimers/reddit_question_best_answers, ELI5's files",
        ("*.jsonl", "*.json", "*.parquet"),
        (
            Layout(("title", "body"), post("title", "body"), ("id",)),
            Layout(("title", "selftext"), post("title", "selftext"), ("q_id", "id")),
            Layout(("question",), post("question", ""), ("id",)),
        ),
    ),
    QuerySource(
        *("gooaq", "GooAQ", 3_010_000, "question", "Apache-2.0"),
        "Khashabi et al. (2021); github.com/allenai/gooaq",
        ("gooaq.jsonl", "*.parquet"),
        (_ASKED,),
    ),
    QuerySource(
        *("sharelm", "ShareLM", 264, "conversation", "MIT"),
        "Don-Yehiya et al. (2025); hf.co/datasets/shachardon/ShareLM, the plugin's own file",
        ("share_lm_formatted.json",),
        (_TURNS, Layout(("conversations",), first_turn("conversations"), ("id",))),
    ),
    QuerySource(
        *("expertqa", "ExpertQA", 1_730, "question", "MIT"),
        "Malaviya et al. (2023); github.com/chaitanyamalaviya/ExpertQA, data/",
        ("r1_data_anon.jsonl", "r2_compiled_anon.jsonl"),
        (_ASKED,),
    ),
    QuerySource(
        *("chatdoctor_icliniq", "ChatDoctor iCliniq", 7_320, "question", "research only"),
        "Li et al. (2023b); github.com/Kent0n-Li/ChatDoctor",
        ("[iI][cC]liniq*.json", *_PARQUET),
        _PATIENT,
    ),
    QuerySource(
        *("chatdoctor_healthcaremagic", "ChatDoctor HealthcareMagic"),
        *(112_000, "question", "research only"),
        "Li et al. (2023b); github.com/Kent0n-Li/ChatDoctor",
        ("HealthCareMagic*.json", *_PARQUET),
        _PATIENT,
    ),
    QuerySource(
        *("awesome_chatgpt_prompts", "Awesome ChatGPT Prompts", 203, "prompt_template", "CC0"),
        "github.com/f/awesome-chatgpt-prompts",
        ("prompts.csv",),
        (Layout(("prompt",), text_of("prompt"), ("act",)),),
    ),
    QuerySource(
        *("anthropic_prompt_library", "Anthropic Prompt Library"),
        *(64, "prompt_template", "none stated"),
        "docs.claude.com/en/resources/prompt-library, pages as Markdown",
        ("*.md",),
        (Layout(("prompt",), text_of("prompt")),),
        anthropic_rows,
    ),
    QuerySource(
        *("langchain_prompts", "LangChain Prompts", 51, "prompt_template", "none stated"),
        "Chase (2022); github.com/hwchase17/langchain-hub",
        ("*.json", "*.yaml"),
        (Layout(("template",), langchain_prompt),),
        langchain_rows,
    ),
    QuerySource(
        *("natural_instructions", "NaturalInstructions", 757, "prompt_template", "Apache-2.0"),
        "Mishra et al. (2022); github.com/allenai/natural-instructions, tasks/",
        ("tasks/task*.json", "subtask*.json", "train/*.jsonl"),
        (
            Layout(("Definition",), task_definition),
            Layout(("definition",), task_definition),
            Layout(("predictions",), encoded_definition),
        ),
        task_rows,
    ),
    QuerySource(
        *("p3", "P3", 544, "prompt_template", "Apache-2.0"),
        "Sanh et al. (2021); github.com/bigscience-workshop/promptsource, promptsource/templates/",
        ("templates.yaml",),
        (
            Layout(("jinja",), p3_prompt, ("id",)),
            Layout(("inputs_pretokenized",), text_of("inputs_pretokenized")),
        ),
        p3_rows,
    ),
    QuerySource(
        *("flan", "FLAN", 3_440, "prompt_template", "Apache-2.0"),
        "Wei et al. (2021); github.com/google-research/FLAN, flan/v2/templates.py",
        ("templates.py", "flan_templates_branched.py"),
        (Layout(("inputs",), text_of("inputs")),),
        flan_rows,
    ),
)
OTHER = QuerySource(
    "other",
    "Other queries",
    0,
    "question",
    "none stated",
    "files of your own",
    ("*.jsonl", "*.json", "*.csv", "*.parquet"),
    tuple(
        Layout((key,), text_of(key), ("id",))
        for key in ("text", "query", "question", "instruction", "prompt")
    ),
)
"""Queries of none of the paper's sources, each with its `source` where it has one."""
SOURCES: dict[str, QuerySource] = {source.name: source for source in (*_SOURCES, OTHER)}
"""By name, in the paper's order; the last is OTHER."""
PAPER_LISTS = sum(source.paper_queries for source in _SOURCES)
"""Queries that section 3.1 lists, all sources together."""
