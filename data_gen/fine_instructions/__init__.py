"""FineInstructions: real queries become templates, which documents fill in and answer."""
