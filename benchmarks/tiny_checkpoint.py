"""Makes a small Llama with random weights, for engines to run where no trained one is at hand.

    python benchmarks/tiny_checkpoint.py FOLDER

Hidden 256, 4 layers, head size 64, some 4 M parameters; the byte-level BPE tokenizer is trained on
the sources of Python's standard library, so nothing is downloaded.
"""

from __future__ import annotations

import argparse
import sysconfig
from collections.abc import Sequence
from pathlib import Path

_VOCABULARY = 2048
_END = "<|endoftext|>"


def make_checkpoint(folder: Path) -> None:
    """Write config, weights and tokenizer into `folder`; done in some seconds."""
    import torch
    from tokenizers.implementations import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:60]
    bpe.train([str(path) for path in sources], vocab_size=_VOCABULARY, special_tokens=[_END])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token=_END)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=0,
    )
    folder.mkdir(parents=True, exist_ok=True)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(argv: Sequence[str] | None = None) -> None:
    """Make one checkpoint."""
    parser = argparse.ArgumentParser(description="Make a tiny random checkpoint.")
    parser.add_argument("folder", type=Path)
    make_checkpoint(parser.parse_args(argv).folder)


if __name__ == "__main__":
    main()
