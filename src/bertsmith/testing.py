"""Tiny random checkpoints and tables for tests. They need no network, and the checkpoints are not pretrained."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pandas as pd

WORDS = {
    "animals": ["cat", "dog", "horse", "bird", "fish", "cow", "sheep", "lion", "tiger", "mouse"],
    "colours": ["red", "green", "blue", "yellow", "black", "white", "purple", "orange", "brown", "grey"],
    "fruits": ["apple", "pear", "plum", "cherry", "grape", "lemon", "melon", "peach", "mango", "fig"],
    "tools": ["hammer", "saw", "drill", "nail", "screw", "wrench", "chisel", "file", "clamp", "level"],
}
_FILLERS = [
    *("the", "a", "is", "was", "my", "your", "very", "quite"),
    *("this", "that", "here", "there", "and", "but", "with", "near"),
]
ARCHITECTURES = (
    "bert",
    "roberta",
    "distilbert",
    "electra",
    "albert",
    "deberta-v2",
    "mpnet",
    "xlm-roberta",
    "modernbert",
)
"""Model types that `tiny_model` supports."""
_NO_TOKEN_TYPES = ("roberta", "distilbert", "mpnet", "xlm-roberta", "modernbert")
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "mpnet")


def tiny_table(rows: int = 120, classes: int = 3, *, seed: int = 0) -> pd.DataFrame:
    """Return a table with ``Label``, ``Label Text`` and ``Text``, whose classes can be learned from single words."""
    rng = random.Random(seed)
    names = list(WORDS)[:classes]
    records = []
    for i in range(rows):
        label = i % classes
        words = [*rng.choices(WORDS[names[label]], k=2), *rng.choices(_FILLERS, k=rng.randint(2, 8)), str(i)]
        rng.shuffle(words)
        records.append((label, names[label], " ".join(words)))
    return pd.DataFrame(records, columns=["Label", "Label Text", "Text"])


def tiny_model(folder: Path, model_type: str = "bert", *, seed: int = 0, **settings: Any) -> Path:
    """Write a checkpoint with two small layers of random weights and a word-level tokenizer.

    Args:
        folder: the folder to write.
        model_type: one of `ARCHITECTURES`.
        seed: seed of the weights.
        **settings: fields of the model's configuration.

    Returns:
        The folder.
    """
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *_FILLERS, *(word for group in WORDS.values() for word in group), *"0123456789"]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ["input_ids", "attention_mask"]
    if model_type not in _NO_TOKEN_TYPES:
        names.insert(1, "token_type_ids")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
        model_input_names=names,
    ).save_pretrained(folder)
    sizes: dict[str, Any] = {
        "vocab_size": len(words),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 66 if model_type in _OFFSET_POSITIONS else 64,
        "pad_token_id": 0,
        "initializer_range": 0.05,  # with the usual 0.02, small models need many epochs
    }
    if model_type == "distilbert":
        sizes |= {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2}
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            del sizes[name]
    elif model_type in ("albert", "electra"):
        sizes["embedding_size"] = 32
    elif model_type == "modernbert":
        sizes |= {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3, "local_attention": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModel.from_config(AutoConfig.for_model(model_type, **{**sizes, **settings})).save_pretrained(folder)
    return folder
