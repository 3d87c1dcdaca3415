"""How many files and functions of ours a command enters, and how many of them once more a piece.

python tools/walk.py synthesis; python tools/walk.py training. With --list, their names by file.
Synthesis is launch/synthesize.py's run with a stand-in engine, a piece is a document; training is
launch/train.py's of the model `tiny`, a piece is a step. The whole command counts reading the
config, resuming, the card and the page; imports do not count. What a piece walks through is what
is entered more often with three pieces than with two.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import runpy
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
ROOMS = tuple(str(ROOT / name) for name in ("ipt_jax", "data_gen", "launch"))


def walked(run: Callable[[], Any]) -> Counter[tuple[str, str]]:
    """How often `run` enters each (file, function) in any thread, but at imports."""
    found: Counter[tuple[str, str]] = Counter()

    def enter(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        ours = code.co_filename.startswith(ROOMS) and code.co_filename.endswith(".py")
        if event == "call" and ours and code.co_name[0] != "<":
            caller = frame.f_back
            while caller is not None and caller.f_code.co_name != "<module>":
                caller = caller.f_back
            if caller is not None and caller.f_code.co_filename.startswith(ROOMS[:2]):
                return  # a module is being imported
            name = Path(code.co_filename).relative_to(ROOT).as_posix()
            found[name, code.co_qualname] += 1

    threading.setprofile_all_threads(enter)
    try:
        run()
    finally:
        threading.setprofile_all_threads(None)
    return found


def door(script: str, *arguments: str) -> Callable[[], None]:
    """A launch script in this process, quietly."""

    def run() -> None:
        with (
            mock.patch.object(sys, "argv", [script, *arguments]),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.suppress(SystemExit),
        ):
            runpy.run_path(str(ROOT / script), run_name="__main__")

    return run


def synthesis(folder: Path, pieces: int) -> Counter[tuple[str, str]]:
    """Of so many documents through launch/synthesize.py."""
    from data_gen.engines import Completion, EngineIdentity, Request
    from data_gen.stages import stage

    class StandIn:
        name, version, model, revision, context_tokens = "stand-in", "1", "none", "none", 4096

        def count_tokens(self, text: Any) -> int:
            return len(str(text).split())

        def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
            for request in requests:
                if request is not None:
                    pair = "<QUE> What is it about? <ANS> A text. </END>"
                    yield Completion(request.id, pair, "stop", 9, 9)

        def close(self) -> None:
            pass

    corpus = folder / "corpus.jsonl"
    lines = (json.dumps({"id": f"d{n}", "text": f"Text {n}."}) + "\n" for n in range(pieces))
    corpus.write_text("".join(lines))
    who = EngineIdentity("stand-in", "1", "none", "none")
    run = door(
        "launch/synthesize.py",
        f"--input=[{corpus}]", f"--output={folder / 'out'}", "--fraction=1.0",
    )  # fmt: skip
    with (
        mock.patch.object(stage, "open_engine", lambda config: StandIn()),
        mock.patch.object(stage, "identify_engine", lambda *_: who),
    ):
        return walked(run)


def training(folder: Path, pieces: int) -> Counter[tuple[str, str]]:
    """Of so many steps through launch/train.py."""
    lines = (json.dumps({"id": f"d{n}", "text": "Some words of a text. " * 40}) for n in range(40))
    (folder / "text.jsonl").write_text("\n".join(lines))
    mixture = folder / "mixture.yaml"
    mixture.write_text(f"root: {folder}\ntasks:\n  text: {{source: text.jsonl}}\n")
    return walked(
        door(
            "launch/train.py",
            "--model.preset=tiny", '--model.overrides={"vocabulary_size": 32000}',
            f"--data.mixture={mixture}", f"--data.root={folder}", "--data.row_tokens=64",
            "--batch_tokens=256", f"--train_tokens={256 * pieces}",
            f"--run_folder={folder / 'run'}", "--compilation_cache=null",
        )
    )  # fmt: skip


WALKS = {"synthesis": synthesis, "training": training}


def main(argv: Sequence[str] | None = None) -> None:
    """Walk, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("walk", choices=WALKS)
    parser.add_argument("--list", action="store_true", help="name them")
    options = parser.parse_args(argv)
    fewer, more = (walk(options.walk, pieces) for pieces in (2, 3))
    each = {entered for entered, times in more.items() if times > fewer[entered]}
    for file in sorted({file for file, _ in more}) if options.list else ():
        names = sorted((name, (file, name) in each) for other, name in more if other == file)
        print(f"{file}: {', '.join(name + ' *' * often for name, often in names)}")
    for what, entered in (("the whole command", set(more)), ("a piece (*)", each)):
        print(f"{what}: {len({file for file, _ in entered})} files, {len(entered)} functions")


def walk(name: str, pieces: int) -> Counter[tuple[str, str]]:
    """One of WALKS in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return WALKS[name](Path(folder), pieces)


if __name__ == "__main__":
    main()
