"""What the paper measured: Cheng et al. (2024), arXiv 2406.14491; its models are Mistral-7B."""

# Table 5, per cent: accuracy seen, unseen; quality seen zero, few; unseen zero, few.
TABLE_5 = {
    "base": (30.6, 29.2, 16.5, 21.8, 12.1, 19.6),
    "tuned": (70.0, 55.2, 49.4, 49.9, 25.3, 30.8),
}
# Tables 6 (GPT-4) and 10 (people): accuracy and relevance in per cent, number of categories.
TABLE_6 = {
    "General": (77.5, 92.9, 49),
    "BioMed.": (86.2, 99.4, 26),
    "Finance": (69.8, 85.8, 41),
}
TABLE_10 = {
    "General": (75.5, 87.5, 51),
    "BioMed.": (81.0, 97.0, 21),
    "Finance": (73.5, 88.0, 39),
}
# Table 9, by evaluation set: examples, contaminated in raw and in instruction-augmented corpora.
TABLE_9 = {
    "ARC-e": (2376, 5, 5),
    "ARC-c": (1172, 3, 4),
    "BoolQ": (3270, 144, 144),
    "SIQA": (1954, 0, 0),
    "WG": (1267, 0, 0),
    "PIQA": (1838, 3, 3),
    "OBQA": (500, 0, 0),
    "HS": (10042, 4, 4),
    "MMLU": (14042, 20, 22),
}
# Table 11, per cent: coverage, coverage of texts of several domains, overlap.
TABLE_11 = (86.8, 77.8, 84.9)
# Table 12, per cent, in the order of `collection.DOMAINS`.
TABLE_12 = {
    "Fine-tune data": (22.2, 11.1, 22.2, 3.7, 7.4, 29.6, 3.7, 0.0),
    "Raw corpora": (5.8, 9.6, 3.5, 0.0, 20.3, 42.8, 14.7, 3.3),
    "Synthesized pairs": (5.8, 11.8, 3.3, 0.1, 18.8, 46.0, 11.1, 3.1),
}
# Section 3.1.
PAIRS_PER_TEXT = 5
TOKENS_PER_PAIR = 52
