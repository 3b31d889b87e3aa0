"""A tiny Llama with stored weights: random, but loud enough that its texts differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

# Tokens 0..255 are the bytes themselves, so that a text's ids can be told by looking.
END, BEGIN_TURN, END_TURN = 256, 257, 258
VOCABULARY = 264
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer() -> Any:
    """One token for each byte: any text, and any part of a character."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = {letter: byte for byte, letter in bytes_to_unicode().items()}
    vocabulary |= {"</s>": END, "<|turn|>": BEGIN_TURN, "<|/turn|>": END_TURN}
    vocabulary |= {f"<|{number}|>": number for number in range(END_TURN + 1, VOCABULARY)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", additional_special_tokens=["<|turn|>", "<|/turn|>"]
    )


def write_tokenizer(folder: Path, *, template: bool = True) -> Path:
    tokenizer = byte_tokenizer()
    if template:
        tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def write_llama(folder: Path) -> Path:
    """A checkpoint in Hugging Face layout: two layers, 64 wide."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, intermediate_size=128, max_position_embeddings=256, bos_token_id=None, eos_token_id=END,
        pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(20.0 if "embed" in name else 6.0)
    model.save_pretrained(folder)
    return write_tokenizer(folder)
