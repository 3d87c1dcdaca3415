"""The tool that foretells a step's speed: what it prints, and what it refuses."""

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from ipt_jax.core.errors import UserError

ROOT = Path(__file__).parents[2]
STEP = ROOT / "tests" / "ipt_jax" / "chips" / "small_step.hlo"
SPEC = importlib.util.spec_from_file_location("roofline", ROOT / "tools" / "roofline.py")
assert SPEC and SPEC.loader
roofline: Any = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(roofline)


def arguments(**changed: str) -> list[str]:
    given = {"hlo": str(STEP), "preset": "ipt_500m", "rows": "4", "row_tokens": "64"} | changed
    return [word for key, value in given.items() for word in (f"--{key}", *value.split())]


def test_both_speeds_with_the_compilers_own_figures_beside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed, own = tmp_path / "step.hlo.gz", tmp_path / "cost.json"
    packed.write_bytes(gzip.compress(STEP.read_bytes()))
    own.write_text(json.dumps({"optimal_seconds": 0.0125, "flops": 7e9, "utilization0{}": 1.0}))
    roofline.main(arguments(hlo=str(packed), cost_analysis=str(own)))
    printed = capsys.readouterr().out
    assert printed.startswith("Predicted, not measured: ipt_500m, 4 × 64 tokens on 1 h200")
    assert "each loop's body counted once: optimal_seconds 0.0125" in printed
    assert "utilization" not in printed
    assert "gemm_fusion_dot" in printed and "decoder.py:134 > layers.py:24" in printed


def test_as_json_it_is_what_the_rates_make_it(capsys: pytest.CaptureFixture[str]) -> None:
    rates = {"matrix_tflops": "1 2", "memory_gbs": "1e9", "link_gbs": "1e9", "devices": "2"}
    roofline.main([*arguments(**rates, device="a100_80"), "--json"])
    slow, fast = json.loads(capsys.readouterr().out)["predicted"]
    matrix = 4 * 2 * 256 * 512 * 512
    assert slow["kinds"]["matrix"]["seconds"] == pytest.approx(matrix / 1e12)
    assert fast["kinds"]["matrix"]["seconds"] == pytest.approx(matrix / 2e12)
    assert slow["tokens_per_second"] == pytest.approx(256 / slow["step_seconds"])
    config = roofline.PRESETS["ipt_500m"]
    flops = 256 * config.flops_per_token(64, causal=False)
    assert slow["mfu_full"] == pytest.approx(flops / slow["step_seconds"] / 312e12 / 2)
    assert slow["mfu_causal"] < slow["mfu_full"]
    # An A100's attention was not measured.
    assert [note for note in slow["notes"] if "no rate measured" in note]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"preset": "ipt_50m"}, "'ipt_500m'"),
        ({"device": "h20"}, "'h200'"),
        ({"device": "h100"}, "--matrix_tflops"),
        ({"hlo": "missing.hlo"}, "missing.hlo"),
        ({"hlo": __file__}, "test_roofline.py: this is no HLO"),
    ],
)
def test_bad_input_is_named(changed: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        roofline.main(arguments(**changed))
