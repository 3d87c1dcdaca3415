"""Raw text to a comparison of two small models: python launch/quickstart.py [--minutes N].

Run again, it goes on where it stopped and skips what is done; --fresh starts over.
"""

from __future__ import annotations

from ipt_jax.core.errors import importing

with importing():
    from ipt_jax.chains.quickstart import QuickstartConfig, run_quickstart
    from ipt_jax.core.configuration import parse_config, run_main


def main() -> None:
    """Read the config, run the chain, say where the report is."""
    config = parse_config(
        QuickstartConfig,
        None,
        prog="launch/quickstart.py",
        description=__doc__ or "",
        default="configs/quickstart.yaml",
    )
    print(f"report: {run_quickstart(config).resolve()}")


if __name__ == "__main__":
    run_main(main)
