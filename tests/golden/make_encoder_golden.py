#!/usr/bin/env python3
"""A tiny BERT with seeded random weights, and ten steps of AdamW as PyTorch makes them, in double precision.

    python3 make_encoder_golden.py GOLDEN_FOLDER   (needs torch, transformers, safetensors)

Writes encoder/bert (config, weights, vocab.txt, and logits of both heads) and train/bert-masked-words,
train/bert-classify as make_train_golden.py does.  Words are masked by models/bert_pass.c's draws, done again here.
"""
import json, os, sys
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

LR, WARMUP, STEPS, BATCH, V = 1e-2, 3, 10, 3, 131
MASK, M64, GOLD = 4, (1 << 64) - 1, 0x9e3779b97f4a7c15
out = sys.argv[1]
torch.manual_seed(11)
config = BertConfig(vocab_size=V, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=96,
                    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=3, initializer_range=0.2, attn_implementation="eager")
folder = os.path.join(out, "encoder", "bert")
os.makedirs(folder, exist_ok=True)
words, classify = BertForMaskedLM(config), BertForSequenceClassification(config)
classify.bert.load_state_dict(words.bert.state_dict(), strict=False)
for model in (words, classify):                     # biases that are not 0, gains that are not 1
    for name, p in model.named_parameters():
        if p.dim() == 1: p.data += 0.1 * torch.randn_like(p)
classify.bert.load_state_dict(words.bert.state_dict(), strict=False)
both = {**words.state_dict(), **classify.state_dict()}
both = {k: v.clone().contiguous() for k, v in both.items() if "decoder" not in k and "position_ids" not in k}
save_file(both, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
config.save_pretrained(folder)
open(os.path.join(folder, "vocab.txt"), "w").write("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [f"w{i}" for i in range(5, V)]) + "\n")
json.dump({"tokenizer_class": "BertTokenizer", "do_lower_case": True}, open(os.path.join(folder, "tokenizer_config.json"), "w"))

def mix(x):
    x = (x + GOLD) & M64
    x = ((x ^ (x >> 30)) * 0xbf58476d1ce4e5b9) & M64
    x = ((x ^ (x >> 27)) * 0x94d049bb133111eb) & M64
    return x ^ (x >> 31)

def uniform(x): return (x >> 11) * 2.0 ** -53

def ask(docs, seed):
    """What the batch shows and what is to be guessed (-100: nothing)."""
    shown, targets, r = [], [], 0
    for d in docs:
        s, t = d.clone(), torch.full_like(d, -100)
        for i, x in enumerate(d.tolist()):
            draw = mix((seed + r * 0xd1342543de82ef95) & M64)
            how = mix(draw)
            r += 1
            if x < 5 or not uniform(draw) < 0.15: continue
            t[i] = x
            if uniform(how) < 0.8: s[i] = MASK
            elif uniform(how) < 0.9: s[i] = mix(how) % V
        shown.append(s); targets.append(t)
    return shown, targets

docs, labels = [], []
for i in range(STEPS * BATCH):
    n = int(torch.randint(6, 94 if i % 3 else 20, (1,)))
    docs.append(torch.cat([torch.tensor([2]), torch.randint(5, V, (n,)), torch.tensor([3])]))
    labels.append(int(torch.randint(0, 3, (1,))))
begin = torch.tensor([0] + [len(d) for d in docs]).cumsum(0)
data = {"ids": torch.cat(docs).int(), "begin": begin, "label": torch.tensor(labels, dtype=torch.int32)}

logits = {}
with torch.no_grad():
    d = docs[1]
    logits["ids"] = d.int()
    logits["masked_words"] = words.double()(d[None]).logits[0].float()
    logits["classify"] = classify.double()(d[None]).logits[0].float()
    logits["hidden"] = classify.bert(d[None]).last_hidden_state[0].float()
    logits["pooled"] = classify.bert(d[None]).pooler_output[0].float()
save_file(logits, os.path.join(folder, "logits.safetensors"))

for name, model in (("bert-masked-words", words), ("bert-classify", classify)):
    target = os.path.join(out, "train", name)
    os.makedirs(target, exist_ok=True)
    model.double().train()
    opt = torch.optim.AdamW([{"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
                             {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0}], lr=LR, betas=(0.9, 0.95), eps=1e-8)
    log = []
    for step in range(STEPS):
        part = docs[step * BATCH:(step + 1) * BATCH]
        lr = LR * (step + 1) / (WARMUP + 1) if step < WARMUP else LR
        total, counted = 0.0, 0
        if model is words:
            for s, t in zip(*ask(part, 1 ^ (step * BATCH * GOLD & M64))):
                total = total + torch.nn.functional.cross_entropy(model(s[None]).logits[0], t, ignore_index=-100, reduction="sum")
                counted += int((t >= 0).sum())
        else:
            for i, d in enumerate(part):
                total = total + torch.nn.functional.cross_entropy(model(d[None]).logits, torch.tensor([labels[step * BATCH + i]]), reduction="sum")
                counted += 1
        loss = total / counted
        opt.zero_grad()
        loss.backward()
        if step == 0:
            save_file({n: p.grad.float().contiguous() for n, p in model.named_parameters() if p.grad is not None},
                      os.path.join(target, "grad.safetensors"))
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for g in opt.param_groups: g["lr"] = lr
        opt.step()
        log.append({"loss": loss.item(), "grad_norm": norm.item(), "lr": lr, "counted": counted})
    save_file({n: p.detach().float().contiguous() for n, p in model.named_parameters()}, os.path.join(target, "weights.safetensors"))
    save_file(data, os.path.join(target, "data.safetensors"))
    json.dump(log, open(os.path.join(target, "steps.json"), "w"), indent=0)
