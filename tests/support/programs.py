"""Programs as OpenEvolve evolves them, for the importer and the docs."""

# A program of the shape that OpenEvolve evolves: masks sorted out in Python, flat indices, the
# query length taken for the key length. It imports; that it is wrong is for the gate to say.
PROGRAM = '''
import mlx.core as mx
import mlx.nn as nn

raise SystemExit("this program must not be run")

TILE = 32

def evolved_attention(queries, keys, values, scale=1.0, mask=None):
    """Attention."""
    B, n_heads, L, width = queries.shape
    _, n_kv, _, _ = keys.shape
    per_kv = n_heads // n_kv
    if mask == "causal" or mask is None:
        allowed = mx.logical_not(mx.triu(mx.ones((L, L), dtype=mx.bool_), k=1))
        masked = True
    elif isinstance(mask, (mx.array, type(None))):
        if mask is None:
            allowed = mx.ones((L, L), dtype=mx.bool_)
            masked = False
        else:
            allowed = mask.astype(mx.bool_)
            masked = True
    else:
        raise ValueError(f"unsupported {mask}")
    if allowed.ndim == 2:
        allowed = mx.broadcast_to(allowed[None, None, :, :], (B, n_heads, L, L))
    elif allowed.ndim == 3:
        allowed = mx.broadcast_to(allowed[:, None, :, :], (B, n_heads, L, L))
    # EVOLVE-BLOCK-START
    source = """
    uint row = thread_position_in_grid.x;   // queries are rows
    uint head = thread_position_in_grid.y;
    uint batch = thread_position_in_grid.z;
    if (row >= LENGTH) { return; }
    T factor = scale[0];
    bool masked = use_mask[0] > 0;
    uint q0 = ((batch * HEADS + head) * LENGTH + row) * WIDTH;
    uint kv0 = (batch * KV_HEADS + head / PER_KV) * LENGTH * WIDTH;
    uint m0 = ((batch * HEADS + head) * LENGTH + row) * LENGTH;
    float top = -1e30f, sum = 0.0f, acc[WIDTH];
    for (int d = 0; d < WIDTH; ++d) { acc[d] = 0.0f; }
    for (uint key = 0; key < LENGTH; ++key) {
      if (masked && !mask[m0 + key]) { continue; }
      float score = 0.0f;
      for (int d = 0; d < WIDTH; ++d) {
        score += float(queries[q0 + d]) * float(k[kv0 + key * WIDTH + d]);
      }
      score *= float(factor);
      float next = max(top, score), fade = exp(top - next), weight = exp(score - next);
      sum = sum * fade + weight;
      for (int d = 0; d < WIDTH; ++d) {
        acc[d] = acc[d] * fade + weight * float(values[kv0 + key * WIDTH + d]);
      }
      top = next;
    }
    for (int d = 0; d < WIDTH; ++d) { result[q0 + d] = T(sum > 0 ? acc[d] / sum : 0.0f); }
    """
    # EVOLVE-BLOCK-END
    try:
        scale_tensor = mx.array([scale], dtype=queries.dtype)
        flag = mx.array([1 if masked else 0], dtype=mx.int32)
        kernel = mx.fast.metal_kernel(
            name="evolved-gqa",
            input_names=["queries", "k", "values", "mask", "scale", "use_mask"],
            output_names=["result"],
            source=source,
        )
        size = min(TILE, L)
        outputs = kernel(
            inputs=[queries, keys, values, allowed, scale_tensor, flag],
            output_shapes=[(B, n_heads, L, width)],
            output_dtypes=[queries.dtype],
            grid=(L, n_heads, B),
            threadgroup=(size, 1, 1),
            template=[
                ("T", queries.dtype), ("HEADS", n_heads), ("KV_HEADS", n_kv),
                ("LENGTH", L), ("WIDTH", width), ("PER_KV", per_kv),
            ],
        )
        return outputs[0]
    except Exception as error:
        print(f"failed: {error}")
        raise


class EvolvedAttention(nn.Module):
    def __call__(self, x, mask=None, cache=None):
        return evolved_attention(x, x, x, scale=1.0, mask=mask)
'''
