"""The synthesizer that the package carries: what it is made of, and that it writes pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from data_gen.engines.adapter import PACKAGED, read_adapter
from data_gen.instruction_pretrain.collection import DATASETS
from data_gen.instruction_pretrain.formats import parse_pairs
from ipt_jax.core.records import RecordSource
from tests.launching import ROOT, launch

NAME = "smollm2-135m-synthesizer"
FOLDER = PACKAGED[NAME].folder
PERMISSIVE = {"Apache-2.0", "MIT", "CC BY 4.0", "CC BY 3.0"}


@pytest.mark.parametrize("name", PACKAGED)
def test_every_packaged_adapter_is_there(name: str) -> None:
    found = read_adapter(name, PACKAGED[name].base)
    assert found.name == name and found.rank == 16 and len(found.targets) == 7
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 12e6
    with safe_open(FOLDER / "adapter_model.safetensors", "np") as tensors:
        assert {tensors.get_slice(key).get_dtype() for key in tensors.keys()} == {"BF16"}  # noqa: SIM118
    config = json.loads((FOLDER / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_its_card_names_every_set_and_licence_and_its_command(root: Path) -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    config = yaml.safe_load((root / "configs/tune/smollm2_135m.yaml").read_text())
    for source in config["tuning"]["sources"]:
        dataset = DATASETS[source["dataset"]]
        assert dataset.licence in PERMISSIVE
        (line,) = [line for line in card.splitlines() if line.startswith(f"| `{dataset.name}`")]
        assert dataset.licence in line
    assert "python launch/tune.py --config configs/tune/smollm2_135m.yaml" in card


def short_texts(path: Path, count: int) -> list[dict[str, str]]:
    """Documents between 400 and 900 characters long."""
    documents = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [one for one in documents if 400 < len(one["text"]) < 900][:count]


def test_it_writes_pairs_by_the_papers_config_and_its_shards_train(
    root: Path, shared: Path, smollm2: Path, tmp_path: Path
) -> None:
    """Without constraint: on real pages of the web, abstracts and tales."""
    pytest.importorskip("mistral_common", reason="carries the Mistral tokenizer")
    corpus, made = tmp_path / "corpus.jsonl", tmp_path / "ipt_general" / "synthesis"
    pages = short_texts(shared / "data/corpus_c4_demo/c4_demo.jsonl", 15)
    sample = short_texts(root / "data_gen/sample_corpus/documents.jsonl", 15)
    assert len(pages) == len(sample) == 15
    corpus.write_text("".join(json.dumps(one) + "\n" for one in pages + sample))
    synthesis = launch(
        *("launch/synthesize.py", "--config", "configs/synthesize/ipt_general.yaml"),
        *("--input", f"[{corpus}]", "--output", made, "--engine.name", "transformers"),
        *("--engine.model", "smollm2-135m-instruct", "--engine.adapter", NAME),
        *("--engine.cache_folder", smollm2.parent, "--engine.max_tokens", "128"),
    )
    assert synthesis.code == 0, synthesis.err
    summary = json.loads((made / "summary.json").read_text())
    parts = ("documents_augmented", "documents_plain", "documents_rejected")
    assert summary["documents_in"] == 30 == sum(summary[part] for part in parts)
    assert summary["documents_augmented"] >= 4 and summary["pairs"] >= 4
    source = RecordSource(made / "shards" / "augmented")
    for record in source.read(range(len(source))):
        written = record.provenance["generated"]
        assert len(written) == len(record.provenance["parents"])
        pairs = [pair for one in written for pair in parse_pairs(one).pairs]
        assert len(pairs) == record.provenance["pairs"] > 0
        assert all(pair.instruction in record.text for pair in pairs)

    mixture = yaml.safe_load((ROOT / "configs/mixtures/ipt_general.yaml").read_text())
    del mixture["tasks"]["tuning"], mixture["rates"]["tuning"]
    (tmp_path / "mixture.yaml").write_text(yaml.safe_dump({**mixture, "root": str(tmp_path)}))
    training = launch(
        *("launch/train.py", "--run_folder", tmp_path / "run", "--model.preset", "tiny"),
        *("--model.overrides", "{vocabulary_size: 32000}", "--data.row_tokens", "128"),
        *("--data.mixture", tmp_path / "mixture.yaml", "--batch_tokens", "512"),
        *("--train_tokens", "1024", "--optimizer.warmup_steps", "1"),
        *("--compilation_cache", "null"),
    )
    assert training.code == 0, training.err
    trained = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 0 < trained["final_loss"] < 11
