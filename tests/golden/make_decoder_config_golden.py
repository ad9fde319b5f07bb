#!/usr/bin/env python3
"""Write tests/golden/checkpoint/configs.json: configs of public model families
and of every rotary scaling, each with what transformers makes of it: inverse
frequencies, the factor of cos and sin, the number of parameters.

Needs: torch, transformers.  No downloads: the configs are written out here.
"""
import json
import os

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "checkpoint")

gpt2 = dict(model_type="gpt2", activation_function="gelu_new", architectures=["GPT2LMHeadModel"], attn_pdrop=0.1,
            bos_token_id=50256, eos_token_id=50256, embd_pdrop=0.1, initializer_range=0.02, layer_norm_epsilon=1e-5,
            n_ctx=1024, n_embd=768, n_head=12, n_layer=12, n_positions=1024, resid_pdrop=0.1, vocab_size=50257)
smol = dict(model_type="llama", architectures=["LlamaForCausalLM"], attention_bias=False, attention_dropout=0.0,
            bos_token_id=1, eos_token_id=2, hidden_act="silu", hidden_size=576, intermediate_size=1536,
            is_llama_config=True, max_position_embeddings=8192, mlp_bias=False, num_attention_heads=9,
            num_hidden_layers=30, num_key_value_heads=3, pretraining_tp=1, rms_norm_eps=1e-5, rope_interleaved=False,
            rope_scaling=None, rope_theta=100000, tie_word_embeddings=True, vocab_size=49152)
llama31 = dict(model_type="llama", architectures=["LlamaForCausalLM"], attention_bias=False, bos_token_id=128000,
               eos_token_id=[128001, 128008, 128009], hidden_act="silu", hidden_size=4096, intermediate_size=14336,
               max_position_embeddings=131072, mlp_bias=False, num_attention_heads=32, num_hidden_layers=32,
               num_key_value_heads=8, rms_norm_eps=1e-5, rope_theta=500000.0, tie_word_embeddings=False,
               rope_scaling=dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, rope_type="llama3",
                                 original_max_position_embeddings=8192), vocab_size=128256)
tiny = dict(model_type="llama", bos_token_id=1, eos_token_id=2, hidden_act="silu", hidden_size=2048,
            intermediate_size=5632, max_position_embeddings=2048, num_attention_heads=32, num_hidden_layers=22,
            num_key_value_heads=4, rms_norm_eps=1e-5, rope_scaling=None, tie_word_embeddings=False, vocab_size=32000)
qwen2 = dict(model_type="qwen2", bos_token_id=151643, eos_token_id=151643, hidden_act="silu", hidden_size=896,
             intermediate_size=4864, max_position_embeddings=131072, max_window_layers=24, num_attention_heads=14,
             num_hidden_layers=24, num_key_value_heads=2, rms_norm_eps=1e-6, rope_theta=1000000.0,
             sliding_window=131072, tie_word_embeddings=True, use_sliding_window=False, vocab_size=151936)
mistral = dict(model_type="mistral", bos_token_id=1, eos_token_id=2, hidden_act="silu", hidden_size=4096,
               intermediate_size=14336, max_position_embeddings=32768, num_attention_heads=32, num_hidden_layers=32,
               num_key_value_heads=8, rms_norm_eps=1e-5, rope_theta=10000.0, sliding_window=4096,
               tie_word_embeddings=False, vocab_size=32000)
small = dict(model_type="llama", hidden_size=256, intermediate_size=320, num_attention_heads=4, num_hidden_layers=2,
             num_key_value_heads=2, max_position_embeddings=4096, vocab_size=512, bos_token_id=1, eos_token_id=2)
short = [1 + 0.05 * i for i in range(32)]

cases = {
    "gpt2-124m": gpt2, "smollm2-135m": smol, "llama-3.1-8b": llama31, "tinyllama-1.1b": tiny, "qwen2-0.5b": qwen2,
    "mistral-7b": mistral,
    "gpt2-untied": dict(gpt2, n_embd=48, n_head=3, n_layer=2, n_inner=100, tie_word_embeddings=False, vocab_size=300),
    "biases": dict(small, attention_bias=True, mlp_bias=True, head_dim=48),
    "defaults": dict(model_type="llama"), "defaults-qwen2": dict(model_type="qwen2"),
    "defaults-mistral": dict(model_type="mistral"), "defaults-gpt2": dict(model_type="gpt2"),
    "linear": dict(small, rope_scaling=dict(type="linear", factor=3.0), rope_theta=12345.678),
    "dynamic": dict(small, rope_scaling=dict(type="dynamic", factor=2.0)),
    "llama3-new": dict(small, rope_parameters=dict(rope_type="llama3", rope_theta=500000.0, factor=32.0,
                                                   low_freq_factor=1.0, high_freq_factor=4.0,
                                                   original_max_position_embeddings=1024)),
    "default-new": dict(small, rope_parameters=dict(rope_type="default", rope_theta=250000.0)),
    "yarn": dict(small, model_type="qwen2", rope_theta=1000000.0,
                 rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=1024)),
    "yarn-all": dict(small, rope_theta=10000.0, rope_scaling=dict(
        rope_type="yarn", factor=8.0, original_max_position_embeddings=512, beta_fast=24, beta_slow=2, mscale=1.0,
        mscale_all_dim=0.8, truncate=False)),
    "yarn-factor": dict(small, rope_theta=10000.0, rope_scaling=dict(
        rope_type="yarn", factor=8.0, original_max_position_embeddings=512, attention_factor=1.25)),
    "yarn-ratio": dict(small, rope_theta=10000.0, rope_scaling=dict(
        rope_type="yarn", factor=None, original_max_position_embeddings=512)),
    "longrope": dict(small, original_max_position_embeddings=1024, rope_scaling=dict(
        type="longrope", short_factor=short, long_factor=[4 * x for x in short])),
    "longrope-factor": dict(small, rope_scaling=dict(
        type="longrope", factor=4.0, original_max_position_embeddings=2048, short_factor=short,
        long_factor=[4 * x for x in short])),
    "head-dim": dict(small, head_dim=128, rope_theta=1000000.0),
}


def main():
    out = []
    for name, fields in cases.items():
        config = AutoConfig.for_model(**json.loads(json.dumps(fields)))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        want = {"name": name, "config": fields, "parameters": sum(p.numel() for p in model.parameters())}
        if fields["model_type"] != "gpt2":
            rope = LlamaRotaryEmbedding(config)
            want["inv_freq"] = [float(f"{x:.9g}") for x in rope.inv_freq.tolist()]
            want["magnitude"] = rope.attention_scaling
        out.append(want)
    with open(os.path.join(here, "configs.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(x) for x in out) + "\n]\n")


main()
