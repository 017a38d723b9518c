"""Tiny configurations of every mlx-lm architecture that calls its attention function.

A configuration is what COMMON says of the fields that the architecture's ModelArgs has, then what
SPECIAL says of that architecture. Heads are 64 wide wherever the architecture lets one choose, so
that a shipped kernel applies: 4 query heads, 2 KV heads, two layers.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import own_code
from mlx.utils import tree_map_with_path

# Models with code of their own, by the way in which it holds mlx-lm's function: "own:closure".
OWN = "own"
OWN_CODE = tuple(f"{OWN}:{way}" for way in own_code.CODE)

HEADS, KV_HEADS, HEAD_DIM, LAYERS, HIDDEN, VOCAB = 4, 2, 64, 2, 256, 128

COMMON: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "n_embd": HIDDEN,
    "d_model": HIDDEN,
    "model_dim": HIDDEN,
    "hidden_dim": HIDDEN,
    "block_dim": HIDDEN,
    "dim_model_base": HIDDEN,
    "intermediate_size": 64,
    "ff_intermediate_size": 64,
    "n_inner": 64,
    "ffn_hidden_size": 64,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "shared_intermediate_size": 64,
    "expert_ffn_hidden_size": 64,
    "intermediate_size_mlp": 64,
    "num_hidden_layers": LAYERS,
    "num_layers": LAYERS,
    "n_layers": LAYERS,
    "n_layer": LAYERS,
    "num_transformer_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_heads": HEADS,
    "n_heads": HEADS,
    "n_head": HEADS,
    "num_query_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "num_kv_heads": KV_HEADS,
    "n_kv_heads": KV_HEADS,
    "num_attention_groups": KV_HEADS,
    "head_dim": HEAD_DIM,
    "vocab_size": VOCAB,
    "num_vocab": VOCAB,
    "vocab_size_per_layer_input": VOCAB,
    "max_position_embeddings": 512,
    "model_max_length": 512,
    "n_positions": 512,
    "n_ctx": 512,
    "block_size": 512,
    "rms_norm_eps": 1e-5,
    "norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "layernorm_epsilon": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "use_bias": False,
    "use_qkv_bias": False,
    "post_norm": False,
    "qk_norm": True,
    "use_qk_norm": True,
    "norm_topk_prob": True,
    "mlp_only_layers": [],
    "decoder_sparse_step": 1,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "num_shared_experts": 1,
    "n_shared_experts": 1,
    "num_shared_expert": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 64,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 32,
    "v_head_dim": 64,
    "logits_scaling": 1.0,
    "attention_multiplier": 0.125,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "partial_rotary_factor": 0.5,
    "sliding_window": 8,
    "sliding_window_size": 8,
    "attention_window_size": 8,
    "sliding_window_pattern": 2,
    "rotary_dim": 32,
    "rotary_pct": 0.5,
    "rotary_emb_base": 10000,
    "scale_depth": 1.0,
    "scale_emb": 1.0,
    "layer_group_size": 2,
    "group_norm_size": 1,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
}

SLIDING, FULL, LINEAR = "sliding_attention", "full_attention", "linear_attention"
MIXED = [SLIDING, FULL]
MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_proj_bias": False,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_n_groups": 1,
    "mamba_conv_bias": True,
    "mamba_expand": 2,
}
LINEAR_ATTENTION = {
    "kda_layers": [1],
    "full_attn_layers": [2],
    "num_heads": 4,
    "head_dim": 32,
    "short_conv_kernel_size": 4,
}
ROPES = {name: {"rope_type": "default", "rope_theta": 10000.0} for name in MIXED}
YARN = {
    "type": "yarn",
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 2.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 256,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "llama_4_scaling_beta": 0.1,
}

# What an architecture wants besides; `text_config` is completed from COMMON.
SPECIAL: dict[str, dict[str, Any]] = {
    "afm7": {"num_kv_reuse_layers": 1},
    "afmoe": {"layer_types": MIXED, "num_dense_layers": 1},
    "baichuan_m1": {"sliding_window_layers": [0], "conv_window": 2},
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": KV_HEADS, "clip_qkv": 8.0, "rope_theta": 10000.0},
    },
    "deepseek_v2": {"rope_scaling": YARN},
    "exaone4": {"rope_scaling": None, "sliding_window_pattern": "LG"},
    "exaone_moe": {"layer_types": MIXED, "is_moe_layer": [False, True]},
    "gear": {"layer_types": MIXED},
    "gemma3n": {
        "text_config": {
            "num_kv_shared_layers": 0,
            "rope_local_base_freq": 10000.0,
            "final_logit_softcapping": 30.0,
            "layer_types": MIXED,
            "activation_sparsity_pattern": [0.5, 0.0],
            "hidden_size_per_layer_input": 32,
            "altup_num_inputs": 2,
            "altup_coef_clip": 120.0,
            "altup_correct_scale": True,
            "altup_active_idx": 0,
            "laurel_rank": 16,
        }
    },
    "gemma4_text": {
        "layer_types": MIXED,
        "global_head_dim": HEAD_DIM,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 32,
    },
    "glm4_moe": {"rope_scaling": None},
    "granitemoehybrid": {**MAMBA, "layer_types": ["mamba", "attention"]},
    "hunyuan": {
        "use_mixed_mlp_moe": True,
        "use_cla": True,
        "cla_share_factor": 2,
        "rope_scaling": {"alpha": 1000.0, "factor": 1.0, "type": "dynamic"},
    },
    "jamba": {
        **MAMBA,
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
    },
    "kimi_k3": {
        "text_config": {
            "linear_attn_config": LINEAR_ATTENTION,
            "activation_situ_beta": 1.0,
            "activation_situ_linear_beta": 1.0,
            "attn_res_block_size": 1,
            "num_experts_per_token": 2,
        }
    },
    "kimi_linear": {"linear_attn_config": LINEAR_ATTENTION, "num_experts_per_token": 2},
    "lfm2": {
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_multiple_of": 32,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": True,
        "layer_types": ["conv", FULL],
    },
    "lfm2_moe": {
        "use_expert_bias": True,
        "num_dense_layers": 1,
        "conv_bias": False,
        "conv_L_cache": 3,
        "layer_types": ["conv", FULL],
    },
    "llama4": {
        "text_config": {
            "num_hidden_layers": 4,
            "attention_chunk_size": 64,
            "interleave_moe_layer_step": 2,
            "num_experts_per_tok": 1,
            "rope_scaling": None,
        }
    },
    "llama4_text": {"no_rope_layers": [1, 0]},
    "longcat_flash": {
        "attention_method": "MLA",
        "zero_expert_type": "identity",
        "zero_expert_num": 1,
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
    },
    "mellum": {"layer_types": MIXED, "rope_parameters": ROPES},
    "mimo_v2_flash": {
        "hybrid_layer_pattern": [1, 0],
        "moe_layer_freq": [0, 1],
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "n_shared_experts": None,
        "swa_rope_theta": 10000.0,
        "swa_num_attention_heads": HEADS,
        "swa_num_key_value_heads": KV_HEADS,
        "swa_head_dim": HEAD_DIM,
        "swa_v_head_dim": HEAD_DIM,
    },
    "minicpm3": {"rope_scaling": {**YARN, "short_factor": 1.0, "long_factor": 1.0}},
    "minimax_m3_vl": {
        "text_config": {"dense_intermediate_size": 64, "mlp_layer_types": ["dense", "sparse"]}
    },
    "ministral3": {"layer_types": MIXED, "rope_parameters": YARN},
    "mistral4": {"rope_parameters": YARN},
    "muse_spark": {
        "text_config": {
            "post_norm_eps": 1e-5,
            "rope_parameters": {"rope_theta": 10000.0},
            "layer_rope_theta": [10000.0] * LAYERS,
            "layer_types": MIXED,
            "final_logit_softcapping": 30.0,
            "output_multiplier": 1.0,
            "moe_hidden_size": 64,
            "num_shared_experts": 0,
        }
    },
    "nemotron": {"hidden_act": "relu2"},
    "nemotron-nas": {
        "block_configs": [{"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 0.5}}] * 2
    },
    "nemotron_h": {
        "hybrid_override_pattern": ["M", "*", "-"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 32,
        "mamba_proj_bias": False,
        "ssm_state_size": 16,
        "conv_kernel": 4,
        "n_groups": 1,
        "use_conv_bias": True,
    },
    "olmo3": {"layer_types": MIXED},
    "olmo_hybrid": {"linear_allow_neg_eigval": True, "layer_types": [LINEAR, FULL]},
    "openelm": {
        "ffn_dim_divisor": 32,
        "num_query_heads": [HEADS] * LAYERS,
        "num_kv_heads": [KV_HEADS] * LAYERS,
        "ffn_multipliers": [0.5] * LAYERS,
    },
    "phi3small": {"dense_attention_every_n_layers": 2, "gegelu_limit": 20.0},
    "plamo": {"n_shared_head": 2},
    "qwen": {"kv_channels": HEAD_DIM},
    "qwen3_next": {"full_attention_interval": 2},
    "recurrent_gemma": {
        "conv1d_width": 4,
        "logits_soft_cap": 30.0,
        "block_types": ["recurrent", "attention"],
        "num_key_value_heads": 1,
    },
    "spark2_5": {"layer_types": MIXED, "rope_parameters": ROPES},
    "step3p5": {"layer_types": MIXED, "moe_top_k": 2, "share_expert_dim": 64},
}

# Architectures with Metal kernels of their own, which run nowhere else: what stock raises.
LEFT_OUT = {
    "bitnet": "No Metal back-end",
    "muse_spark": "No Metal back-end",
}


# They keep a latent vector, which is keys and values at once.
MLA = {
    *("bailing_hybrid", "bailing_moe_v3", "deepseek_v3", "glm4_moe_lite", "kimi_k3"),
    *("kimi_linear", "mistral4"),
}

# Caches that mlx-lm itself does not run a model with: the kind, what it raises, and the
# architectures, none named where any may. The patched model must raise the same.
REFUSED: list[tuple[str, str, set[str]]] = [
    ("quantized", "RotatingKVCache Quantization NYI", set()),
    ("quantized", "none of its caches can be quantised", set()),
    ("quantized", "'list' object has no attribute", {"afm7", "phi", "phixtral", "stablelm"}),
    ("quantized", "'list' object has no attribute 'swapaxes'", MLA),
    ("quantized", "expand_dims(): incompatible function arguments", {"phi3small"}),
    ("quantized", "tile(): incompatible function arguments", {"plamo"}),
    ("batch", "'ChunkedKVCache' object has no attribute 'merge'", {"llama4"}),
    ("batch", "Only length-1 arrays can be converted", {"gpt_bigcode"}),
    ("batch rotating", "Only length-1 arrays can be converted", {"gpt_bigcode"}),
]


def refusal(architecture: str, kind: str, error: Exception) -> str:
    """The reason in REFUSED that names this error, "" where it is none of them."""
    for refused, reason, named in REFUSED:
        if refused == kind and reason in str(error) and (not named or architecture in named):
            return reason
    return ""


def build(architecture: str, dtype: mx.Dtype = mx.float32, seed: int = 0) -> Any:
    """The architecture's Model with random weights of that dtype."""
    mx.random.seed(seed)
    model = _model(architecture)

    def weight(path: str, x: mx.array) -> mx.array:
        if not mx.issubdtype(x.dtype, mx.floating):
            return x
        # Sinks, biases and the like start at zero: they must matter here.
        if x.size and not mx.any(x).item():
            x = 0.5 * mx.random.normal(x.shape)
        return x.astype(dtype)

    model.update(tree_map_with_path(weight, model.parameters()))
    if architecture == "phi3small":  # where it puts infinities; by default up to 100351
        model._dummy_tokenizer_ids = mx.array([3, VOCAB - 1])
    mx.eval(model.parameters())
    model.eval()
    return model


def _model(architecture: str) -> Any:
    kind, _, way = architecture.partition(":")
    if kind == OWN:
        with tempfile.TemporaryDirectory() as folder:
            return own_code.load(own_code.CODE[way], Path(folder))
    module = importlib.import_module(f"mlx_lm.models.{architecture}")
    return module.Model(_arguments(module, architecture))


def _arguments(module: Any, architecture: str) -> Any:
    # from_dict leaves out what an architecture has no field for.
    special = dict(SPECIAL.get(architecture, {}))
    if "text_config" in special:
        special["text_config"] = {**COMMON, "model_type": architecture, **special["text_config"]}
    return module.ModelArgs.from_dict({**COMMON, "model_type": architecture, **special})
