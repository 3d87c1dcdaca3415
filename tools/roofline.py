"""Foretell a train step's speed on a chip from its compiled HLO, without the chip.

    python tools/roofline.py --hlo step.hlo.gz --preset ipt_500m --rows 32 --row_tokens 2048

The HLO is `compiled.as_text()` of one step, compiled for that chip. What is printed is predicted:
`ipt_jax/chips/hlo_cost.py` says how, and what it leaves out.
"""

import argparse
import dataclasses
import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ipt_jax.core.errors import importing

with importing():
    from ipt_jax.chips.devices import DEVICES
    from ipt_jax.chips.hlo_cost import MEASURED, Attention, Rates, measured_attention, predict
    from ipt_jax.core.configuration import run_main
    from ipt_jax.core.errors import UserError, did_you_mean
    from ipt_jax.models.config import PRESETS


def options_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--hlo", type=Path, required=True, help="text; .gz too")
    add("--preset", required=True, help="a name from ipt_jax/models/config.py")
    add("--rows", type=int, required=True, help="a step, of all devices together")
    add("--row_tokens", type=int, required=True)
    add("--device", default="h200", help="a name from ipt_jax/chips/devices.py")
    add("--devices", type=int, default=1, help="that share the step")
    add("--matrix_tflops", type=float, nargs="+", help="reached; several: a prediction each")
    add("--memory_gbs", type=float, help="GB/s reached")
    add("--link_gbs", type=float, help="GB/s from one device to the others")
    share = "of a row's T × T pairs seen; documents of 512 tokens: 0.16 at T 2,048, 0.1 at 4,096"
    add("--pairs_share", type=float, default=0.16, help=f"{share}; one a row: 0.5")
    add("--attention_tflops", type=float, nargs=2, help="of pairs seen, forward and backward")
    add("--cost_analysis", type=Path, help="JSON of `compiled.cost_analysis()`, shown beside")
    add("--json", action="store_true", help="everything, all kernels too")
    options = parser.parse_args(argv)
    for name, known in (("preset", PRESETS), ("device", DEVICES)):
        if (given := getattr(options, name)) not in known:
            raise UserError(f"--{name} {given}: there is none. {did_you_mean(given, known)}")
    if options.device not in MEASURED and not (options.matrix_tflops and options.memory_gbs):
        raise UserError(
            f"--device {options.device}: its rates are not known (those of {', '.join(MEASURED)} "
            "are); give --matrix_tflops and --memory_gbs, and for several devices --link_gbs."
        )
    return options


def rates_of(options: argparse.Namespace) -> tuple[list[Rates], Attention]:
    """Those of the command line before those measured on that device."""
    found = list(MEASURED.get(options.device, ())) or [Rates(0.0, 0.0)]
    attention = measured_attention(options.pairs_share)
    if options.matrix_tflops:
        found = [
            dataclasses.replace(found[0], matrix_flops=x * 1e12) for x in options.matrix_tflops
        ]
    for key, given in (("memory", options.memory_gbs), ("link", options.link_gbs)):
        if given:
            change = {f"{key}_bytes_per_second": given * 1e9}
            found = [dataclasses.replace(rates, **change) for rates in found]
    if options.attention_tflops or options.device not in MEASURED:
        given = tuple(x * 1e12 for x in options.attention_tflops or ())
        attention = dataclasses.replace(attention, flops={("", 0): given} if given else {})
    return found, attention


def read(path: Path) -> str:
    """A text file, packed or not."""
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); dump it again.") from error


def predicted(options: argparse.Namespace, rates: Rates, attention: Attention) -> dict[str, Any]:
    """What training would report, and where the step's time goes."""
    text = read(options.hlo)
    try:
        found = predict(text, rates, attention)
    except UserError as error:
        raise UserError(f"{options.hlo}: {error}") from error
    tokens, decoder = options.rows * options.row_tokens, PRESETS[options.preset]
    peak = found.seconds * DEVICES[options.device].peak_flops * options.devices
    causal, full = (decoder.flops_per_token(options.row_tokens, causal=x) for x in (True, False))
    sums, kinds = ("seconds", "flops", "moved_bytes", "runs"), "matrix attention memory link"
    return {
        "rates": dataclasses.asdict(rates),
        "step_seconds": found.seconds,
        "overlapped_seconds": found.overlapped_seconds,
        "tokens_per_second": tokens / found.seconds,
        "mfu_causal": causal * tokens / peak,
        "mfu_full": full * tokens / peak,
        "kinds": {kind: {key: found.total(key, kind) for key in sums} for kind in kinds.split()},
        "kernels": [dataclasses.asdict(kernel) for kernel in found.kernels],
        "notes": found.notes,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Read, predict, print."""
    options = options_of(argv)
    rates, attention = rates_of(options)
    own = json.loads(read(options.cost_analysis)) if options.cost_analysis else {}
    found = [predicted(options, one, attention) for one in rates]
    if options.json:
        print(json.dumps({"predicted": found, "cost_analysis": own}, indent=1))
        return
    where = f"{options.rows} × {options.row_tokens} tokens on {options.devices} {options.device}"
    print(f"Predicted, not measured: {options.preset}, {where}, {options.pairs_share:.1%} of pairs")
    print("TFLOP/s  GB/s | ms a step, links hidden | tokens/s | MFU causal, full")
    for one, x in zip(rates, found, strict=True):
        print(
            f"{one.matrix_flops / 1e12:7.0f} {one.memory_bytes_per_second / 1e9:5.0f} | "
            f"{x['step_seconds'] * 1e3:9.1f} {x['overlapped_seconds'] * 1e3:13.1f} | "
            f"{x['tokens_per_second']:8,.0f} | {x['mfu_causal']:10.1%} {x['mfu_full']:5.1%}"
        )
    for key in own.keys() & {"optimal_seconds", "flops", "bytes accessed"}:
        print(f"the compiler's own, each loop's body counted once: {key} {own[key]:.4g}")
    print("\nPredicted at the first rates:\n     ms  share   runs    TFLOP       GB")
    rows = [*found[0]["kinds"].items(), *((x["kind"], x) for x in found[0]["kernels"][:10])]
    for kind, x in rows:
        source = re.sub(r"[^ ]*/", "", x.get("source", ""))
        operation = x.get("op_name", "").rpartition("/while/body/")[2]
        print(
            f"{x['seconds'] * 1e3:7.2f} {x['seconds'] / found[0]['step_seconds']:6.1%} "
            f"{x['runs']:6,} {x['flops'] / 1e12:8.2f} {x['moved_bytes'] / 1e9:8.2f} "
            f"{kind:9} {x.get('name', 'together')}  {operation}  {source}".rstrip()
        )
    print(*(f"note: {note}" for note in found[0]["notes"]), sep="\n")


if __name__ == "__main__":
    run_main(main)
