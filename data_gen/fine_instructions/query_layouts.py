"""Layouts in which sets of queries are published: how files become records, records queries.

Of a conversation the query is its first turn; of a question in a forum title and body; of a prompt
library the prompt, its places to fill in written as `{name}`.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from data_gen.corpus.dataset_files import (
    MALFORMED,
    UNREADABLE,
    DataFile,
    Located,
    converted,
    unquoted_rows,
    unreadable,
)
from data_gen.corpus.nested_records import pieces, whole
from ipt_jax.core.json_lines import parse_json
from ipt_jax.core.rejection import Reason

Text = Callable[[Any], str | Reason]
"""Gives a record's query, or why there is none; may raise one of MALFORMED."""
_ASKS = {"human", "user", "prompter"}
_REMOVED = {"[removed]", "[deleted]"}
_ALPACA = re.compile(r"### Instruction:\s*(.*?)\s*(?:### (?:Input|Response):|\Z)", re.DOTALL)
_EXPRESSION = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_NAMED = re.compile(r"([A-Za-z_]\w*)(?:\.\w+|\[[^\]]*\])*\s*(?:\|.*)?", re.DOTALL)
_CHOICE = re.compile(r"answer_choices\[(\d+)\]")
_CELL = re.compile(r"\|\s*(System|User)\s*\|(.*)\|\s*")
_BREAK = re.compile(r"<br\s*/?>")
_ESCAPED = re.compile(r"\\([^\w\s])")


@dataclass(frozen=True)
class Layout:
    """One form that a source's records have."""

    needs: tuple[str, ...]
    """Keys that a record of this form has."""
    text: Text
    """Its query, or why it has none; may raise what a malformed record makes it raise."""
    key: tuple[str, ...] = ()
    """Keys of its own id: the first that it has. Without one its place is its id."""

    def fits(self, record: Any) -> bool:
        """Whether a record has this form."""
        return isinstance(record, Mapping) and all(key in record for key in self.needs)


def text_of(*keys: str) -> Text:
    """The texts of these keys, parted by an empty line; only the first has to hold one."""

    def text(record: Any) -> str:
        found = [_string(record[keys[0]]), *(_string(record.get(k) or "") for k in keys[1:])]
        return "\n\n".join(part for part in map(str.strip, found) if part)

    return text


def post(title: str, body: str) -> Text:
    """A question in a forum; a body that was taken away is left out."""

    def text(record: Any) -> str:
        head, below = _string(record[title]), _string(record.get(body) or "")
        parts = [head.replace(" --T-- ", "\n\n"), "" if below.strip() in _REMOVED else below]
        return "\n\n".join(part.strip() for part in parts if part.strip())

    return text


def first_turn(key: str) -> Text:
    """What the user says first; a system prompt before it is none of the user's words."""

    def text(record: Any) -> str | Reason:
        for turn in record[key]:
            if str(turn.get("role", turn.get("from"))).lower() in _ASKS:
                return _string(turn["content"] if "content" in turn else turn["value"])
        return Reason("no_query", f"nobody asks in its {len(record[key])} turns")

    return text


def oasst_root(record: Any) -> str | Reason:
    """The first message of a tree, of those that people wrote and the collection kept."""
    message = record.get("prompt", record)
    if message.get("role", "prompter") != "prompter" or message.get("parent_id"):
        return Reason("not_first_turn", f"a message of {message.get('role')!r}")
    if (state := record.get("tree_state")) not in (None, "ready_for_export"):
        return Reason("not_released", f"its tree is {state!r}")
    for wrong in ("deleted", "synthetic"):
        if message.get(wrong):
            return Reason(wrong, f"`{wrong}` is true")
    return _string(message["text"])


def unwrapped(record: Any) -> str:
    """The instruction of a prompt that is wrapped in Alpaca's, or the prompt."""
    prompt = _string(record["prompt"])
    found = _ALPACA.search(prompt)
    return found[1] if found else prompt


def task_definition(record: Any) -> str:
    """A task's definition, in the second release a list of one; the first has a prompt too."""
    found = record.get("Definition", record.get("definition"))
    texts = found if isinstance(found, list) else [found]
    return "\n".join([*map(_string, texts), _string(record.get("Prompt") or "")])


def encoded_definition(record: Any) -> str:
    """The same of what was put to a model: a task with its first input."""
    task = _string(record["predictions"][0]["input"]).partition("\ninput:")[0]
    return re.sub(r"^(?:Definition|Prompt): ", "", task, flags=re.MULTILINE)


def langchain_prompt(record: Any) -> str | Reason:
    """A template of LangChain's, with braces as they are meant."""
    template = _string(record["template"])
    if record.get("template_format", "f-string") != "f-string":
        return _jinja(template, ())
    return template.replace("{{", "{").replace("}}", "}")


def p3_prompt(record: Any) -> str | Reason:
    """The prompt of one of P3's templates, without its target."""
    choices = [choice.strip() for choice in (record.get("answer_choices") or "").split("|||")]
    return _jinja(_string(record["jinja"]).split("|||")[0], choices)


def _jinja(template: str, choices: Sequence[str]) -> str | Reason:
    """A template of Jinja's with its places as `{name}`; one that computes is no text."""
    if "{%" in template:
        return Reason("template_logic", "it branches or loops")
    problems: list[str] = []

    def place(match: re.Match[str]) -> str:
        said = match[1].strip()
        if (chosen := _CHOICE.fullmatch(said)) and "{{" not in "".join(choices):
            return choices[int(chosen[1])]
        if named := _NAMED.fullmatch(said):
            return f"{{{named[1]}}}"
        try:
            return _string(ast.literal_eval(said))
        except (SyntaxError, ValueError, TypeError):
            problems.append(said)
            return ""

    text = _EXPRESSION.sub(place, template)
    return Reason("template_logic", f"it computes {problems[0]!r}") if problems else text


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} where a text should be")
    return value


def oasst_rows(file: DataFile) -> Iterator[Located]:
    """Trees or messages; in the lists of prompts a record is a text alone."""
    return converted(file.rows(), lambda row: {"text": row} if isinstance(row, str) else row)


def task_rows(file: DataFile) -> Iterator[Located]:
    """One task a file, or the rows of a table of instances."""
    return pieces(file, whole) if file.name.endswith(".json") else file.rows()


def p3_rows(file: DataFile) -> Iterator[Located]:
    """Templates of one data set, or rows of copies."""
    if not file.name.endswith((".yaml", ".yml")):
        return file.rows()
    return _found_in(file, lambda text: yaml.load(text, _p3_loader())["templates"].items())


@functools.cache
def _p3_loader() -> Any:
    """Safe YAML in which P3's own tags mark mappings."""

    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader: Any, node: Any) -> Any:
        return loader.construct_mapping(node, deep=True)

    for tag in ("!Template", "!TemplateMetadata"):
        Loader.add_constructor(tag, mapping)
    return Loader


def langchain_rows(file: DataFile) -> Iterator[Located]:
    """Every prompt within a prompt, chain or agent."""

    def prompts(value: Any) -> Iterator[Mapping[str, Any]]:
        if isinstance(value, list):
            for inner in value:
                yield from prompts(inner)
        elif isinstance(value, Mapping):
            if isinstance(value.get("template"), str):
                yield value
            elif isinstance(value.get("prefix"), str) and isinstance(value.get("suffix"), str):
                joined = f"{value['prefix']}\n\n{value['suffix']}"  # its examples stand between
                yield {**value, "template": joined}
            else:
                yield from prompts(list(value.values()))

    load = yaml.safe_load if file.name.endswith((".yaml", ".yml")) else parse_json
    return _found_in(file, lambda text: enumerate(prompts(load(text)), 1))


def flan_rows(file: DataFile) -> Iterator[Located]:
    """Templates out of FLAN's Python files, which are not run; its tables; rows of copies."""
    if file.name.endswith(".tsv"):
        lines = unquoted_rows(file)
        return converted(lines, lambda cells: {"inputs": cells[0].replace("\\n", "\n")})
    return _found_in(file, _flan_patterns) if file.name.endswith(".py") else file.rows()


def _flan_patterns(text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for statement in ast.parse(text).body:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Dict):
            continue
        try:
            patterns = ast.literal_eval(statement.value)
        except ValueError:
            continue  # what is computed from others holds nothing of its own
        for task, pairs in patterns.items():
            for number, pair in enumerate(pairs, 1):
                if isinstance(pair, tuple) and isinstance(pair[0], str):
                    yield f"{task}/{number}", {"inputs": pair[0]}


def anthropic_rows(file: DataFile) -> Iterator[Located]:
    """The prompts of pages in Markdown, each a table of roles; or rows."""
    return _found_in(file, _anthropic_prompts) if file.name.endswith(".md") else file.rows()


def _anthropic_prompts(text: str) -> Iterator[tuple[int, Mapping[str, str]]]:
    system = ""
    for number, line in enumerate(text.split("\n"), 1):
        if cell := _CELL.fullmatch(line.strip()):
            said = _ESCAPED.sub(r"\1", _BREAK.sub("\n", cell[2].strip()))
            if cell[1] == "User":
                yield number, {"prompt": f"{system}\n\n{said}"}
            system = said if cell[1] == "System" else ""


def _found_in(file: DataFile, find: Callable[[str], Any]) -> Iterator[Located]:
    """What `find` finds in a file's text, with the name of each; a file in which it cannot is one
    unreadable record."""
    try:
        found = list(find(file.text()))
    except (*UNREADABLE, *MALFORMED, SyntaxError, yaml.YAMLError) as error:
        yield unreadable(file, error)
        return
    yield from (Located(f"{file.name}:{name}", value) for name, value in found)
