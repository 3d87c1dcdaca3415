"""Quality gates: what may pass from synthesis into training, and why the rest may not."""
