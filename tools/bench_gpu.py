"""Attention and training on one GPU, measured side by side; one command, one table.

    python tools/bench_gpu.py --write --trace trace

Run from the root of a checkout, with JAX for the GPU and what the train step imports. Ends within
12 minutes: each part has a budget, and what there was no time for is named. Contestants take turns,
figures are medians. Each part is a process of its own, so that a kernel that hangs or breaks costs
only its part. `--dry_run` does the same on a CPU with tiny shapes; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WORKER = Path(__file__)
RESULTS = ROOT / "docs" / "results" / "gpu.md"
MARK = "ROW "
ALL_SECONDS = 690.0
GRACE_SECONDS = 15.0  # for a part that watches its own time to come to its end
DRY_SECONDS = 600.0  # a simulated kernel is slow, and nothing is hired by the minute


@dataclass(frozen=True)
class Part:
    """One process: what it does, and for how long at most."""

    name: str
    """`kind:argument`, as `run_part` takes it."""
    seconds: float
    """Its budget, start and compilation included."""


# In the order of their worth: the last ones are left out first where earlier ones took too long.
# Together they fit into ALL_SECONDS.
PARTS = (
    Part("probe:cudnn_packed", 50),
    Part("probe:pallas_hopper", 65),
    Part("probe:pallas", 30),
    Part("steps:ipt_500m", 110),
    Part("steps:ipt_1_3b", 75),
    Part("steps:llama3_8b", 85),
    Part("case:packed:2048:64", 90),
    Part("case:packed:4096:128", 90),
    Part("case:causal:4096:128", 80),
)
# Only where `--parts` names them: there is no time for them beside the others.
MORE_PARTS = (
    Part("neighbours:all", 25),
    *(Part(f"{kind}:{width}", 45) for kind in ("autotune", "tiles") for width in (64, 128)),
)

# Where the lines that a timing of sizes prints belong.
SIZES = {
    "tuning": "TUNINGS in `ipt_jax/attention/pallas_hopper.py`",
    "tiles": "TABLE in `ipt_jax/attention/block_sizes.py`",
}

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.relative_to(ROOT)}")
    parser.add_argument("--dry_run", action="store_true", help="on a CPU, with tiny shapes")
    parser.add_argument("--parts", nargs="+", default=[part.name for part in PARTS])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=ALL_SECONDS, help="for everything")
    parser.add_argument("--trace", type=Path, help="folder for a profiler trace of two steps")
    parser.add_argument("--rows", type=Path, help="file that gets each row as it comes")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--leave_out", nargs="*", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        run_part(options)
    else:
        bench(options)


def bench(options: argparse.Namespace) -> None:
    """All parts one after another, then the table."""
    if options.dry_run:
        options.seconds = max(options.seconds, DRY_SECONDS * len(options.parts))
    until = time.monotonic() + options.seconds
    environment = environment_of(options)
    known = {part.name: part for part in (*PARTS, *MORE_PARTS)}
    wrong = [name for name in options.parts if name not in known]
    if wrong:
        raise SystemExit(f"error: --parts {' '.join(wrong)}: known are {', '.join(known)}")
    rows: list[Row] = []
    for part in (known[name] for name in options.parts):
        left = until - time.monotonic()
        if left < min(20.0, part.seconds):
            rows.append({"row": "skipped", "what": part.name, "why": "no time left"})
            continue
        seconds = min(DRY_SECONDS if options.dry_run else part.seconds, left)
        rows += run_process(part.name, seconds, options, environment, rows)
    table = render(rows, options)
    print(table)
    if options.write and not options.dry_run:
        RESULTS.write_text(table, encoding="utf-8")


def environment_of(options: argparse.Namespace) -> dict[str, str]:
    """What the parts' processes see."""
    path = filter(None, [str(ROOT), str(WORKER.parent), os.environ.get("PYTHONPATH")])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
    if options.dry_run:
        environment["JAX_PLATFORMS"] = "cpu"
    else:
        # The state of 8B takes most of the card.
        environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.94")
    return environment


def run_process(
    name: str,
    seconds: float,
    options: argparse.Namespace,
    environment: dict[str, str],
    before: list[Row],
) -> list[Row]:
    """The rows of one part; what it printed before it was stopped counts."""
    command = [sys.executable, str(WORKER), "--part", name]
    command += [
        "--rounds",
        str(options.rounds),
        "--seconds",
        str(max(5.0, seconds - GRACE_SECONDS)),
    ]
    command += ["--dry_run"] if options.dry_run else []
    command += ["--trace", str(options.trace)] if options.trace else []
    out = left_out(before)
    command += ["--leave_out", *out] if out else []
    print(f"{name} ({seconds:.0f} s at most)", file=sys.stderr, flush=True)
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    rows: list[Row] = []
    errors: list[str] = []
    readers = [
        threading.Thread(target=keep_rows, args=(process.stdout, rows, options.rows)),
        threading.Thread(target=lambda: errors.extend(process.stderr or ())),
    ]
    for reader in readers:
        reader.start()
    why = None
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        why = f"stopped after {seconds:.0f} s"
    for reader in readers:
        reader.join()
    if why is None and process.returncode:
        why = f"ended with {process.returncode}: {last_line(''.join(errors))}"
    if why:
        rows.append({"row": "skipped", "what": f"the rest of {name}", "why": why})
        keep(rows[-1], options.rows)
        if options.rows:
            options.rows.with_suffix(f".{name.replace(':', '_')}.txt").write_text("".join(errors))
    return rows


def keep_rows(output: Iterable[str] | None, rows: list[Row], file: Path | None) -> None:
    """The rows that a part prints, as they come."""
    for line in output or ():
        if line.startswith(MARK):
            rows.append(json.loads(line[len(MARK) :]))
            keep(rows[-1], file)


def keep(row: Row, file: Path | None) -> None:
    """Append to the file of rows, if there is one: what is measured stays if the machine goes."""
    if file is not None:
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")


def last_line(text: str) -> str:
    """Of an error's output, cut to one line of a table."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else "no message")[:200].replace("|", "/")


def left_out(rows: list[Row]) -> list[str]:
    """Our kernels that a probe found wrong, or whose probe broke or hung before its first row."""
    probed = [row for row in rows if row["row"] == "probe"]
    bad = {row["contestant"] for row in probed if not row["good"]}
    good = {row["contestant"] for row in probed} - bad
    for row in rows:
        if row["row"] == "skipped" and row["what"].startswith("the rest of probe:"):
            bad |= {row["what"].split(":")[1]} - good
    return sorted(bad)


def run_part(options: argparse.Namespace) -> None:
    """One part, in this process."""
    kind, argument = options.part.split(":", 1)

    def emit(row: str, **values: Any) -> None:
        print(MARK + json.dumps({"row": row, **values}), flush=True)

    if kind == "steps":
        import gpu_steps

        about(emit)
        gpu_steps.measure(
            argument, emit, options.rounds, options.seconds, options.dry_run, options.trace
        )
        return
    import gpu_attention

    about(emit)
    if kind == "probe":
        gpu_attention.probe(argument, emit, options.dry_run)
    elif kind == "autotune":
        gpu_attention.autotune(int(argument), emit, options.seconds, options.dry_run)
    elif kind == "tiles":
        gpu_attention.tiles(int(argument), emit, options.seconds, options.dry_run)
    elif kind == "case":
        mask, length, width = argument.split(":")
        case = gpu_attention.Case(mask, int(length), int(width))
        gpu_attention.compare(case, emit, options.rounds, options.dry_run, options.leave_out)
    else:
        import gpu_neighbours

        gpu_neighbours.measure(emit, options.rounds, options.dry_run)


def about(emit: Any) -> None:
    """What the figures hold for."""
    import jax
    from jaxlib import version as jaxlib_version

    device = jax.local_devices()[0]
    emit(
        "about",
        device=device.device_kind,
        jax=jax.__version__,
        jaxlib=jaxlib_version.__version__,
        platform=device.client.platform_version.splitlines()[0],
        date=time.strftime("%Y-%m-%d"),
    )


def render(rows: list[Row], options: argparse.Namespace) -> str:
    """The page: what was measured, and what was not."""
    of: dict[str, list[Row]] = {}
    for row in rows:
        of.setdefault(row["row"], []).append(row)
    lines = ["# On a GPU: figures", ""]
    if options.dry_run:
        lines += ["A dry run on a CPU: these figures mean nothing.", ""]
    for row in of.get("about", [])[:1]:
        lines += [
            f"{row['device']}, JAX {row['jax']}, jaxlib {row['jaxlib']}, {row['platform']}; "
            f"{row['date']}. `python tools/bench_gpu.py --write`: contestants in turns, medians of "
            f"{options.rounds} rounds, lowest and highest in brackets.",
            "",
        ]
    lines += attention_table(of.get("attention", []))
    lines += training_table(of)
    lines += neighbours_table(of)
    lines += ["## Sizes", ""] if any(of.get(name) for name in SIZES) else []
    for name, place in SIZES.items():
        if of.get(name):
            printed = "\n".join(row["line"] for row in of[name]).splitlines()
            lines += [f"For {place}:", "", *("    " + line.strip() for line in printed), ""]
    for row in of.get("trace", []):
        lines += [f"A trace of two steps of {row['model']}: {row['folder']}.", ""]
    lines += not_measured(of)
    return "\n".join(lines).rstrip() + "\n"


def attention_table(rows: list[Row]) -> list[str]:
    """Speed of the attention kernels."""
    if not rows:
        return []
    lines = [
        "## Attention",
        "",
        "TFLOP/s of the pairs that the mask lets through, 16,384 tokens, 2,048 wide. Distance: "
        "relative, to the definition in float32.",
        "",
        "| mask | tokens | head | pass | contestant | TFLOP/s | ms | speed to cuDNN | distance |",
        "|---|--:|--:|---|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        ratio = "" if row["to_cudnn"] is None else f"{row['to_cudnn']:.2f}"
        low, high = row["spread"]
        lines.append(
            f"| {row['mask']} | {row['length']} | {row['head_width']} | {row['passing']} "
            f"| {row['contestant']} | {row['tflops']:.3g} ({low:.3g}, {high:.3g}) "
            f"| {row['milliseconds']:.3g} | {ratio} | {row['error']:.2g} |"
        )
    return [*lines, ""]


def training_table(of: dict[str, list[Row]]) -> list[str]:
    """Speed and memory of the train steps."""
    if not of.get("training"):
        return []
    lines = [
        "## Training",
        "",
        "| model | rows | contestant | tokens/s | MFU, causal | MFU, full | peak, GB "
        "| temporaries, GB |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in of["training"]:
        low, high = row["spread"]
        shares = ("" if x is None else f"{x:.1%}" for x in (row["mfu_causal"], row["mfu_full"]))
        lines.append(
            f"| {row['model']} | {row['rows']} | {row['contestant']} "
            f"| {row['tokens_per_second']:,.0f} ({low:,.0f}, {high:,.0f}) | {' | '.join(shares)} "
            f"| {_gigabytes(row['peak_bytes'])} | {_gigabytes(row['temp_bytes'])} |"
        )
    return [*lines, "", "8B with AdamW's moments in bfloat16.", ""]


def _gigabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e9:.1f}"


def neighbours_table(of: dict[str, list[Row]]) -> list[str]:
    """What XLA makes of norm, rotary embedding, SwiGLU and cross-entropy."""
    lines = []
    if of.get("neighbour"):
        lines += [
            "## Neighbours",
            "",
            "As XLA makes them, of a block of 1.3B and 16,384 tokens; beside a copy of as many "
            "bytes.",
            "",
            "| function | pass | ms | GB/s | speed to the copy's |",
            "|---|---|--:|--:|--:|",
        ]
    for row in of.get("neighbour", []):
        low, high = row["spread"]
        lines.append(
            f"| {row['what']} | {row['passing']} | {row['milliseconds']:.3g} "
            f"| {row['gigabytes_per_second']:,.0f} | {row['of_copy']:.2f} ({low:.2f}, {high:.2f}) |"
        )
    for row in of.get("cross_entropy", []):
        lines += [
            "",
            f"Cross-entropy with its gradients, in chunks: {row['milliseconds']:.3g} ms, "
            f"{row['to_at_once']:.2f} of the speed with all logits at once, "
            f"{row['bytes'] / 1e9:.2f} GB beside {row['bytes_at_once'] / 1e9:.2f} GB.",
        ]
    return [*lines, ""] if lines else []


def not_measured(of: dict[str, list[Row]]) -> list[str]:
    """What failed, was left out, or had no time; never silently."""
    lines = []
    for row in of.get("probe", []):
        if not row["good"]:
            far = ", ".join(f"{x:.2g}" for x in row["distances"])
            lines.append(f"- {row['contestant']}, {row['mask']}: wrong ({far}), left out")
    for row in of.get("failed", []):
        where = " ".join(str(row[k]) for k in ("model", "rows", "mask", "length") if k in row)
        lines.append(f"- {row['contestant']}, {where}: {row['reason']}")
    for row in of.get("skipped", []):
        lines.append(f"- {row['what']}: {row.get('why', 'no time left')}")
    return ["## Not measured", "", *lines] if lines else []


if __name__ == "__main__":
    main()
