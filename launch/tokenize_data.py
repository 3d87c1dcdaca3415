"""Tokenise beforehand: python launch/tokenize_data.py --config configs/tokenize/NAME.yaml […].

Not named tokenize.py: scripts in this folder would then import it for Python's own module.
"""

from ipt_jax.core.errors import importing

with importing():
    from ipt_jax.core.configuration import parse_config, run_main
    from ipt_jax.data.token_run import MIXTURE_NAME, TokenizeConfig, tokenize


def main() -> None:
    config = parse_config(
        TokenizeConfig,
        None,
        prog="launch/tokenize_data.py",
        description="Write the tasks of a mixture as token shards, which give the same rows as "
        "their texts; goes on where it was stopped when run again.",
    )
    for task in tokenize(config, lambda name, done, total: print(f"{name}: {done}/{total} shards")):
        print(
            f"{task.name}: {task.records:,} records, {task.damaged:,} of them damaged, "
            f"{task.tokens:,} tokens, {task.new_shards} new shard(s) in {task.folder}"
        )
    print(f"train with --data.mixture {config.output / MIXTURE_NAME}")


if __name__ == "__main__":
    run_main(main)
