"""Models with code of their own, loaded as mlx-lm loads them: `model_file` in config.json, run with
trust_remote_code in a module that is registered nowhere.

Each reaches mlx-lm's attention by another way, and is a Qwen3 otherwise.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import FunctionType
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.utils import load_model
from samples import TINY

from mlx_lm_openevolve.device import release, version_of

__all__ = ["CODE", "globals_of", "load", "write"]

_HEAD = """
import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models.qwen3 as qwen3
from mlx_lm.models import base
from mlx_lm.models.qwen3 import ModelArgs
"""

_BODY = """
class Attention(qwen3.Attention):
    def __call__(self, x, mask=None, cache=None):
        B, L, D = x.shape
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q = self.q_norm(q.reshape(B, L, self.n_heads, -1)).transpose(0, 2, 1, 3)
        k = self.k_norm(k.reshape(B, L, self.n_kv_heads, -1)).transpose(0, 2, 1, 3)
        v = v.reshape(B, L, self.n_kv_heads, -1).transpose(0, 2, 1, 3)
        offset = cache.offset if cache is not None else 0
        q, k = self.rope(q, offset=offset), self.rope(k, offset=offset)
        if cache is not None:
            k, v = cache.update_and_fetch(k, v)
        out = ATTEND(q, k, v, cache=cache, scale=self.scale, mask=mask)
        return self.o_proj(out.transpose(0, 2, 1, 3).reshape(B, L, -1))

class Model(qwen3.Model):
    def __init__(self, args):
        super().__init__(args)
        for layer in self.layers:
            layer.self_attn = Attention(args)
"""


def _code(before: str, attend: str, inside: str = "") -> str:
    body = _BODY.replace("ATTEND", attend)
    if inside:
        body = body.replace("class Attention(qwen3.Attention):", inside, 1)
    return _HEAD + before + body


_CLOSURE = """
def attention_of(function):
    def attend(*args, **named):
        return function(*args, **named)
    return attend

attend = attention_of(base.scaled_dot_product_attention)
"""
_ATTRIBUTE = """class Attention(qwen3.Attention):
    attend = staticmethod(base.scaled_dot_product_attention)
"""

_KEPT = """class Attention(qwen3.Attention):
    def __init__(self, args):
        super().__init__(args)
        self.attend = attention_of(base.scaled_dot_product_attention)

"""

# By the way in which the code holds the function.
CODE = {
    "name": _code(
        "from mlx_lm.models.base import scaled_dot_product_attention",
        "scaled_dot_product_attention",
    ),
    "star": _code("from mlx_lm.models.base import *", "scaled_dot_product_attention"),
    "module": _code("", "base.scaled_dot_product_attention"),
    "closure": _code(_CLOSURE, "attend"),
    "closure of a layer": _code(_CLOSURE, "self.attend", _KEPT),
    "class attribute": _code("", "self.attend", _ATTRIBUTE),
}


def write(code: str, folder: Path) -> Path:
    """A model folder without weights, of a model whose code is `code`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(code)
    (folder / "config.json").write_text(json.dumps({**TINY, "model_file": "model.py"}))
    return folder


def load(code: str, folder: Path, dtype: mx.Dtype = mx.bfloat16) -> Any:
    """The model as mlx-lm loads it, with random weights of that dtype."""
    mx.random.seed(0)
    # Before mlx-lm 0.32 a model's own code needs no leave.
    trust = {"trust_remote_code": True} if release(version_of("mlx-lm")) >= (0, 32) else {}
    model, _ = load_model(write(code, folder), strict=False, **trust)
    model.update(tree_map(lambda x: x.astype(dtype), model.parameters()))
    mx.eval(model.parameters())
    return model


def globals_of(model: Any) -> dict[str, Any]:
    """The globals of the module that a model's code runs in."""
    function = type(model).__init__
    assert isinstance(function, FunctionType)
    return function.__globals__
