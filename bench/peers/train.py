#!/usr/bin/env python3
"""Seconds of a training step of GPT-2 124M: Merx beside PyTorch and any other program.

    python3 bench/peers/train.py --merx build/merx --scratch FOLDER [--shapes 4x64,4x256] [--dtypes f32,bf16] [--steps 4]
                                 [--repeats 2] [--threads 2] [--other NAME=SHAPE=DTYPE=FOLDER=COMMAND] [--out bench/results/NAME]

Needs numpy, torch, transformers, safetensors.  A step is forward, backward, clipping
by the global norm and AdamW; SHAPE is sequences x tokens, random ids.  bf16: f32
weights, products in bf16 (torch: autocast).  --other runs COMMAND in FOLDER and reads
"(took N ms)" lines, as llm.c's train_gpt2 prints them (4x64, f32).  The first step of
every run is left out.  Programs take turns; the median of all steps counts.
"""
import argparse, json, os, re, shutil, statistics, subprocess, sys, time

ap = argparse.ArgumentParser()
for name, default in (("merx", "build/merx"), ("scratch", "/tmp"), ("out", None), ("shapes", "4x64,4x256"), ("dtypes", "f32,bf16"), ("steps", 4),
                      ("repeats", 2), ("threads", 2), ("worker", None), ("shape", "4x64"), ("dtype", "f32"), ("commit", "")):
    ap.add_argument("--" + name, default=default, type=type(default) if isinstance(default, int) else str)
ap.add_argument("--other", action="append", default=[])
a = ap.parse_args()
VOCAB = 50257

def folder():
    out = os.path.join(a.scratch, "gpt2-random")
    if not os.path.exists(out):
        import torch
        from transformers import GPT2Config, GPT2LMHeadModel
        torch.manual_seed(1)
        GPT2LMHeadModel(GPT2Config()).save_pretrained(out)
        words = {f"w{i}": i for i in range(VOCAB - 1)} | {"<|endoftext|>": VOCAB - 1}
        json.dump(words, open(os.path.join(out, "vocab.json"), "w"))
        open(os.path.join(out, "merges.txt"), "w").write("#version: 0.2\n")
    return out

def torch_worker():
    import torch
    from transformers import GPT2LMHeadModel
    torch.set_num_threads(a.threads)
    B, T = map(int, a.shape.split("x"))
    model = GPT2LMHeadModel.from_pretrained(folder(), attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0).train()
    opt = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1, fused=True)
    torch.manual_seed(2)
    for _ in range(a.steps + 1):
        ids = torch.randint(0, VOCAB, (B, T))
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=a.dtype == "bf16"):
            loss = model(ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        print(f"(took {(time.perf_counter() - start) * 1000:f} ms)", flush=True)

if a.worker:
    torch_worker()
    sys.exit()

def took(text):
    ms = [float(x) for x in re.findall(r"\(took ([0-9.]+) ms\)", text)]
    return [x / 1000 for x in ms[1:a.steps + 1]]

def pytorch(shape, dtype):
    r = subprocess.run([sys.executable, __file__, "--worker", "torch", "--shape", shape, "--dtype", dtype, "--threads", str(a.threads),
                        "--steps", str(a.steps), "--scratch", a.scratch], capture_output=True, text=True)
    return took(r.stdout) or sys.exit(r.stderr)

def merx(shape, dtype):
    import numpy as np
    from safetensors.numpy import save_file
    B, T = map(int, shape.split("x"))
    n = B * (a.steps + 1)
    shard, run = os.path.join(a.scratch, "ids.safetensors"), os.path.join(a.scratch, "run")
    ids = np.random.default_rng(2).integers(0, VOCAB, n * T).astype(np.int32)
    save_file({"ids": ids, "begin": np.arange(0, n * T + 1, T, dtype=np.int64)}, shard)
    shutil.rmtree(run, ignore_errors=True)
    r = subprocess.run([a.merx, "train", "lm", "-m", folder(), "-d", shard, "--run", run, "--batch", str(B), "--length", str(T), "--steps",
                        str(a.steps + 1), "--micro-rows", str(B * T), "--compute", dtype, "--threads", str(a.threads), "--keep", "1"],
                       capture_output=True, text=True)
    if r.returncode: sys.exit(r.stderr)
    seconds = [json.loads(line)["seconds"] for line in open(os.path.join(run, "metrics.jsonl")) if "grad_norm" in line]
    shutil.rmtree(run)
    return seconds[1:]

def other(folder_, command):
    p = subprocess.Popen(command, shell=True, cwd=folder_, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": str(a.threads)})
    text = ""
    for line in p.stdout:
        text += line
        if len(took(text)) >= a.steps: break
    p.kill()
    p.wait()
    return took(text)

rows = []
for shape in a.shapes.split(","):
    for dtype in a.dtypes.split(","):
        programs = {"merx": lambda: merx(shape, dtype), "pytorch": lambda: pytorch(shape, dtype)}
        for o in a.other:
            name, s, d, where, command = o.split("=", 4)
            if (s, d) == (shape, dtype): programs[name] = lambda: other(where, command)
        times = {p: [] for p in programs}
        for _ in range(a.repeats):
            for p, f in programs.items(): times[p] += f()
        B, T = map(int, shape.split("x"))
        for p, t in times.items():
            m = statistics.median(t)
            rows.append((shape, dtype, p, m, B * T / m))
            print(f"{shape:8} {dtype:5} {p:10} {m:8.3f} s a step (best {min(t):.3f}) {B * T / m:8.1f} tokens/s", flush=True)
if a.out:
    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "?")
    with open(a.out + ".csv", "w") as f:
        f.write(f"# date {time.strftime('%Y-%m-%d')}, commit {a.commit}, {cpu}, {a.threads} threads, GPT-2 124M, median of {a.repeats * a.steps} steps\n")
        f.write("shape,dtype,program,seconds_a_step,tokens_per_s\n")
        for r in rows: f.write("%s,%s,%s,%.4f,%.1f\n" % r)
