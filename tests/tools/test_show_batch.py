"""The tool that shows a batch: all of the text, what is learnt of it, and nothing that acts."""

import importlib.util
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from ipt_jax.core.records import Record, ShardWriter
from ipt_jax.core.terminal import visible
from ipt_jax.data.mixture import DataConfig
from ipt_jax.data.pipeline import open_mixture
from ipt_jax.data.token_run import TokenizeConfig, tokenize
from tests.damaged_shards import damage
from tests.launching import refused

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "data_gen" / "sample_corpus" / "documents.jsonl"
ODD = (
    "  two  spaces\n\n\tA tab, \x1b[31mred\x1b[0m and [bold red]markup[/]\r\n\x07\x9b2J é漢🙂 "
    "\u202eabc\u2028 </s> <s> :smile: end "
)
SHOWN = (
    "␉A tab, ␛[31mred␛[0m and [bold red]markup[/]␍\n␇\\u009b2J é漢🙂 "
    "\\u202eabc\\u2028 </s> <s> :smile:"
)
HEADER = re.compile(
    r"┃ (?P<task>\S+) · (?P<tokens>\d+) tokens · (?P<learnt>\d+) with loss · "
    r"(?P<id>\S+)(?: · from its token (?P<start>\d+))?"
)
TEXTS = [json.loads(line)["text"] for line in CORPUS.read_text().splitlines()[:24]]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    pytest.importorskip("mistral_common", reason="carries the Mistral tokenizer")
    spec = importlib.util.spec_from_file_location("show_batch", ROOT / "tools/show_batch.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["show_batch"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def records() -> dict[str, Record]:
    """Of two sources; those of ``talk`` have parts, cut before a space."""
    made = [Record(f"plain/{n}", text, "plain") for n, text in enumerate(TEXTS[:12])]
    made += [Record("plain/odd", ODD, "plain"), Record("plain/empty", "", "plain")]
    for n, text in enumerate(TEXTS[12:]):
        cuts = [0, text.index(" ", 30), text.index(" ", 60), text.index(" ", 200), len(text)]
        parts = tuple(text[a:b] for a, b in itertools.pairwise(cuts))
        made.append(Record(f"talk/{n}", text, "talk", parts, (0.0, 1.0, 0.5, 0.0)))
    return {record.id: record for record in made}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, records: dict[str, Record]) -> Path:
    folder = tmp_path_factory.mktemp("shown")
    for name in ("plain", "talk"):
        with ShardWriter(folder / name) as writer:
            for record in records.values():
                if record.source == name:
                    writer.write(record)
    tasks = {"plain": {"source": "plain"}, "talk": {"source": "talk", "loss": "responses"}}
    tasks["talk"]["bos"] = False  # type: ignore[assignment]
    (folder / "m.yaml").write_text(yaml.safe_dump({"root": str(folder), "tasks": tasks}))
    return folder


@pytest.fixture
def show(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(mixture: Path, *options: str) -> str:
        tool.main(["--data.mixture", str(mixture), *options])
        return capsys.readouterr().out

    return run


def segments(said: str) -> list[tuple[dict[str, str], str]]:
    """Header and text of each segment."""
    found: list[tuple[dict[str, str], str]] = []
    for row in re.split(r"^─+.*\n", said, flags=re.MULTILINE)[1:-1]:
        for block in re.split(r"^(?=┃ )", row, flags=re.MULTILINE):
            header, _, text = block.partition("\n")
            if match := HEADER.fullmatch(header):
                assert text.endswith("\n")
                found.append((match.groupdict(), text[:-1]))
    return found


def bare(text: str) -> str:
    """Without the marks."""
    text = re.sub(r"⟨(BOS|EOS|then .*?)⟩", "", text, flags=re.DOTALL)
    return re.sub(r"⟦(0\.5× )?|⟧", "", text)


@pytest.mark.parametrize("tokenizer", ["mistral-7b-v0.1", "llama3"])
@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
@pytest.mark.parametrize("beforehand", [False, True])
def test_segments_join_to_the_texts(
    show: Callable[..., str],
    folder: Path,
    tmp_path: Path,
    records: dict[str, Record],
    tokenizer: str,
    packing: str,
    beforehand: bool,
) -> None:
    """Every character, spaces too, from text and from token shards."""
    if tokenizer == "llama3":
        pytest.importorskip("llama_models", reason="carries the Llama 3 tokenizer")
    mixture = folder / "m.yaml"
    data = DataConfig(str(mixture), tokenizer=tokenizer)
    if beforehand:
        tokenize(TokenizeConfig(tmp_path, data))
        mixture = tmp_path / "mixture.yaml"
    rows = sum(open_mixture(data).epoch_tokens) // 100 + 12
    options = ["--data.row_tokens", "100", "--data.packing", packing, "--rows", str(rows)]
    said = show(mixture, *options, "--data.tokenizer", tokenizer)
    pieces: dict[tuple[str, int], tuple[int, str]] = {}
    for header, text in segments(said):
        assert header["task"] == header["id"].split("/")[0]
        start = int(header["start"] or 0)
        # What has BOS is the beginning of an example, and has it in front.
        assert text.startswith("⟨BOS⟩") == (header["task"] == "plain" and start == 0)
        pieces.setdefault((header["id"], start), (int(header["tokens"]), text))
    ended = set()
    for id, record in records.items():
        joined, start = "", 0
        while (id, start) in pieces:
            tokens, text = pieces[id, start]
            joined, start = joined + text, start + tokens
        if "⟨EOS⟩" in joined:
            ended.add(id)
        if id == "plain/odd" and "�" in joined:
            continue  # a character of several tokens lies in two rows
        assert bare(joined) == visible(record.text)
    assert ended == set(records)


def test_what_is_learnt_is_told_apart(
    show: Callable[..., str], folder: Path, records: dict[str, Record]
) -> None:
    """Without colour: brackets around just the parts that have weight, and their weight."""
    said = show(folder / "m.yaml", "--data.row_tokens", "2048", "--rows", "4")
    whole = {h["id"]: (h, t) for h, t in segments(said) if not h["start"] and "⟨EOS⟩" in t}
    talk = [id for id in whole if id.startswith("talk/")]
    assert len(talk) >= 8
    for id in talk:
        a, b, c, d = records[id].parts or [""] * 4
        assert whole[id][1] == f"{a}⟦{b}⟧⟦0.5× {c}⟧{d}⟨EOS⟩", id
    header, text = whole["plain/odd"]
    assert int(header["learnt"]) == int(header["tokens"]) - 1  # BOS is no target
    assert text.startswith("⟨BOS⟩⟦  two") and text.endswith("⟧⟦⟨EOS⟩⟧")
    assert whole["plain/empty"][1] == "⟨BOS⟩⟦⟨EOS⟩⟧"


def test_a_target_behind_the_end_of_a_row_is_shown(show: Callable[..., str], folder: Path) -> None:
    said = show(folder / "m.yaml", "--data.row_tokens", "64", "--rows", "40")
    found = segments(said)
    cut = 0
    for (header, text), (following, after) in itertools.pairwise(found):
        learnt = int(header["learnt"])
        if then := re.search(r"⟦⟨then (.*?)⟩⟧$", text, flags=re.DOTALL):
            cut += 1
            assert following["id"] == header["id"] and after.startswith(then[1])
        if header["task"] == "plain":
            ended = text.endswith("⟨EOS⟩⟧")
            assert learnt == int(header["tokens"]) - ended
    assert cut > 10


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_damage_and_the_end_of_a_row_are_padding(
    show: Callable[..., str], folder: Path, tmp_path: Path, packing: str
) -> None:
    with ShardWriter(tmp_path / "s", options="group_size:1,zstd:3") as writer:
        for number, text in enumerate(TEXTS[:3]):
            writer.write(Record(f"s/{number}", text[:400], "s"))
    (tmp_path / "m.yaml").write_text("tasks: {s: {source: s}}")
    options = ["--data.root", str(tmp_path), "--data.row_tokens", "400", "--rows", "1"]
    options += ["--data.skip_damaged", "true", "--data.packing", packing]
    before = segments(show(tmp_path / "m.yaml", *options))
    shard = tmp_path / "s" / "part-00000.arrayrecord"
    damage(shard, shard.read_bytes().index(b"\x28\xb5\x2f\xfd") + 60)  # the first zstd frame
    said = show(tmp_path / "m.yaml", *options)
    after = segments(said)
    assert {h["id"] for h, _ in before} == {"s/0", "s/1", "s/2"}
    assert [pair for pair in before if pair[0]["id"] != "s/0"] == after
    gaps = [int(n) for n in re.findall(r"^┃ padding · (\d+) tokens$", said, re.MULTILINE)]
    assert sum(gaps) + sum(int(h["tokens"]) for h, _ in after) == 400
    assert gaps


def test_odd_characters_do_nothing(
    show: Callable[..., str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In colour too: the only escapes are those of the colours."""
    options = ("--data.row_tokens", "2048", "--rows", "4")
    plain = show(folder / "m.yaml", *options)
    assert SHOWN in plain and "\x1b" not in plain
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = show(folder / "m.yaml", *options)
    assert re.search(r"\x1b\[1;36m  two  spaces", coloured)  # learnt: bold, in its source's colour
    assert re.search(r"\x1b\[2m\S", coloured) and re.search(r"\x1b\[33m ", coloured)
    text = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert SHOWN in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", text)
    assert "⟦" not in text


def test_rates_are_of_tokens(show: Callable[..., str], folder: Path) -> None:
    """Of a mixture by examples too: shares of examples are no shares of tokens."""
    with ShardWriter(folder / "short") as writer:
        for n in range(40):
            writer.write(Record(f"short/{n}", "a few words " * 3, "short"))
    tasks = {"[red]short": {"source": "short"}, "plain": {"source": "plain"}}
    content = {"root": str(folder), "by": "examples", "tasks": tasks}
    content["rates"] = {"[red]short": 1, "plain": 1}
    (folder / "e.yaml").write_text(yaml.safe_dump(content))
    said = show(folder / "e.yaml", "--data.row_tokens", "512", "--rows", "40")
    rates = re.findall(r"^(\S+): asked ([\d.]+)%, in this batch ([\d.]+)%$", said, re.MULTILINE)
    assert [name for name, *_ in rates] == ["[red]short", "plain"]
    for _, asked, realised in rates:
        assert float(asked) == pytest.approx(float(realised), abs=1)
    assert float(rates[0][1]) < 10


def test_the_command(folder: Path) -> None:
    options = ["--data.root", str(folder), "--data.mixture", str(folder / "m.yaml")]
    ran = subprocess.run(
        [sys.executable, "tools/show_batch.py", *options, "--data.row_tokens", "128"],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "PYTHONIOENCODING": "ascii"},
    )
    assert ran.returncode == 0, ran.stderr
    assert "\\u2503 " in ran.stdout  # the bar, where the locale has no letter for it
    assert "plain: asked" in ran.stdout
    ended = refused("tools/show_batch.py", *options, "--data.row_token", "128")
    assert ended.key == "data.row_token" and "'data.row_tokens'" in ended.said
