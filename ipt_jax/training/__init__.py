"""The train step, the loop around it, and what it saves."""
