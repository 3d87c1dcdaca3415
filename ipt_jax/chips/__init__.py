"""The chips that programs are compiled for: facts, descriptions, and which one it is now."""
