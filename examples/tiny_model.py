"""Makes a small Qwen3 model on the spot, in a folder that `mlx_lm.load` opens.

It is trained for some seconds on this repository's own text, so that its top choices have clear
margins: an untrained model's choices are ties, which rounding alone would decide.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import qwen3
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 512
STEPS = 160
CONFIG = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


def corpus(root: Path) -> str:
    """The text to train on: this package's Python sources."""
    return "\n".join(path.read_text() for path in sorted((root / "mlx_lm_openevolve").glob("*.py")))


def make(
    folder: Path,
    text: str,
    *,
    steps: int = STEPS,
    batch: int = 2,
    length: int = 96,
    passage: int = 192,
    seed: int = 0,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> dict[str, float]:
    """Train on the first `passage` tokens of `text`, in windows of `length`; write config, weights
    (bfloat16) and tokenizer into `folder`.

    Returns the number of parameters, the last loss (nats a token) and the seconds taken.
    """
    start = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(folder, text)
    tokens = np.array(tokenizer.encode(text).ids, np.int32)

    generator = np.random.default_rng(seed)
    mx.random.seed(seed)
    model = qwen3.Model(qwen3.ModelArgs.from_dict(CONFIG))
    mx.eval(model.parameters())
    optimizer = optim.AdamW(learning_rate=3e-3)

    def loss(model: nn.Module, inputs: mx.array, targets: mx.array) -> mx.array:
        return nn.losses.cross_entropy(model(inputs), targets, reduction="mean")

    step = nn.value_and_grad(model, loss)
    value = 0.0
    for i in range(steps):
        # Windows of one short passage, seen often: the model knows it by heart.
        starts = generator.integers(0, passage - length, size=batch)
        window = np.stack([tokens[s : s + length + 1] for s in starts])
        found, gradients = step(model, mx.array(window[:, :-1]), mx.array(window[:, 1:]))
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        value = found.item()
        progress(i + 1, value)

    weights = dict(tree_flatten(tree_map(lambda x: x.astype(mx.bfloat16), model.parameters())))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1))
    return {
        "parameters": sum(w.size for w in weights.values()),
        "loss": value,
        "seconds": time.perf_counter() - start,
    }


def _tokenizer(folder: Path, text: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [text],
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<|end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"})
    )
    return tokenizer
