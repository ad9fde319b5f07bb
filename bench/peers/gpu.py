#!/usr/bin/env python3
"""What PyTorch does on the same GPU: cuBLAS products, fused attention, a GPT-2 124M that
decodes from a static cache and one that trains, both through torch.compile.

    python3 bench/peers/gpu.py [--device cuda] [--small]

Needs torch only.  bench/gpu.sh runs it; every line begins with `torch`.  --small: tiny
shapes, to see that it runs (also with --device cpu)."""
import argparse, math, os, statistics, time
import torch
import torch.nn as nn
import torch.nn.functional as F

ap = argparse.ArgumentParser()
ap.add_argument("--device", default="cuda")
ap.add_argument("--small", action="store_true")
a = ap.parse_args()
dev, bf16 = a.device, torch.bfloat16
L, H, C, V = (2, 2, 128, 1000) if a.small else (12, 12, 768, 50257)


def seconds(f, calls=20):
    for _ in range(3):
        f()
    times = []
    for _ in range(calls):
        if dev == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        f()
        if dev == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def line(name, s, rate, unit):
    print(f"torch  {name:40} {s * 1e6:10.1f} us  {rate:14.1f} {unit}", flush=True)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.qkv, self.out, self.up, self.down = nn.Linear(C, 3 * C), nn.Linear(C, C), nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x, cache=None, at=0):
        B, T, _ = x.shape
        q, k, v = (t.view(B, T, H, C // H).transpose(1, 2) for t in self.qkv(self.n1(x)).split(C, 2))
        if cache is not None:
            cache[0][:, :, at:at + 1], cache[1][:, :, at:at + 1] = k, v
            k, v = cache[0], cache[1]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, C))
        return x + self.down(F.gelu(self.up(self.n2(x)), approximate="tanh"))


class GPT2(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(V, C), nn.Embedding(1024, C)
        self.h, self.f = nn.ModuleList(Block() for _ in range(L)), nn.LayerNorm(C)

    def forward(self, ids, caches=None, at=0):
        x = self.wte(ids) + self.wpe(torch.arange(at, at + ids.shape[1], device=ids.device))
        for i, b in enumerate(self.h):
            x = b(x, None if caches is None else caches[i], at)
        return F.linear(self.f(x), self.wte.weight)


def products():
    for n in (8, 64) if a.small else (1, 8, 32, 256, 8192):
        for o, c in ((3 * C, C), (4 * C, C), (C, 4 * C)):
            x, w = torch.randn(n, c, device=dev, dtype=bf16), torch.randn(o, c, device=dev, dtype=bf16)
            s = seconds(lambda: F.linear(x, w))
            line(f"matmul-{n}x{c}x{o}-bf16", s, 2 * n * c * o / s * 1e-12, "TFLOP/s")


def attention():
    for b, t, causal in ((1, 64, True),) if a.small else ((8, 1024, True), (64, 128, False)):
        q, k, v = (torch.randn(b, H, t, C // H, device=dev, dtype=bf16, requires_grad=True) for _ in range(3))
        flop = 4 * b * t * t * C / (2 if causal else 1)
        s = seconds(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal))
        line(f"attention-{b}x{t}{'-causal' if causal else ''}-bf16", s, flop / s * 1e-12, "TFLOP/s")

        def both():
            F.scaled_dot_product_attention(q, k, v, is_causal=causal).backward(q.detach())
        s = seconds(both)
        line(f"attention+back-{b}x{t}{'-causal' if causal else ''}-bf16", s, 3.5 * flop / s * 1e-12, "TFLOP/s")


@torch.no_grad()
def decode():
    model = GPT2().to(dev, bf16).eval()
    for context in (32,) if a.small else (128, 512):
        for batch in (1, 2) if a.small else (1, 32, 256):
            caches = [[torch.zeros(batch, H, context, C // H, device=dev, dtype=bf16) for _ in range(2)] for _ in range(L)]
            ids = torch.zeros(batch, 1, dtype=torch.long, device=dev)
            step = lambda x: model(x, caches, context - 1)[:, -1].argmax(-1, keepdim=True)
            run = torch.compile(step, mode="reduce-overhead") if dev == "cuda" else step
            s = seconds(lambda: run(ids))
            line(f"decode-batch{batch}-context{context}-bf16", s, batch / s, "tokens/s")


def train():
    B, T = (2, 32) if a.small else (16, 1024)
    model = GPT2().to(dev)
    run = torch.compile(model) if dev == "cuda" else model
    opt = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=dev == "cuda")
    ids = torch.randint(0, V, (B, T), device=dev)

    def step():
        with torch.autocast(dev, bf16):
            loss = F.cross_entropy(run(ids).float().view(-1, V), ids.view(-1))
        opt.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
    s = seconds(step, 10)
    weights = sum(p.numel() for p in model.parameters()) - 1024 * C
    flop = B * T * (6 * weights + 6 * L * C * T)
    line(f"train-{B}x{T}-bf16-mfu{flop / s / (float(os.environ.get("GPU_PEAK_TFLOPS", 989)) * 1e12):.3f}", s, B * T / s, "tokens/s")


for part in (products, attention, decode, train):
    try:
        part()
    except Exception as e:                  # one part that this machine cannot run does not end the others
        print(f"torch: {part.__name__}: {type(e).__name__}: {e}".splitlines()[0], flush=True)
