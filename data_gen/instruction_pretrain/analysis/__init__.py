"""The synthesizer and its corpora, measured (section 5, appendices D to F)."""
