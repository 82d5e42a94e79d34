"""A tiny model in a folder, with a tokenizer, for what begins with a folder: commands and guides.

Its rows weigh near keys most, so that thresholds between 0.01 and 0.5 skip more and more of its tiles.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

STRENGTHS = (2.8, 3.3)  # of the part that queries and keys of a layer have in common
SPECIAL = ["<pad>", "<bos>", "<eos>"]


def tokenizer(begins: bool = False) -> transformers.PreTrainedTokenizerFast:
    """A token for each byte; ``begins``: puts a token before every text."""
    symbols = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytewise = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    if begins:
        from tokenizers.processors import TemplateProcessing

        bytewise.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    pad, bos, eos = SPECIAL
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytewise,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def save_tiny(folder: Path, begins: bool = False) -> None:
    """Write the model and its tokenizer."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(SPECIAL) + 256,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=len(STRENGTHS),
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=4096,
        initializer_range=0.15,
        attention_bias=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    for layer, strength in zip(model.model.layers, STRENGTHS, strict=True):
        for bias in (layer.self_attn.q_proj.bias, layer.self_attn.k_proj.bias):
            bias.data.view(-1, 64)[:, 10:17] = strength
    model.save_pretrained(folder)
    tokenizer(begins).save_pretrained(folder)


def save_text(file: Path) -> None:
    """16 KiB of English that does not change with the checkout: sentences that are made up."""
    from skimattn.sparse import retrieval

    made = retrieval(lambda text: list(text.encode()), 1 << 14, needles=40, seed=1)
    file.write_bytes(bytes(made))
