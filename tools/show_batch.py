"""Print one batch as the model will see it: text, segment borders, loss, source.

    python tools/show_batch.py --data.mixture configs/mixtures/quickstart_instruct.yaml --batch 3

Bold tokens carry loss, dim ones do not; each source has its colour; a bar begins each segment.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.text import Text

from ipt_jax.configuration import parse_config, run_main
from ipt_jax.data.pipeline import (
    DataConfig,
    OpenMixture,
    batches,
    open_mixture,
    realised_rates,
    source_tokens,
)

_COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red")


@dataclass(frozen=True)
class ShowConfig:
    """What to show."""

    data: DataConfig = field(default_factory=DataConfig)
    """The data, as in a training config."""
    batch: int = 0
    """Position: the number of the batch."""
    rows: int = 2
    """B: rows in a batch."""


def show_row(data: OpenMixture, row: dict[str, np.ndarray]) -> Text:
    """One row [T] as coloured text, a line for each segment."""
    shown = Text()
    for segment in range(1, int(row["segment_ids"].max()) + 1):
        (places,) = np.nonzero(row["segment_ids"] == segment)
        source = int(row["source_ids"][places[0]])
        colour = _COLOURS[source % len(_COLOURS)]
        shown.append(f"┃ {data.task_names[source]} · {len(places)} tokens\n", f"reverse {colour}")
        ids, weights = row["tokens"][places], np.roll(row["loss_weights"][places], 1)
        weights[0] = 0  # weights are of targets: a token is learnt at the place before it
        borders = np.flatnonzero(np.diff(weights > 0)) + 1
        for part in np.split(np.arange(len(places)), borders):
            style = f"bold {colour}" if weights[part[0]] > 0 else "dim"
            shown.append(data.tokenizer.decode(ids[part].tolist()) + " ", style)
        shown.append("\n")
    if padding := int((row["segment_ids"] == 0).sum()):
        shown.append(f"┃ padding · {padding} tokens\n", "reverse")
    return shown


def main(argv: Sequence[str] | None = None) -> None:
    """Read one batch and print it with its realised rates."""
    config = parse_config(ShowConfig, argv, prog="show_batch.py", description=str(__doc__))
    data, console = open_mixture(config.data), Console()
    batch = next(
        batches(
            data,
            rows_per_batch=config.rows,
            total_batches=config.batch + 1,
            start_batch=config.batch,
            worker_count=0,
        )
    )
    for number in range(config.rows):
        console.rule(f"batch {config.batch}, row {number}")
        console.print(show_row(data, {name: array[number] for name, array in batch.items()}))
    realised = realised_rates(
        source_tokens(batch["source_ids"], len(data.task_names)), data.task_names
    )
    rates = [rates for step, rates in data.stages if step <= config.batch][-1]
    for name, asked in rates.items():
        console.print(f"{name}: asked {asked:.2%}, in this batch {realised[name]:.2%}")


if __name__ == "__main__":
    run_main(main)
