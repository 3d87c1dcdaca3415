"""Mined pairs to a tuned encoder, and to the threshold that belongs to one (section 3.2)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from data_gen.embedding.embedder import (
    HASHED_WORDS,
    EncoderConfig,
    encoder_folder,
    encoder_identity,
    load_encoder,
    open_embedder,
)
from data_gen.embedding.tuning import (
    CHECKPOINT,
    LabelledPair,
    TuningSteps,
    pair_scores,
    tune_encoder,
)
from data_gen.fine_instructions.calibrate import JudgedPair, calibrate, load_judged
from data_gen.fine_instructions.mine import read_judged
from data_gen.stages.config import OutputConfig
from ipt_jax.core.bounds import Above, AtMost, Fraction, NotEmpty, Positive, Share
from ipt_jax.core.errors import UserError
from ipt_jax.core.files import atomic_write
from ipt_jax.core.fingerprint import file_digest
from ipt_jax.core.json_lines import load_json
from ipt_jax.core.records import RecordSource
from ipt_jax.core.report.markdown import markdown
from ipt_jax.core.report.values import Report, Section, Table
from ipt_jax.core.run_folder import RUN_FILES, RunFolder, prints_of
from ipt_jax.core.seeds import generator_of

ENCODER, SUMMARY, THRESHOLD, TABLE = "encoder", "summary.json", "threshold.json", "precision.md"
Tell = Callable[[str], None]
Start = Callable[[Path], None]


@dataclass(frozen=True, kw_only=True)
class TuneEncoderConfig(OutputConfig):
    """Judged pairs in, a tuned encoder out."""

    output: str = "runs/fi_encoder"
    """Folder: the encoder lies in encoder/."""
    pairs: Annotated[list[str], NotEmpty("folders of judged pairs")] = field(
        default_factory=lambda: ["runs/fi_pairs_mined/shards/judged"]
    )
    """Shards that `fi_pairs_mined` writes, of one round or of several."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """What is tuned: in round 2 the folder that round 1 wrote."""
    held_out: Fraction = 0.1
    """Share of the documents that it is not tuned on, but measured with before and after."""
    steps: TuningSteps = field(default_factory=TuningSteps)
    """The training."""


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig(OutputConfig):
    """Judged pairs in, a threshold out."""

    output: str = "runs/fi_threshold"
    """Folder: threshold.json and precision.md are written there."""
    pairs: Annotated[list[str], NotEmpty("folders of judged pairs, or files")] = field(
        default_factory=lambda: ["runs/fi_pairs_mined/shards/judged"]
    )
    """Shards that `fi_pairs_mined` writes, whose texts `encoder` embeds; or files of JSON lines
    with `score` and `fits`."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """The one to be matched with."""
    precision: Annotated[float, Above(0), AtMost(1)] = 0.8
    """Least share of fitting pairs at or above the threshold; the paper chose by hand."""
    least_pairs: Positive = 20
    """Judged pairs that have to lie there."""
    held_out: Share = 1.0
    """Use the pairs of so many of the documents alone: with the value and the seed of the encoder's
    tuning those that it was not tuned on; 1: all."""
    seed: int = 0
    """Of `held_out`."""


def labelled_pairs(folders: Sequence[str]) -> list[tuple[str, LabelledPair]]:
    """The pairs of such shards with the ids of their documents. Raises UserError."""
    return [
        (record.id, LabelledPair(record.text, one.chunk, one.description, one.fits))
        for record, judged in read_judged(folders)
        for one in judged
    ]


def run_tuning(config: TuneEncoderConfig, tell: Tell = print, on_start: Start | None = None) -> Any:
    """Make the folder `config.output`, or go on where it stopped; gives back its summary.

    Raises:
      UserError: no pairs, all of one label, no encoder, or as `tune_encoder` and RunFolder.open.
    """
    if config.encoder.model == HASHED_WORDS:
        raise UserError(f"`{HASHED_WORDS}` learns nothing: name a model.", key="encoder.model")
    prints = {
        "pairs": [RecordSource(folder).fingerprint for folder in config.pairs],
        "encoder": encoder_identity(config.encoder),
        "held_out": config.held_out,
        "steps": asdict(config.steps),
        "method": "fi_encoder/1",
    }
    folder, owns = Path(config.output).expanduser(), (*RUN_FILES, SUMMARY, f"{ENCODER}/")
    owns = (*owns, CHECKPOINT, Path(CHECKPOINT).stem + ".tmp")
    with RunFolder.open(
        folder, "fi_encoder", prints_of(prints), owns=owns, fresh=config.fresh
    ) as run:
        if run.finished:
            return load_json(folder / SUMMARY)
        run.begin()
        if on_start is not None:
            on_start(folder)
        named = labelled_pairs(config.pairs)
        tuned, held_out = list[LabelledPair](), list[LabelledPair]()
        for name, pair in named:
            out = _held_out(config.held_out, config.steps.seed, name)
            (held_out if out else tuned).append(pair)
        if len({pair.fits for pair in tuned}) < 2:
            raise UserError(
                f"`pairs` holds {len(tuned):,} pairs to tune on, and all are of one label: judge "
                "more, or further `ranks`.",
                key="pairs",
                path=config.pairs[0],
            )
        # In half precision AdamW's steps are lost.
        encoder = replace(config.encoder, dtype="float32")
        model = load_encoder(encoder_folder(encoder), encoder)
        before = _measured(model, held_out, config)

        def progress(step: int, total: int, loss: float) -> None:
            if step == total or step % max(1, total // 20) == 0:
                tell(f"step {step:,} of {total:,}: loss {loss:.4f}")

        losses = tune_encoder(model, tuned, config.steps, folder, progress)
        model.save_pretrained(str(folder / ENCODER), create_model_card=False)
        summary = {
            "pairs": len(tuned),
            "fit": sum(pair.fits for pair in tuned),
            "losses_by_tenth": [round(loss, 5) for loss in losses],
            "held_out": {"pairs": len(held_out), "before": before},
        }
        summary["held_out"]["after"] = _measured(model, held_out, config)
        atomic_write(folder / SUMMARY, json.dumps(summary, indent=1) + "\n")
        (folder / CHECKPOINT).unlink(missing_ok=True)
        run.finish()
    return summary


def run_calibration(
    config: CalibrateConfig, tell: Tell = print, on_start: Start | None = None
) -> dict[str, Any]:
    """Make the folder `config.output`; gives back what threshold.json says.

    Raises:
      UserError: as `calibrate`, `load_judged` and RunFolder.open.
    """
    files = [path for path in map(Path, config.pairs) if path.expanduser().is_file()]
    folders = [path for path in config.pairs if Path(path) not in files]
    prints = {
        "files": [file_digest(path.expanduser()) for path in files],
        "pairs": [RecordSource(folder).fingerprint for folder in folders],
        "precision": [config.precision, config.least_pairs],
        "held_out": [config.held_out, config.seed],
        "method": "fi_threshold/1",
    }
    if folders:
        prints["encoder"] = encoder_identity(config.encoder)
    folder, owns = Path(config.output).expanduser(), (*RUN_FILES, THRESHOLD, TABLE)
    with RunFolder.open(
        folder, "fi_threshold", prints_of(prints), owns=owns, fresh=config.fresh
    ) as run:
        if run.finished:
            return load_json(folder / THRESHOLD)
        run.begin()
        if on_start is not None:
            on_start(folder)
        judged = [pair for path in files for pair in load_judged(path)]
        if folders:
            named = labelled_pairs(folders)
            pairs = [p for name, p in named if _held_out(config.held_out, config.seed, name)]
            tell(f"embedding {len(pairs):,} pairs")
            judged += _scored(pairs, config.encoder)
        found = calibrate(judged, config.precision, config.least_pairs)
        atomic_write(folder / THRESHOLD, json.dumps(found.content(), indent=1) + "\n")
        rows = [(p.threshold, p.pairs, p.precision, p.found) for p in found.table]
        table = Table("", ("threshold", "pairs at or above", "fit", "of all that fit"), rows)
        about = f"From {found.threshold:.4f} on at least {config.precision:.0%} of pairs fit."
        report = Report("Precision by threshold", about, [], [Section("", [table])])
        atomic_write(folder / TABLE, markdown(report))
        run.finish()
    return load_json(folder / THRESHOLD)


def _scored(pairs: Sequence[LabelledPair], encoder: EncoderConfig) -> list[JudgedPair]:
    """The pairs with their cosines; a text of several is embedded once."""
    row_of: dict[str, int] = {}
    for pair in pairs:
        row_of.setdefault(pair.text, len(row_of))
        row_of.setdefault(pair.other, len(row_of))
    vectors_NCE = open_embedder(encoder).embed(list(row_of)).astype(np.float32)
    return [
        JudgedPair(
            float(vectors_NCE[row_of[p.text], p.chunk] @ vectors_NCE[row_of[p.other], 0]), p.fits
        )
        for p in pairs
    ]


def _held_out(share: float, seed: int, document: str) -> bool:
    return bool(generator_of(seed, "held out", document).random() < share)


def _measured(model: Any, pairs: Sequence[LabelledPair], config: TuneEncoderConfig) -> Any:
    """How well cosines tell what fits from what does not; null without both."""
    fits_N = np.array([pair.fits for pair in pairs], bool)
    if not 0 < fits_N.sum() < len(fits_N):
        return None
    score_N = pair_scores(model, pairs, config.steps.batch_pairs)
    return {
        "mean_cosine_fit": round(float(score_N[fits_N].mean()), 4),
        "mean_cosine_other": round(float(score_N[~fits_N].mean()), 4),
        "roc_auc": round(roc_auc(score_N, fits_N), 4),
    }


def roc_auc(score_N: np.ndarray, fits_N: np.ndarray) -> float:
    """How often one that fits scores above one that does not, ties half; NaN without both."""
    right, wrong = np.sort(score_N[fits_N]), np.sort(score_N[~fits_N])
    if not len(right) or not len(wrong):
        return math.nan
    below = np.searchsorted(wrong, right, "left") + np.searchsorted(wrong, right, "right")
    return float(below.mean() / 2 / len(wrong))
