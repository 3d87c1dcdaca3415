"""What the synthesis runner costs, measured against the engine driven bare.

    python tools/bench_synthesis.py runner
    python tools/bench_synthesis.py resume --documents 1000000
    python tools/bench_synthesis.py engine --model FOLDER --name vllm

runner: requests/s and processor time a request, the engine `server` alone and under the runner
(ledger, blocks, shards, parsing), alternating, with 2,000 requests under way at a stub server.
resume: seconds and memory from starting again on a run of so many finished documents to its first
new request. engine: output tokens/s of a real engine bare and under the runner. The gates have a
benchmark of their own, tools/bench_gates.py.
"""

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ipt_jax.core.errors import importing

with importing():
    from data_gen.corpus import Document, read_corpus
    from data_gen.engines import (
        Completion,
        Engine,
        EngineConfig,
        Request,
        SamplingParams,
        ServerConfig,
    )
    from data_gen.engines import open_engine as open_real
    from data_gen.engines.streaming import RequestSource
    from data_gen.instruction_pretrain.config import SynthesisConfig
    from data_gen.instruction_pretrain.formats import parse_pairs, render_prompt
    from data_gen.methods import synthesize
    from data_gen.stages.blocks import UnitOutput, run_blocks
    from data_gen.stages.ledger import Ledger
    from data_gen.stages.outputs import OutputFolder
    from ipt_jax.core.records import Record
    from ipt_jax.core.rejection import Reason

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "data_gen" / "sample_corpus" / "documents.jsonl"
IN_FLIGHT = 2000
PAIRS = "<QUE> What is it about? <ANS> A text. </END>\n\n<QUE> How long is it? <ANS> Short. </END>"


@dataclass(frozen=True)
class Work:
    """A text to ask about."""

    id: str
    text: str


def process(work: Work) -> Generator[Request, Completion, UnitOutput]:
    """One prompt, parsed as the method does, and a record."""
    prompt = render_prompt((), work.text)
    completion = yield Request(f"{work.id}/0", prompt, SamplingParams(max_tokens=64))
    record = Record(work.id, work.text + completion.text, "bench")
    pairs = len(parse_pairs(completion.text).pairs)
    return UnitOutput([("augmented", record)], counts={"pairs": pairs})


def failed(work: Work, failure: Reason) -> UnitOutput:
    """None may fail."""
    raise RuntimeError(f"{work.id}: {failure.detail}")


def under_runner(engine: Engine, works: list[Work]) -> int:
    """Everything that a run does; completion tokens."""
    with tempfile.TemporaryDirectory() as name, Ledger(Path(name)) as ledger:
        folder = OutputFolder(Path(name), ("augmented",))
        folder.begin()
        totals = run_blocks(
            works, process, failed, engine, ledger, folder,
            parts=("augmented",), units_per_block=1024, units_in_flight=2 * IN_FLIGHT,
        )  # fmt: skip
        return totals.usage.completion_tokens


def bare(engine: Engine, works: list[Work]) -> int:
    """The engine alone; completion tokens."""
    requests = (next(process(work)) for work in works)
    return sum(completion.completion_tokens for completion in engine.generate(requests))


def alternate(engine: Engine, works: list[Work], rounds: int) -> dict[str, Any]:
    """Both in turns: speed, processor time of this process, and ratios of pairs."""
    found: dict[str, list[tuple[float, float, int]]] = {"bare": [], "under the runner": []}
    order = [("bare", bare), ("under the runner", under_runner)]
    for number in range(rounds + 1):
        for name, work in order[:: 1 if number % 2 else -1]:
            since, cpu = time.perf_counter(), time.process_time()
            tokens = work(engine, works)
            if number:  # the first round warms up
                cpu_used = time.process_time() - cpu
                found[name].append((time.perf_counter() - since, cpu_used, tokens))
    table: dict[str, Any] = {}
    for name, measured in found.items():
        table[name] = {
            "requests/s": round(len(works) / statistics.median(m[0] for m in measured), 1),
            "output tokens/s": round(statistics.median(m[2] / m[0] for m in measured), 1),
            "ms of processor time a request": round(
                1000 * statistics.median(m[1] for m in measured) / len(works), 3
            ),
        }
    pairs = list(zip(found["bare"], found["under the runner"], strict=True))
    ratios = sorted(b[0] / r[0] for b, r in pairs)
    added = statistics.median(1000 * (r[1] - b[1]) / len(works) for b, r in pairs)
    table["speed under the runner to bare"] = [
        round(r, 3) for r in (ratios[0], statistics.median(ratios), ratios[-1])
    ]
    table["ms of processor time added a request"] = round(added, 3)
    return table


def runner(requests: int, latency_ms: int, rounds: int) -> dict[str, Any]:
    """The engine `server` against a stub that answers after a fixed time."""
    texts = [json.loads(line)["text"] for line in SAMPLE.read_text("utf-8").splitlines()]
    works = [Work(f"w{n:07d}", texts[n % len(texts)][:2000]) for n in range(requests)]
    with stub_server(latency_ms) as url:
        server = ServerConfig(url=url, start_concurrency=IN_FLIGHT, max_concurrency=IN_FLIGHT)
        engine = open_real(EngineConfig(name="server", model="auto", server=server))
        try:
            table = alternate(engine, works, rounds)
        finally:
            engine.close()
    return {"requests": requests, "in flight": IN_FLIGHT, "latency ms": latency_ms, **table}


@contextmanager
def stub_server(latency_ms: int) -> Iterator[str]:
    """A server that answers every request alike, in a process of its own."""
    command = [sys.executable, "-m", "tests.data_gen.misbehaving_server", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--latency_ms", str(latency_ms)],
        cwd=ROOT,
        stdin=subprocess.PIPE,  # it serves until this ends
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        port = re.search(r"\d+", process.stdout.readline())
        assert port is not None, "the stub server did not say its port"
        yield f"http://127.0.0.1:{port[0]}/v1"
    finally:
        process.kill()
        process.wait()


class Stub:
    """Answers at once; after so many answers it stands still, as if the run were killed."""

    name, version, model, revision, context_tokens = "stub", "1", "stub", "1", 4096

    def __init__(self, answers: int | None = None) -> None:
        self.left = answers
        self.first_asked = 0.0

    def count_tokens(self, text: Any) -> int:
        """Words."""
        return len(str(text).split())

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        """The same two pairs each time."""
        feed = RequestSource(requests)
        while not feed.exhausted:
            for request in feed.take(1024):
                self.first_asked = self.first_asked or time.perf_counter()
                if self.left is not None:
                    self.left -= 1
                    if self.left < 0:
                        raise KeyboardInterrupt
                yield Completion(request.id, PAIRS, "stop", 30, 30)

    def close(self) -> None:
        """Nothing to free."""


def resume(documents: int) -> dict[str, Any]:
    """Finish all but some documents of a run, then start it again in a new process."""
    with tempfile.TemporaryDirectory() as name:
        corpus, output = Path(name) / "corpus.jsonl", Path(name) / "out"
        with open(corpus, "w", encoding="utf-8") as file:
            for n in range(documents):
                text = f"Document {n} is about the number {n * 7919 % 104729}, as many are."
                file.write(json.dumps({"id": f"d{n:07d}", "text": text}) + "\n")
        config = SynthesisConfig(
            input=[str(corpus)], output=str(output), fraction=1.0, rounds=1, records_per_shard=4096
        )
        since = time.perf_counter()
        with suppress(KeyboardInterrupt):
            synthesize(config, engine=Stub(documents - 2000))
        made = time.perf_counter() - since
        ledger = sum(path.stat().st_size for path in output.glob("ledger.sqlite*"))
        command = [sys.executable, __file__, "resumed", "--folder", name]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
    return {
        "documents": documents,
        "seconds to make them": round(made, 1),
        "microseconds a document": round(1e6 * made / documents, 1),
        "ledger MB": round(ledger / 1e6, 1),
        **found,
    }


def resumed(folder: Path) -> dict[str, Any]:
    """The second process of `resume`."""
    config = SynthesisConfig(
        input=[str(folder / "corpus.jsonl")], output=str(folder / "out"), fraction=1.0, rounds=1,
        records_per_shard=4096,
    )  # fmt: skip
    engine, since = Stub(1), time.perf_counter()
    with suppress(KeyboardInterrupt):
        synthesize(config, engine=engine)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds to the first request": round(engine.first_asked - since, 2),
        "peak MB": round(peak / 1e6, 1),
    }


def engine(
    name: Literal["transformers", "vllm", "server"], model: str, documents: int, rounds: int
) -> dict[str, Any]:
    """A real engine, bare and under the runner, on real texts."""
    found = (d for d in read_corpus([str(SAMPLE)]) if isinstance(d, Document))
    works = [
        Work(f"w{n:05d}", d.text[:2000]) for n, d in zip(range(documents), found, strict=False)
    ]
    opened = open_real(EngineConfig(name=name, model=model, context_tokens=2048))
    try:
        return {"documents": len(works), **alternate(opened, works, rounds)}
    finally:
        opened.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("runner", "resume", "resumed", "engine"))
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--latency_ms", type=int, default=4000)
    parser.add_argument("--documents", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name", default="transformers")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="JSON file to write as well")
    options = parser.parse_args()
    if options.what == "runner":
        found = runner(options.requests, options.latency_ms, options.rounds)
    elif options.what == "resume":
        found = resume(options.documents or 1_000_000)
    elif options.what == "resumed":
        print(json.dumps(resumed(options.folder)))
        return
    else:
        found = engine(options.name, options.model, options.documents or 32, options.rounds)
    text = json.dumps({"what": options.what, **found}, indent=1)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
