"""A random Llama of two layers with a byte-level tokenizer, as transformers saves them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

VOCABULARY, END_ID = 290, 0
TEXTS = ("Salt was dear.", "Carts brought it over the pass twice a year.")


def byte_level(texts: Sequence[str] = TEXTS) -> Tokenizer:
    """As SmolLM2 and Llama 3: a token may be any run of bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_base(
    folder: Path, dtype: torch.dtype = torch.bfloat16, shard_size: str = "1GB", layers: int = 2
) -> Path:
    """A model folder; its weights depend on `layers` alone."""
    fast = PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="</s>")
    fast.save_pretrained(folder)
    torch.manual_seed(layers)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        initializer_range=0.2, eos_token_id=END_ID, bos_token_id=END_ID, tie_word_embeddings=True,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(config).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return folder
