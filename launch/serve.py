"""Serve a model by vLLM: python launch/serve.py --model FOLDER [--port 8000]."""

from ipt_jax.core.errors import importing

with importing():
    from data_gen.engines.serving import ServeConfig, serve
    from ipt_jax.core.configuration import parse_config, run_main


def main() -> None:
    """Serve until Ctrl-C."""
    serve(
        parse_config(
            ServeConfig,
            None,
            prog="launch/serve.py",
            description="Start vLLM's OpenAI-compatible server on a model folder, wait until it "
            "answers, and end it cleanly; for the engine `server`.",
        )
    )


if __name__ == "__main__":
    run_main(main)
