"""Measure exported models: python launch/evaluate.py --config configs/evaluate/NAME.yaml."""

from ipt_jax.core.errors import importing

with importing():
    from ipt_jax.core.configuration import parse_config, run_main, write_run_files
    from ipt_jax.evaluation.harness import EvaluationConfig, evaluate_models, format_table


def main() -> None:
    config = parse_config(
        EvaluationConfig,
        None,
        prog="launch/evaluate.py",
        description="Run lm-evaluation-harness on exported Hugging Face folders; writes "
        "results.json with 95% confidence intervals.",
    )
    config.check()
    results = evaluate_models(config, lambda folder: write_run_files(folder, config))
    print(format_table(results))
    print(f"wrote {config.output / 'results.json'}")


if __name__ == "__main__":
    run_main(main)
