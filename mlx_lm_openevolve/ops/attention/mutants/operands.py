"""Mutants that read the wrong keys, values, queries, heads or sequences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .base import (
    MUTANTS,
    Array,
    Attention,
    Mutant,
    Rule,
    batched,
    long,
    many_kv_heads,
    many_rows,
    mutant,
)


def _drop(breaks: str, name: str, lost: Callable[[Array, int], Array], when: Rule) -> None:
    def run(x: Attention) -> Array:
        keys = np.arange(x.k.shape[2])
        return x.kept(keys[~lost(keys, len(keys))]).out()

    MUTANTS.append(Mutant(name, breaks, when, run))


_drop("the key loop ends one early", "last-key-lost", lambda k, n: k == n - 1, long(4))
_drop("the key loop starts at one", "first-key-lost", lambda k, n: k == 0, long(4))
_drop("the keys after the last whole tile", "tail-lost", lambda k, n: k >= n - n % 8, long(32))
_drop("the last key of every tile of 8", "tile-edge-lost", lambda k, n: k % 8 == 7, long(16))
_drop("the last lane's share", "lane-lost", lambda k, n: k % 32 == 31, long(64))
_drop("one simdgroup's share", "simdgroup-lost", lambda k, n: k // 8 % 4 == 3, long(64))
_drop("the second split's keys", "split-lost", lambda k, n: k >= n // 2, long(4))
_drop("all keys but every second", "stride-two", lambda k, n: k % 2 == 1, long(4))


@mutant("query length used as key length", lambda w: w.kv_len > 2 * w.q_len)
def query_length_as_key_length(x: Attention) -> Array:
    return x.kept(np.arange(x.q.shape[2])).out()


@mutant("the last tile is padded with zeros that count as keys", lambda w: w.mask == "none")
def padding_counted(x: Attention) -> Array:
    pad = ((0, 0), (0, 0), (0, 3), (0, 0))
    return replace(x, k=np.pad(x.k, pad), v=np.pad(x.v, pad)).out()


@mutant("the last key is counted twice")
def last_key_twice(x: Attention) -> Array:
    keys = np.arange(x.k.shape[2])
    return x.kept(np.append(keys, keys[-1])).out()


@mutant("V is read one row late")
def values_shifted(x: Attention) -> Array:
    return replace(x, v=np.roll(x.v, 1, axis=2)).out()


@mutant("K is read one row late")
def keys_shifted(x: Attention) -> Array:
    return replace(x, k=np.roll(x.k, 1, axis=2)).out()


# Heads, batch and queries


@mutant("KV head h % kv_heads in place of h // group", lambda w: w.kv_heads > 1 and w.group > 1)
def wrong_gqa_map(x: Attention) -> Array:
    heads = np.arange(x.workload.q_heads) % x.workload.kv_heads * x.workload.group
    return replace(x, k=x.k[:, heads], v=x.v[:, heads]).out()


@mutant("every query head reads KV head 0", many_kv_heads)
def first_kv_head_for_all(x: Attention) -> Array:
    return replace(x, k=x.k[:, :1], v=x.v[:, :1]).out()


@mutant("V of the next KV head", many_kv_heads)
def values_of_next_head(x: Attention) -> Array:
    return replace(x, v=np.roll(x.v, x.workload.group, axis=1)).out()


@mutant("the query of the neighbouring head", lambda w: w.q_heads > 1)
def query_of_next_head(x: Attention) -> Array:
    return replace(x, q=np.roll(x.q, 1, axis=1)).out()


@mutant("results are stored under the neighbouring head", lambda w: w.q_heads > 1)
def output_of_next_head(x: Attention) -> Array:
    return np.roll(x.out(), 1, axis=1)


@mutant("K's batch stride is 0", batched)
def key_batch_stride_zero(x: Attention) -> Array:
    return replace(x, k=np.broadcast_to(x.k[:1], x.k.shape)).out()


@mutant("V's batch stride is 0", batched)
def value_batch_stride_zero(x: Attention) -> Array:
    return replace(x, v=np.broadcast_to(x.v[:1], x.v.shape)).out()


@mutant("the queries' batch stride is 0", batched)
def query_batch_stride_zero(x: Attention) -> Array:
    return replace(x, q=np.broadcast_to(x.q[:1], x.q.shape)).out()


@mutant("every row uses the first query", many_rows)
def query_row_stride_zero(x: Attention) -> Array:
    return replace(x, q=np.broadcast_to(x.q[:, :, :1], x.q.shape)).out()


@mutant("rows are stored in the layout [B, L, H, D]", lambda w: w.q_len > 1 and w.q_heads > 1)
def rows_and_heads_swapped(x: Attention) -> Array:
    out = x.out()
    return out.swapaxes(1, 2).reshape(out.shape)


@mutant("the caches are read as contiguous, without their strides", lambda w: w.kv_heads > 1)
def cache_read_as_contiguous(x: Attention) -> Array:
    # Each head starts where a buffer without spare rows would have put it.
    shift = 8 * (np.arange(x.workload.q_heads) // x.workload.group)
    k, v = x.k.copy(), x.v.copy()
    for h, rows in enumerate(shift):
        k[:, h], v[:, h] = np.roll(k[:, h], rows, axis=1), np.roll(v[:, h], rows, axis=1)
        k[:, h, :rows], v[:, h, :rows] = np.nan, np.nan
    return replace(x, k=k, v=v).out()
