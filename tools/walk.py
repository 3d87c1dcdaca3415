"""How many files and functions of ours one document, or one small training, passes through.

python tools/walk.py synthesis; python tools/walk.py training. With --list, their names by file.
Synthesis is launch/synthesize.py's run of one document with a stand-in engine; training is
launch/train.py's of two steps of the model `tiny`. Reading the config counts, imports do not.
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
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
ROOMS = tuple(str(ROOT / name) for name in ("ipt_jax", "data_gen", "launch"))


def walked(run: Callable[[], Any]) -> dict[str, set[str]]:
    """Functions that `run` enters in any thread, by file; what runs at import is left out."""
    found: dict[str, set[str]] = defaultdict(set)

    def enter(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(ROOMS) and code.co_name[0] != "<":
            caller = frame.f_back
            while caller is not None and caller.f_code.co_name != "<module>":
                caller = caller.f_back
            if caller is not None and caller.f_code.co_filename.startswith(ROOMS[:2]):
                return  # a module is being imported
            name = Path(code.co_filename).relative_to(ROOT).as_posix()
            found[name].add(code.co_qualname)

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


def synthesis(folder: Path) -> dict[str, set[str]]:
    """Of one document through launch/synthesize.py."""
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
    corpus.write_text(json.dumps({"id": "d1", "text": "One text."}) + "\n")
    who = EngineIdentity("stand-in", "1", "none", "none")
    run = door(
        "launch/synthesize.py",
        f"--input=[{corpus}]", f"--output={folder / 'out'}", "--fraction=1.0",
    )  # fmt: skip
    with (
        mock.patch.object(stage, "open_engine", lambda config: StandIn()),
        mock.patch.object(stage, "identify_engine", lambda config: who),
    ):
        return walked(run)


def training(folder: Path) -> dict[str, set[str]]:
    """Of two steps through launch/train.py."""
    lines = (json.dumps({"id": f"d{n}", "text": "Some words of a text. " * 40}) for n in range(40))
    (folder / "text.jsonl").write_text("\n".join(lines))
    mixture = folder / "mixture.yaml"
    mixture.write_text(f"root: {folder}\ntasks:\n  text: {{source: text.jsonl}}\n")
    return walked(
        door(
            "launch/train.py",
            "--model.preset=tiny", '--model.overrides={"vocabulary_size": 32000}',
            f"--data.mixture={mixture}", f"--data.root={folder}", "--data.row_tokens=64",
            "--batch_tokens=256", "--train_tokens=512", f"--run_folder={folder / 'run'}",
            "--compilation_cache=null",
        )
    )  # fmt: skip


WALKS = {"synthesis": synthesis, "training": training}


def main(argv: Sequence[str] | None = None) -> None:
    """Walk, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("walk", choices=WALKS)
    parser.add_argument("--list", action="store_true", help="name them")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        found = WALKS[options.walk](Path(name))
    for file, functions in sorted(found.items()) if options.list else ():
        print(f"{file}: {', '.join(sorted(functions))}")
    print(f"{len(found)} files, {sum(map(len, found.values()))} functions")


if __name__ == "__main__":
    main()
