#!/usr/bin/env python3
"""Tiny GPT-2, Llama and Qwen2 models with seeded random weights, and the logits
that transformers computes for them in double precision.

    python3 make_decoder_golden.py OUT_FOLDER      (needs torch, transformers)

Each folder holds config.json, model.safetensors (F32) and golden.bin: int32
n_tokens, int32 vocab, int32 ids[n_tokens], float32 logits[n_tokens][vocab],
int32 n_greedy, int32 greedy[n_greedy] (the ids that follow ids, greedily).
"""
import os, struct, sys
import torch
from transformers import (GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM)

def models():
    common = dict(vocab_size=131, bos_token_id=0, eos_token_id=1)
    yield "gpt2", GPT2LMHeadModel, GPT2Config(n_positions=96, n_embd=48, n_layer=2, n_head=3, **common)
    rope3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 32, "rope_theta": 10000.0}
    llama = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=6,
                 num_key_value_heads=2, max_position_embeddings=96, **common)
    yield "llama", LlamaForCausalLM, LlamaConfig(tie_word_embeddings=False, **llama)
    yield "llama3", LlamaForCausalLM, LlamaConfig(tie_word_embeddings=True, rope_parameters=rope3, **llama)
    yield "qwen2", Qwen2ForCausalLM, Qwen2Config(tie_word_embeddings=True, **llama)

for seed, (name, kind, config) in enumerate(models()):
    torch.manual_seed(1000 + seed)
    model = kind(config).eval()
    with torch.no_grad():
        for p in model.parameters():            # biases and gains are trivial otherwise
            p.copy_(torch.randn_like(p) * 0.15 + (1.0 if p.dim() == 1 and p.mean() == 1 else 0.0))
        model.tie_weights()
        folder = os.path.join(sys.argv[1], name)
        model.save_pretrained(folder)
        for extra in ("generation_config.json",):
            path = os.path.join(folder, extra)
            if os.path.exists(path): os.remove(path)
        ids = torch.randint(2, config.vocab_size, (1, 29))
        model = model.double()
        logits = model(ids).logits[0].float()
        greedy, seq = [], ids
        for _ in range(64):
            nxt = int(model(seq).logits[0, -1].argmax())
            greedy.append(nxt)
            seq = torch.cat([seq, torch.tensor([[nxt]])], 1)
    with open(os.path.join(folder, "golden.bin"), "wb") as f:
        f.write(struct.pack("<ii", ids.shape[1], config.vocab_size))
        f.write(struct.pack("<%di" % ids.shape[1], *ids[0].tolist()))
        f.write(logits.contiguous().numpy().tobytes())
        f.write(struct.pack("<i%di" % len(greedy), len(greedy), *greedy))
