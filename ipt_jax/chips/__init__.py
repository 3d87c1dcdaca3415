"""Chips that nobody need own: what their compilers say of a step, and what may be foretold."""
