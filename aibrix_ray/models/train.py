"""Trains `builtin:tiny` from nothing: `python -m aibrix_ray.models.train --out DIR`.

One seed decides the data, the tokenizer and the first weights, so that a second run on the same
machine and libraries gives the same model. Needs torch and transformers, a CPU, and minutes.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from aibrix_ray.models import tokenizer as tok
from aibrix_ray.models.corpus import samples
from aibrix_ray.models.faq import CANONICAL

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what comes out."""

    seed: int = 8000
    steps: int = 1300
    batch_tokens: int = 4096
    matrix_rate: float = 0.02
    vector_rate: float = 0.004
    warmup_steps: int = 50
    decay_share: float = 0.6
    vocab_size: int = 2048
    hidden_size: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    mlp_size: int = 768
    context_tokens: int = 4096


#: One padded batch: ids, and the flat positions whose next token is learned, with that token.
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def train(out: Path, recipe: Recipe, *, minutes: float) -> None:
    """Train, check the canonical questions, and write a folder that vLLM can load.

    `minutes` only bounds a slow machine: the learning rate then falls to zero in time, with fewer
    steps than the recipe wants.
    """
    started_s = time.monotonic()
    tokenizer = _tokenizer(recipe)
    model = _model(recipe)
    logger.info("parameters: %d", sum(p.numel() for p in model.parameters()))
    _fit(model, _batches(tokenizer, recipe), recipe, until_s=started_s + minutes * 60)
    _save(model, tokenizer, out)
    wall_s, cpu_s = time.monotonic() - started_s, time.process_time()
    logger.info("trained in %.0f s (%.0f s of CPU); %d of %d right", wall_s, cpu_s, *check(out))


def check(folder: Path) -> tuple[int, int]:
    """Ask the saved model the canonical questions; return how many answers are exact, of how many.

    It is the saved model that is asked, because saving rounds the weights.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    right = 0
    for question, answer in CANONICAL:
        said = ask(model, tokenizer, question)
        right += said == answer
        if said != answer:
            logger.warning("asked %r, said %r", question, said)
    return right, len(CANONICAL)


def ask(model: Any, tokenizer: Any, question: str) -> str:
    """Return the greedy answer to one question."""
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    ids = model.generate(**inputs, max_new_tokens=128, do_sample=False, temperature=1.0)
    return str(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def _tokenizer(recipe: Recipe) -> Any:
    some = islice(samples(recipe.seed + 1), 20_000)
    texts = list(chain.from_iterable(tok.texts_of(sample) for sample in some))
    return tok.train_tokenizer(texts, vocab_size=recipe.vocab_size)


def _model(recipe: Recipe) -> Any:
    torch.manual_seed(recipe.seed)
    bos, end, pad = (tok.SPECIAL_TOKENS.index(t) for t in (tok.BOS, tok.END, tok.PAD))
    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.mlp_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.hidden_size // recipe.heads,
        max_position_embeddings=recipe.context_tokens,
        tie_word_embeddings=True,
        initializer_range=0.03,
        bos_token_id=bos,
        eos_token_id=end,
        pad_token_id=pad,
    )
    return LlamaForCausalLM(config)


def _batches(tokenizer: Any, recipe: Recipe) -> Iterator[Batch]:
    """Yield batches of samples of like length, so that little is padding."""
    rng = Random(recipe.seed + 2)
    stream = samples(recipe.seed)
    while True:
        pool = [tok.encode(sample, tokenizer) for sample in islice(stream, 1024)]
        pool.sort(key=lambda encoded: len(encoded[0]))
        cuts = list(_cut(pool, recipe.batch_tokens))
        rng.shuffle(cuts)
        yield from (_pad(cut) for cut in cuts)


def _cut(pool: list[tok.Encoded], batch_tokens: int) -> Iterator[list[tok.Encoded]]:
    batch: list[tok.Encoded] = []
    for encoded in pool:  # shortest first: the new one is the longest
        if batch and len(encoded[0]) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(encoded)
    if batch:
        yield batch


def _pad(batch: list[tok.Encoded]) -> Batch:
    """Pad on the right, where causal attention never looks from a real token."""
    width = max(len(ids) for ids, _ in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    learned = torch.zeros(len(batch), width, dtype=torch.bool)
    for row, (row_ids, row_learned) in enumerate(batch):
        ids[row, : len(row_ids)] = torch.tensor(row_ids)
        learned[row, : len(row_ids)] = torch.tensor(row_learned)
    before = learned[:, 1:].reshape(-1).nonzero().squeeze(1)  # the token before a learned one
    return ids[:, :-1], before, ids[:, 1:].reshape(-1)[before]


def _fit(model: Any, batches: Iterator[Batch], recipe: Recipe, *, until_s: float) -> None:
    optimizers = _optimizers(model, recipe)
    started_s = time.monotonic()
    for step, (ids, positions, targets) in enumerate(batches):
        passed = (time.monotonic() - started_s) / (until_s - started_s)
        done = max(step / recipe.steps, passed)
        if done >= 1:
            return
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden.flatten(0, 1)[positions])
        loss = torch.nn.functional.cross_entropy(logits, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        share = min((step + 1) / recipe.warmup_steps, (1 - done) / recipe.decay_share, 1.0)
        for optimizer, rate in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * share
            optimizer.step()
            optimizer.zero_grad()
        if step % 50 == 0:
            logger.info("step %d, %.0f %% done, loss %.4f", step, 100 * done, loss.item())


def _optimizers(model: Any, recipe: Recipe) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the matrices inside of the layers, Adam for the embedding and the norms."""
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    outer = [p for name, p in model.named_parameters() if p.ndim != 2 or "layers" not in name]
    muon = torch.optim.Muon(inner, lr=recipe.matrix_rate, weight_decay=0.05)
    adam = torch.optim.AdamW(outer, lr=recipe.vector_rate, betas=(0.9, 0.95), weight_decay=0.0)
    return [(muon, recipe.matrix_rate), (adam, recipe.vector_rate)]


def _save(model: Any, tokenizer: Any, out: Path) -> None:
    """Write weights as float16, half the size, under a config that says float32.

    Engines compute in what the config says, and bfloat16 does not run on every CPU.
    """
    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    config_file = out / "config.json"
    config = json.loads(config_file.read_text()) | {"dtype": "float32"}
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
        do_sample=True,
        temperature=0.01,  # as good as greedy, and still allows `n` answers to one request
    ).save_pretrained(out)
    tokenizer.save_pretrained(out, save_jinja_files=False)
    (out / "model.safetensors").chmod(0o644)  # safetensors lets nobody else read it


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m aibrix_ray.models.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--minutes", type=float, default=20.0, help="end by then (default 20)")
    parser.add_argument("--steps", type=int, default=Recipe().steps, help="training steps")
    return parser.parse_args()


def main() -> None:
    """Run the training as a command."""
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)8.0f ms %(message)s")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    arguments = _arguments()
    recipe = Recipe(steps=arguments.steps)
    logger.info("recipe: %s", asdict(recipe))
    train(arguments.out, recipe, minutes=arguments.minutes)


if __name__ == "__main__":
    main()
