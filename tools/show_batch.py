"""Print one batch as the model will see it: text, segment borders, loss, source.

    python tools/show_batch.py --data.mixture configs/mixtures/quickstart_instruct.yaml --batch 3

A bar begins each segment and says its source, its record and how many of its places carry loss.
Bold tokens are learnt, plain ones with a weight below 1, dim ones not; each source has its colour.
Where there are no colours, ⟦learnt⟧ tokens stand in brackets, after their weight if it is not 1.
BOS, EOS and the target behind the end of a row stand in ⟨⟩; control characters are shown, not sent.
Checksums are not compared: that is the training's part.
"""

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import TextIOWrapper

from ipt_jax.core.errors import importing

with importing():
    import numpy as np
    from rich.console import Console
    from rich.text import Text

    from ipt_jax.core.bounds import Config, NotNegative, Positive
    from ipt_jax.core.configuration import parse_config, run_main
    from ipt_jax.core.terminal import visible
    from ipt_jax.core.tokenizers import Tokenizer
    from ipt_jax.data.pipeline import (
        DataConfig,
        MixtureRows,
        OpenMixture,
        open_mixture,
        realised_rates,
        source_tokens,
    )
    from ipt_jax.data.rows import Segment

_COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red")


@dataclass(frozen=True)
class ShowConfig(Config):
    """What to show. Raises UserError for a batch that cannot be."""

    data: DataConfig = field(default_factory=DataConfig)
    """The data, as in a training config."""
    batch: NotNegative = 0
    """Position: the number of the batch, from 0."""
    rows: Positive = 2
    """B: rows in a batch."""


def texts_of(tokenizer: Tokenizer, ids: list[int], cuts: Sequence[int], goes_on: bool) -> list[str]:
    """The text of ids (neither BOS nor EOS) cut before each of ``cuts``; the parts join to it.

    ``goes_on``: the ids follow others of their text. A character whose bytes lie on both sides
    of a cut stands behind it.
    """
    head: list[int] = []
    if goes_on:
        # A sentencepiece model takes the space before the first id for its own.
        head = tokenizer.encode("a")
    begin = len(tokenizer.decode(head))
    whole = tokenizer.decode([*head, *ids])
    ends = [_shared(tokenizer.decode([*head, *ids[:cut]]), whole) for cut in cuts]
    borders = [begin, *ends, len(whole)]
    return [whole[a:b] for a, b in itertools.pairwise(borders)]


def _shared(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def pieces_of(
    tokenizer: Tokenizer, row: dict[str, np.ndarray], places: slice, goes_on: bool
) -> Iterator[tuple[str, float, bool]]:
    """Text, weight as a target and whether it is a special token, of each run of a segment."""
    ids = row["tokens"][places].tolist()
    # Weights are of targets: a token is learnt at the place before it.
    weights = [0.0, *row["loss_weights"][places].tolist()]
    last = weights.pop()
    names = {tokenizer.bos_id: "⟨BOS⟩", tokenizer.eos_id: "⟨EOS⟩"}
    special = [token in names for token in ids]
    texts = [n for n in range(len(ids)) if not special[n]]
    cuts = [k for k in range(1, len(texts)) if weights[texts[k]] != weights[texts[k - 1]]]
    words = iter(texts_of(tokenizer, [ids[n] for n in texts], cuts, goes_on))
    starts = {texts[k] for k in (0, *cuts)} if texts else set()
    for n, token in enumerate(ids):
        if special[n]:
            yield names[token], weights[n], True
        elif n in starts:
            yield next(words), weights[n], False
    if last:
        target = int(row["targets"][places][-1])
        (text,) = texts_of(tokenizer, [target], [], True)
        yield names.get(target, f"⟨then {text}⟩"), last, True


def show_row(
    data: OpenMixture, row: dict[str, np.ndarray], segments: Sequence[Segment], plain: bool
) -> Text:
    """One row [T] as coloured text, or with brackets where ``plain``; a bar for each segment."""
    shown = Text()
    borders = np.flatnonzero(np.diff(row["segment_ids"])) + 1
    borders = [0, *borders.tolist(), len(row["segment_ids"])]
    for begin, end in itertools.pairwise(borders):
        number = int(row["segment_ids"][begin])
        if number == 0:
            shown.append(f"┃ padding · {end - begin} tokens\n", "reverse")
            continue
        source, segment = int(row["source_ids"][begin]), segments[number - 1]
        colour = _COLOURS[source % len(_COLOURS)]
        learnt = int((row["loss_weights"][begin:end] > 0).sum())
        title = f"┃ {data.task_names[source]} · {end - begin} tokens · {learnt} with loss · "
        title += segment.id + (f" · from its token {segment.start}" if segment.start else "")
        shown.append(visible(title).replace("\n", "␊") + "\n", f"reverse {colour}")
        parts = pieces_of(data.tokenizer, row, slice(begin, end), segment.start > 0)
        for text, weight, special in parts:
            style = f"bold {colour}" if weight >= 1 else colour if weight else "dim"
            if plain and weight:
                text = f"⟦{text}⟧" if weight == 1 else f"⟦{weight:g}× {text}⟧"
            shown.append(visible(text), f"{style} italic" if special else style)
        shown.append("\n")
    return shown


def main(argv: Sequence[str] | None = None) -> None:
    """Read one batch and print it with its realised rates."""
    config = parse_config(ShowConfig, argv, prog="show_batch.py", description=str(__doc__))
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what the locale cannot write
    data, console = open_mixture(config.data, verify=False), Console(highlight=False, markup=False)
    start, stop = config.batch * config.rows, (config.batch + 1) * config.rows
    rows = MixtureRows(
        data,
        row_tokens=config.data.row_tokens,
        seed=config.data.seed,
        rows=stop,
        rows_per_batch=config.rows,
    )
    batch, segments = rows.take(start, stop), rows.segments(start, stop)
    for number in range(config.rows):
        console.rule(f"batch {config.batch}, row {number}")
        row = {name: array[number] for name, array in batch.items()}
        shown = show_row(data, row, segments[number], plain=console.color_system is None)
        console.print(shown, soft_wrap=True, end="")
    console.rule()
    realised = realised_rates(
        source_tokens(batch["source_ids"], len(data.task_names)), data.task_names
    )
    asked = data.token_shares([rates for step, rates in data.stages if step <= config.batch][-1])
    for name, share in asked.items():
        console.print(f"{visible(name)}: asked {share:.2%}, in this batch {realised[name]:.2%}")


if __name__ == "__main__":
    run_main(main)
