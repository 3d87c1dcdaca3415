"""Every input form of a corpus to Documents, and what a run's fingerprint says of it."""

from data_gen.corpus.documents import MAX_CHARACTERS, Document
from data_gen.corpus.files import CorpusFile
from data_gen.corpus.finding import find_files
from data_gen.corpus.fingerprint import corpus_sha256
from data_gen.corpus.reading import read_corpus

__all__ = [
    "MAX_CHARACTERS",
    "CorpusFile",
    "Document",
    "corpus_sha256",
    "find_files",
    "read_corpus",
]
