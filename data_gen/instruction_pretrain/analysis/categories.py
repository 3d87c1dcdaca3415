"""Categories of tasks, and the scenarios that they are grouped in (section 5.2, Figure 6).

The 76 names are those of Super-NaturalInstructions (Wang et al., 2022), from the list in
doc/task-hierarchy.md of allenai/natural-instructions. The names and members of the 9 scenarios are
ours: the paper draws its own in a figure without saying which category belongs where.
"""

from __future__ import annotations

SCENARIOS: dict[str, tuple[str, ...]] = {
    "Question answering": (
        "Question Answering",
        "Answer Verification",
        "Answerability Classification",
        "Fill in The Blank",
        "Question Understanding",
        "Question Decomposition",
    ),
    "Reasoning": (
        "Cause Effect Classification",
        "Commonsense Classification",
        "Fact Verification",
        "Mathematics",
        "Number Conversion",
        "Textual Entailment",
        "Word Analogy",
    ),
    "Information extraction": (
        "Coreference Resolution",
        "Entity Generation",
        "Entity Relation Classification",
        "Information Extraction",
        "Keyword Tagging",
        "Named Entity Recognition",
        "Overlap Extraction",
        "Speaker Identification",
    ),
    "Classification": (
        "Ethics Classification",
        "Gender Classification",
        "Irony Detection",
        "Language Identification",
        "Paper Review",
        "Section Classification",
        "Sentiment Analysis",
        "Spam Classification",
        "Stance Detection",
        "Stereotype Detection",
        "Text Categorization",
        "Toxic Language Detection",
    ),
    "Language analysis": (
        "Coherence Classification",
        "Discourse Connective Identification",
        "Discourse Relation Classification",
        "Grammar Error Detection",
        "Linguistic Probing",
        "Pos Tagging",
        "Preposition Prediction",
        "Punctuation Error Detection",
        "Spelling Error Detection",
        "Text Matching",
        "Text Quality Evaluation",
        "Word Relation Classification",
        "Word Semantics",
    ),
    "Text generation": (
        "Data to Text",
        "Explanation",
        "Poem Generation",
        "Question Generation",
        "Sentence Composition",
        "Sentence Expansion",
        "Story Composition",
        "Text Completion",
        "Wrong Candidate Generation",
    ),
    "Summarizing and rewriting": (
        "Grammar Error Correction",
        "Paraphrasing",
        "Question Rewriting",
        "Sentence Compression",
        "Sentence Ordering",
        "Sentence Perturbation",
        "Style Transfer",
        "Summarization",
        "Text Simplification",
        "Title Generation",
        "Translation",
    ),
    "Dialogue": (
        "Dialogue Act Recognition",
        "Dialogue Generation",
        "Dialogue State Tracking",
        "Intent Identification",
        "Negotiation Strategy Detection",
        "Speaker Relation Classification",
    ),
    "Code and other": (
        "Code to Text",
        "Misc.",
        "Program Execution",
        "Text to Code",
    ),
}
CATEGORIES = tuple(sorted(name for names in SCENARIOS.values() for name in names))


def scenario_of(category: str) -> str:
    """The scenario of one of CATEGORIES."""
    return next(name for name, members in SCENARIOS.items() if category in members)
