"""Chains of stages as jobs, from raw input to a result: what one command runs and resumes."""
