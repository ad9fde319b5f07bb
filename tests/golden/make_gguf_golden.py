#!/usr/bin/env python3
"""Small quantised GGUF models, and the logits of their dequantised weights.

    python3 make_gguf_golden.py TESTS_GOLDEN_FOLDER      (needs torch, transformers, gguf)

decoder/llama-gguf and decoder/gpt2-gguf hold random weights in a mixture of types,
as real files do; what gguf.quants cannot write (the K types) is made of random
blocks with finite scales.  Beside each a golden.bin as make_decoder_golden.py
writes it, by transformers in double precision from gguf.dequantize's numbers.
"""
import os, struct, sys
import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as T
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

rng = np.random.default_rng(5)
HALVES = {T.Q4_K: (0, 2), T.Q6_K: (208,)}            # where a block has its scales

def quantised(shape, kind, scale):
    """Raw data of the type and the numbers it stands for."""
    if kind in HALVES:
        values, size = gguf.GGML_QUANT_SIZES[kind]
        raw = rng.integers(0, 256, size=(shape[0] * shape[1] // values, size), dtype=np.uint8)
        for at in HALVES[kind]:
            half = (rng.uniform(0.5, 1.5, len(raw)) * scale * (0.002 if kind == T.Q4_K else 0.0003)).astype(np.float16)
            raw[:, at:at + 2] = half.view(np.uint8).reshape(-1, 2)
        data = raw.reshape(shape[0], -1)
    else:
        data = gguf.quants.quantize((rng.standard_normal(shape) * scale).astype(np.float32), kind)
    return data, gguf.dequantize(data, kind).astype(np.float32).reshape(shape)

def vector(n, base): return (base + 0.15 * rng.standard_normal(n)).astype(np.float32)

def from_interleaved(w, heads):
    """llama.cpp stores q and k with the two halves of a head interleaved: back to transformers' order."""
    return w.reshape(heads, w.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)

class File:
    def __init__(self, path, arch, fields):
        self.w, self.state = gguf.GGUFWriter(path, arch), {}
        for key, value in fields.items():
            (self.w.add_float32 if isinstance(value, float) else self.w.add_uint32)(arch + "." + key, value)
        self.w.add_uint32("tokenizer.ggml.bos_token_id", 0); self.w.add_uint32("tokenizer.ggml.eos_token_id", 1)
    def matrix(self, name, hf, shape, kind, scale=0.15, turn=lambda w: w):
        data, numbers = quantised(shape, kind, scale)
        if kind == T.F32: self.w.add_tensor(name, data)
        else: self.w.add_tensor(name, data, raw_dtype=kind)
        self.state[hf] = torch.from_numpy(np.ascontiguousarray(turn(numbers)))
    def vector(self, name, hf, n, base):
        v = vector(n, base)
        self.w.add_tensor(name, v)
        self.state[hf] = torch.from_numpy(v)
    def close(self):
        self.w.write_header_to_file(); self.w.write_kv_data_to_file(); self.w.write_tensors_to_file(); self.w.close()

def llama(path):
    C, F, H, G, D, V = 256, 96, 4, 2, 32, 131
    f = File(path, "llama", {"block_count": 1, "embedding_length": C, "attention.head_count": H, "attention.head_count_kv": G,
                             "feed_forward_length": F, "context_length": 96, "attention.key_length": D,
                             "attention.value_length": D, "rope.dimension_count": D, "rope.freq_base": 10000.0,
                             "attention.layer_norm_rms_epsilon": 1e-5, "vocab_size": V})
    p = "model.layers.0."
    f.matrix("token_embd.weight", "model.embed_tokens.weight", (V, C), T.Q6_K)
    f.matrix("blk.0.attn_q.weight", p + "self_attn.q_proj.weight", (H * D, C), T.Q4_K, turn=lambda w: from_interleaved(w, H))
    f.matrix("blk.0.attn_k.weight", p + "self_attn.k_proj.weight", (G * D, C), T.BF16, turn=lambda w: from_interleaved(w, G))
    f.matrix("blk.0.attn_v.weight", p + "self_attn.v_proj.weight", (G * D, C), T.Q8_0)
    f.matrix("blk.0.attn_output.weight", p + "self_attn.o_proj.weight", (C, H * D), T.Q4_0)
    f.matrix("blk.0.ffn_gate.weight", p + "mlp.gate_proj.weight", (F, C), T.Q4_1)
    f.matrix("blk.0.ffn_up.weight", p + "mlp.up_proj.weight", (F, C), T.F16)
    f.matrix("blk.0.ffn_down.weight", p + "mlp.down_proj.weight", (C, F), T.Q8_0)
    f.matrix("output.weight", "lm_head.weight", (V, C), T.Q4_K)
    f.vector("blk.0.attn_norm.weight", p + "input_layernorm.weight", C, 1)
    f.vector("blk.0.ffn_norm.weight", p + "post_attention_layernorm.weight", C, 1)
    f.vector("output_norm.weight", "model.norm.weight", C, 1)
    f.close()
    config = LlamaConfig(vocab_size=V, hidden_size=C, intermediate_size=F, num_hidden_layers=1, num_attention_heads=H,
                         num_key_value_heads=G, head_dim=D, max_position_embeddings=96, rms_norm_eps=float(np.float32(1e-5)),
                         tie_word_embeddings=False)
    return LlamaForCausalLM(config), f.state

def gpt2(path):
    C, V = 64, 131
    f = File(path, "gpt2", {"block_count": 1, "embedding_length": C, "attention.head_count": 2, "feed_forward_length": 4 * C,
                            "context_length": 96, "attention.layer_norm_epsilon": 1e-5})
    p, across = "transformer.h.0.", lambda w: w.T        # Conv1D holds [in, out]
    f.matrix("token_embd.weight", "transformer.wte.weight", (V, C), T.Q8_0)
    f.matrix("position_embd.weight", "transformer.wpe.weight", (96, C), T.F32)
    f.matrix("blk.0.attn_qkv.weight", p + "attn.c_attn.weight", (3 * C, C), T.Q4_0, turn=across)
    f.matrix("blk.0.attn_output.weight", p + "attn.c_proj.weight", (C, C), T.F16, turn=across)
    f.matrix("blk.0.ffn_up.weight", p + "mlp.c_fc.weight", (4 * C, C), T.Q4_1, turn=across)
    f.matrix("blk.0.ffn_down.weight", p + "mlp.c_proj.weight", (C, 4 * C), T.Q6_K, turn=across)
    for name, hf, n in (("attn_norm", "ln_1", C), ("ffn_norm", "ln_2", C)):
        f.vector("blk.0.%s.weight" % name, p + hf + ".weight", n, 1)
        f.vector("blk.0.%s.bias" % name, p + hf + ".bias", n, 0)
    for name, hf, n in (("attn_qkv", "attn.c_attn", 3 * C), ("attn_output", "attn.c_proj", C), ("ffn_up", "mlp.c_fc", 4 * C), ("ffn_down", "mlp.c_proj", C)):
        f.vector("blk.0.%s.bias" % name, p + hf + ".bias", n, 0)
    f.vector("output_norm.weight", "transformer.ln_f.weight", C, 1)
    f.vector("output_norm.bias", "transformer.ln_f.bias", C, 0)
    f.state["lm_head.weight"] = f.state["transformer.wte.weight"]
    f.close()
    return GPT2LMHeadModel(GPT2Config(vocab_size=V, n_positions=96, n_embd=C, n_layer=1, n_head=2, layer_norm_epsilon=float(np.float32(1e-5)))), f.state

for make in (llama, gpt2):
    folder = os.path.join(sys.argv[1], "decoder", make.__name__ + "-gguf")
    os.makedirs(folder, exist_ok=True)
    model, state = make(os.path.join(folder, "model.gguf"))
    model = model.double().eval()
    missing = model.load_state_dict({k: v.double() for k, v in state.items()}, strict=False)
    assert not missing.missing_keys and not missing.unexpected_keys, missing
    torch.manual_seed(1)
    ids = torch.randint(2, 131, (1, 29))
    with torch.no_grad():
        logits, greedy, seq = model(ids).logits[0].float(), [], ids
        for _ in range(64):
            greedy.append(int(model(seq).logits[0, -1].argmax()))
            seq = torch.cat([seq, torch.tensor([greedy[-1:]])], 1)
    with open(os.path.join(folder, "golden.bin"), "wb") as f:
        f.write(struct.pack("<ii29i", 29, 131, *ids[0].tolist()))
        f.write(logits.contiguous().numpy().tobytes())
        f.write(struct.pack("<i64i", 64, *greedy))
    print(folder, float(logits.abs().max()), len(set(greedy)))
