"""A quickstart's folders with made-up numbers, for tests of the report."""

import json
import math
from pathlib import Path
from typing import Any

from ipt_jax.chains.quickstart_page import quickstart_report
from ipt_jax.evaluation.results import Result

HOSTILE = '<script>document.title="owned"</script><img src=x onerror="alert(1)"> & "quotes"'

SYNTHESIS = {
    "method": "instruction_pretrain",
    "model": "SmolLM2-135M-Instruct",
    "engine": "transformers",
    "constrained_decoding": True,
    "rounds": 2,
    "documents_in": 292,
    "documents_augmented": 251,
    "documents_plain": 38,
    "documents_rejected": 3,
    "plain_reasons": {"no_pair_kept": 30, "longer_than_the_context": 8},
    "rejected_documents": {"undecodable": 3},
    "pairs": 903,
    "completions": 281,
    "rejected_pieces": {"empty_answer": 21, "answer_repeats_question": 57, "unfinished": 9},
    "prompt_tokens": 190_233,
    "completion_tokens": 61_022,
    "seconds": 218.4,
    "completion_tokens_per_second": 279.4,
}
ENVIRONMENT = {
    "commit": "0123456789abcdef",
    "uncommitted_changes": False,
    "python": "3.12.1",
    "platform": "Linux-x86_64",
    "processors": 2,
    "packages": {"jax": "0.11.2", "torch": "2.13.0"},
    "devices": ["TFRT_CPU_0"],
}
RATES = {"raw": {"raw": 1.0}, "mixed": {"raw": 1.0, "augmented": 3.0}}


def sample(text: str = "The fox lives in the wood.\nIt hunts at night.") -> dict[str, Any]:
    """One entry of samples.json; `text` also stands in every other place a model writes to."""
    pair = {"instruction": f"Where does it live? {text}", "response": f"In the wood. {text}"}
    documents = [{"id": "d1", "text": text, "pairs": [pair, pair]}] * 2
    return {"id": f"d1 {text[:60]}", "source": "tales", "documents": documents}


def write_run(folder: Path, *, text: str | None = None) -> dict[str, Any]:
    """Write the folders; gives quickstart_report's keyword arguments."""
    synthesis = folder / "synthesis"
    synthesis.mkdir(parents=True)
    samples = [sample(text) if text else sample() for _ in range(8)]
    for name, value in (
        ("summary.json", SYNTHESIS),
        ("environment.json", ENVIRONMENT),
        ("samples.json", samples),
    ):
        (synthesis / name).write_text(json.dumps(value), encoding="utf-8")
    training = {}
    for number, (name, rates) in enumerate(RATES.items()):
        training[name] = run = folder / f"train_{name}"
        run.mkdir()
        whole = sum(rates.values())
        lines = [
            json.dumps(
                {
                    "step": step,
                    "tokens": step * 8192,
                    "loss": 4.5
                    + 6 * math.exp(-step / 30)
                    - 0.3 * number
                    + 0.1 * math.sin(step * 7),
                }
            )
            for step in range(1, 181)
        ]
        (run / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        shares = {task: rate / whole for task, rate in rates.items()}
        summary = {
            "model": "mistral-tiny",
            "parameters": 12_345_678,
            "tokens": 180 * 8192,
            "steps": 180,
            "seconds": 101.2,
            "final_loss": 4.5,
            "asked_rates": rates,
            "realised_rates": shares,
            "source_tokens": {task: int(180 * 8192 * share) for task, share in shares.items()},
            "devices": ["cpu"],
        }
        (run / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    results = []
    for name, value in (("raw", 0.26), ("mixed", 0.29)):
        results += [
            Result(
                name, "sample_continuation", "acc", value, 0.035, value - 0.07, value + 0.07, 160
            ),
            Result(name, "sample_perplexity", "bits_per_byte", 2.1, 0.05, 2.0, 2.2, 40, False),
        ]
    return {
        "synthesis_folder": synthesis,
        "training_folders": training,
        "evaluation_results": results,
        "logit_checks": {"raw": 3.1e-6, "mixed": 4.4e-6},
        "stage_seconds": {
            "synthesis": 251.0,
            "train raw": 101.0,
            "train mixed": 101.0,
            "check": 8.2,
        },
    }


def write_report(folder: Path, *, text: str | None = None) -> Path:
    """A whole report of a made run."""
    return quickstart_report(folder / "report.html", **write_run(folder, text=text))
