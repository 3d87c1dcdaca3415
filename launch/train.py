"""Train a model: python launch/train.py --config configs/train/NAME.yaml [--key value …]."""

from ipt_jax.core.errors import importing

with importing():
    from ipt_jax.core.configuration import parse_config, run_main
    from ipt_jax.training.config import TrainConfig
    from ipt_jax.training.dry_run import describe, estimate_memory, use_virtual_devices
    from ipt_jax.training.loop import train
    from ipt_jax.training.processes import abort_on_error, connect
    from ipt_jax.training.startup import apply_gpu_flags, configure_malloc, enable_compilation_cache


def main() -> None:
    config = parse_config(
        TrainConfig,
        None,
        prog="launch/train.py",
        description="Train a decoder on a mixture of record shards; goes on from its newest "
        "checkpoint when run again.",
    )
    if config.dry_run:
        use_virtual_devices(config.dry_run_devices)
        print(describe(estimate_memory(config), config))
        return
    configure_malloc()
    several = config.processes.coordinator is not None
    print(apply_gpu_flags(config.xla_flags, several))
    enable_compilation_cache(config.compilation_cache)
    connect(config.processes)
    with abort_on_error():
        summary = train(config)
    damaged, learnt = (sum(summary[key].values()) for key in ("damaged_records", "learnt_tokens"))
    tokens = summary["source_tokens"]
    none = [name for name, count in summary["learnt_tokens"].items() if tokens[name] and not count]
    print(
        f"trained on {summary['tokens']:,} tokens, {learnt:,} of them learnt, "
        f"in {summary['seconds']} s, "
        f"{summary['skipped']} batch(es) skipped, "
        f"{damaged} damaged record(s) left out, final loss {summary['final_loss']}: "
        f"{config.run_folder}"
    )
    if none:
        print(f"all masked, so that nothing of them was learnt: {', '.join(none)}")


if __name__ == "__main__":
    run_main(main)
