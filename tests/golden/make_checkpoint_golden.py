#!/usr/bin/env python3
"""Write tests/golden/checkpoint/: model files made by the formats' own packages.

blocks.gguf       one tensor per type that Merx reads and, beside each, the same
                  numbers in F32 ("<name>.f32") as gguf.quants.dequantize gives
                  them; metadata of every value type.
plain.safetensors F32, F16, BF16 and I64 by safetensors.torch.

Needs: numpy, gguf, torch, safetensors.  Run from anywhere; deterministic.
"""
import os

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as T
from safetensors.torch import save_file

here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "checkpoint")
rng = np.random.default_rng(20240607)
ROWS, COLS = 3, 512


def halves(n):
    """Finite halves: ordinary, negative, subnormal, zero."""
    x = (rng.standard_normal(n) * 0.05).astype(np.float16)
    x[::7] = rng.integers(0, 1024, size=len(x[::7]), dtype=np.uint16).view(np.float16)
    x[3::11] = 0
    return x


def random_blocks(kind, half_at):
    """Any bytes are a valid block but for its scales, which must be finite."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    n = ROWS * COLS // values
    raw = rng.integers(0, 256, size=(n, size), dtype=np.uint8)
    for at in half_at:
        raw[:, at:at + 2] = halves(n).view(np.uint8).reshape(n, 2)
    return raw.reshape(ROWS, -1)


def main():
    os.makedirs(here, exist_ok=True)
    w = gguf.GGUFWriter(os.path.join(here, "blocks.gguf"), "llama")
    w.add_uint8("t.u8", 200)
    w.add_int8("t.i8", -100)
    w.add_uint16("t.u16", 60000)
    w.add_int16("t.i16", -30000)
    w.add_uint32("t.u32", 4000000000)
    w.add_int32("t.i32", -2000000000)
    w.add_uint64("t.u64", 1 << 62)
    w.add_int64("t.i64", -(1 << 62))
    w.add_float32("t.f32", 0.1)
    w.add_float64("t.f64", 0.1)
    w.add_bool("t.bool", True)
    w.add_string("t.string", "夏季 sunscreen")
    w.add_array("t.strings", ["a", "", "中文", "<|im_end|>"])
    w.add_array("t.ints", [3, -1, 4, -1, 5])
    w.add_array("t.floats", [0.5, -1.5])

    plain = rng.standard_normal((ROWS, COLS)).astype(np.float32)
    half = halves(ROWS * COLS).reshape(ROWS, COLS)
    half[0, :4] = [np.inf, -np.inf, -0.0, 65504]
    cases = [
        ("f32", T.F32, plain), ("f16", T.F16, half),
        ("bf16", T.BF16, gguf.quants.quantize(plain * 1e-38, T.BF16)),
        ("q8_0", T.Q8_0, random_blocks(T.Q8_0, [0])), ("q4_0", T.Q4_0, random_blocks(T.Q4_0, [0])),
        ("q4_1", T.Q4_1, random_blocks(T.Q4_1, [0, 2])), ("q4_k", T.Q4_K, random_blocks(T.Q4_K, [0, 2])),
        ("q6_k", T.Q6_K, random_blocks(T.Q6_K, [208])), ("q5_0", T.Q5_0, random_blocks(T.Q5_0, [0])),
    ]
    for name, kind, data in cases:
        w.add_tensor(name, data, raw_dtype=kind)
        if name != "q5_0":
            w.add_tensor(name + ".f32", np.ascontiguousarray(gguf.quants.dequantize(data, kind).reshape(ROWS, COLS)))
    w.add_tensor("cube", np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()

    x = torch.arange(-12, 12, dtype=torch.float32).reshape(4, 6) / 3
    save_file({"x": x, "half": x.half(), "brain": x.bfloat16(), "mask": torch.arange(5), "scalar": torch.tensor(2.5),
               "none": torch.zeros(0, 3)}, os.path.join(here, "plain.safetensors"), metadata={"format": "pt"})


main()
