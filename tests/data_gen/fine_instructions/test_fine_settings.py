"""Settings of the stages that cannot be, refused by their keys, and the files of settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from data_gen.baselines.rewrite import RewriteConfig
from data_gen.fine_instructions.budget import BudgetConfig
from data_gen.fine_instructions.descriptions import DescribeConfig
from data_gen.fine_instructions.genericize import GenericizeConfig
from data_gen.fine_instructions.instantiate import InstantiateConfig
from data_gen.fine_instructions.students import StudentsConfig
from data_gen.methods import METHODS
from data_gen.quality.judge import JudgeConfig
from data_gen.quality.stage import FilterConfig
from ipt_jax.core.configuration import parse_config
from ipt_jax.core.errors import UserError

REFUSED: list[tuple[Any, dict[type, str]]] = [
    (0, {
        BudgetConfig: "documents_per_block",
        DescribeConfig: "description_characters",
        InstantiateConfig: "pair_tokens",
        RewriteConfig: "pairs_per_150_tokens least_words",
        StudentsConfig: "sequence_tokens examples",
    }),
    (-1, {GenericizeConfig: "repairs", InstantiateConfig: "most_templates"}),
    (1.1, {InstantiateConfig: "excerpt_share language_score"}),
    (1.0, {StudentsConfig: "null_share held_out_share"}),
    ("other", {GenericizeConfig: "form", InstantiateConfig: "form", JudgeConfig: "form",
               StudentsConfig: "student"}),
    (["other"], {RewriteConfig: "tasks"}),
    ([], {BudgetConfig: "input documents", RewriteConfig: "tasks", StudentsConfig: "input"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("cls", "key", "value"),
    [(cls, key, v) for v, keys in REFUSED for cls, names in keys.items() for key in names.split()],
)
def test_a_value_that_cannot_be_is_refused_by_its_key(cls: type, key: str, value: Any) -> None:
    with pytest.raises(UserError) as refused:
        cls(**{key: value})
    assert refused.value.key and refused.value.key.split(".")[0] == key


def test_every_file_of_settings_of_a_method_can_be_read(root: Path) -> None:
    paths = sorted((root / "configs/synthesize").glob("*.yaml"))
    read = {}
    for path in paths:
        method = yaml.safe_load(path.read_text()).get("method", "instruction_pretrain")
        if method in METHODS:
            config = parse_config(
                METHODS[method].Config, ["--config", str(path)], prog="x", description=""
            )
            read[path.stem] = config
    assert {
        *("fi_templates", "fi_descriptions", "fi_instantiate", "fi_budget"),
        *("wrap", "diverse_qa", "nemotron_mixture"),
    } <= read.keys()
    judged = parse_config(
        FilterConfig,
        ["--config", str(root / "configs/quality/judged.yaml")],
        prog="x",
        description="",
    )
    # Each step reads what the one before it writes.
    assert judged.input == [f"{read['fi_instantiate'].output}/shards/pairs"]
    assert read["fi_budget"].input == [f"{judged.output}/shards"]
    assert read["fi_budget"].documents == [f"{read['fi_instantiate'].output}/shards/raw"]
    mixture = yaml.safe_load((root / "configs/mixtures/fi_ipt.yaml").read_text())
    trained = f"{mixture['root']}/{mixture['tasks']['pairs']['source']}"
    assert trained == f"{read['fi_budget'].output}/shards"
    assert (read["wrap"].tasks, read["diverse_qa"].tasks) == (["rephrase"], ["qa"])
