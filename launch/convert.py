"""Convert weights: launch/convert.py to-hf --run RUN [--verify] | from-hf --folder FOLDER."""

from ipt_jax.core.errors import importing

with importing():
    import sys

    from ipt_jax.core.configuration import parse_config, run_main
    from ipt_jax.core.errors import UserError
    from ipt_jax.training.convert import (
        FromHuggingFaceConfig,
        ToHuggingFaceConfig,
        from_hugging_face_folder,
        to_hugging_face_folder,
    )

USAGE = """usage: launch/convert.py {to-hf,from-hf} [--help] [--key value ...]

to-hf    a training run's newest checkpoint -> a Hugging Face folder
from-hf  a Hugging Face folder -> a run folder that training can start from"""


def main() -> None:
    direction, *arguments = sys.argv[1:] or ["--help"]
    if direction in ("-h", "--help"):
        print(USAGE)
    elif direction == "to-hf":
        config = parse_config(
            ToHuggingFaceConfig, arguments, prog="launch/convert.py to-hf", description=USAGE
        )
        folder, difference = to_hugging_face_folder(config)
        checked = "" if difference is None else f", logits within {difference:.1e} of transformers'"
        print(f"wrote {folder}{checked}")
    elif direction == "from-hf":
        config = parse_config(
            FromHuggingFaceConfig, arguments, prog="launch/convert.py from-hf", description=USAGE
        )
        print(f"wrote {from_hugging_face_folder(config)}")
    else:
        raise UserError(f"unknown direction {direction!r}; choose to-hf or from-hf.")


if __name__ == "__main__":
    run_main(main)
