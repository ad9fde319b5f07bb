#!/usr/bin/env python3
"""Ten steps of AdamW as PyTorch makes them, in double precision, from the tiny
models of golden/decoder.

    python3 make_train_golden.py DECODER_FOLDER OUT_FOLDER   (needs torch, transformers, safetensors)

Each folder holds data.safetensors (a shard: 30 documents of odd lengths, part of
them masked), steps.json (loss, gradient norm and lr of every step),
grad.safetensors (of the first step, before clipping) and weights.safetensors
(after the last).
"""
import json, os, sys
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

LR, WARMUP, STEPS, BATCH = 1e-2, 3, 10, 3
src, out = sys.argv[1:3]
for name in ("gpt2", "llama", "qwen2"):
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_pretrained(os.path.join(src, name)).double()
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout): m.p = 0.0
    docs, learn = [], []
    for i in range(STEPS * BATCH):
        n = int(torch.randint(2, 96 if i % 3 else 20, (1,)))
        docs.append(torch.randint(2, 131, (n,)))
        mask = torch.ones(n, dtype=torch.uint8)
        if i % 4 == 1: mask[: n // 2] = 0
        learn.append(mask)
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    opt = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
                            lr=LR, betas=(0.9, 0.95), eps=1e-8)
    log, first = [], None
    for step in range(STEPS):
        lr = LR * (step + 1) / (WARMUP + 1) if step < WARMUP else LR
        for g in opt.param_groups: g["lr"] = lr
        opt.zero_grad()
        total, counted = 0.0, 0
        for ids, mask in list(zip(docs, learn))[step * BATCH:(step + 1) * BATCH]:
            logits = model(ids[None, :-1]).logits[0]
            loss = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
            total = total + (loss * mask[1:]).sum()
            counted += int(mask[1:].sum())
        loss = total / counted
        loss.backward()
        if first is None: first = {n: p.grad.float().clone() for n, p in model.named_parameters()}
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        log.append({"loss": loss.item(), "grad_norm": float(norm), "lr": lr})
    folder = os.path.join(out, name)
    os.makedirs(folder, exist_ok=True)
    begin = torch.tensor([0] + [len(d) for d in docs], dtype=torch.int64).cumsum(0)
    save_file({"ids": torch.cat(docs).int(), "begin": begin, "learn": torch.cat(learn)}, os.path.join(folder, "data.safetensors"))
    save_file(first, os.path.join(folder, "grad.safetensors"))
    save_file({n: p.detach().float().clone() for n, p in model.named_parameters()}, os.path.join(folder, "weights.safetensors"))
    json.dump(log, open(os.path.join(folder, "steps.json"), "w"), indent=1)
