#!/usr/bin/env python3
"""Tokens per second of Merx and of its peers, the same model, precision and threads.

    python3 bench/peers/generate.py --merx build/merx --model SMOLLM2.gguf --scratch FOLDER [--out bench/results/NAME]
                                    [--threads 2] [--batches 1,8,32] [--repeats 3] [--dtypes f32,bf16,int8] [--gpt2]

Needs numpy, torch, transformers, gguf, llama-cpp-python, and ctranslate2 for --gpt2
(a GPT-2 124M with seeded random weights: speed does not depend on them).  Every
prompt has 128 tokens, every text 128; greedy, no end of text.  A figure is output
tokens over the time of prefill and decoding, loading left out.  Programs take
turns, so that what else the machine does meets them all; the median counts, and
the best is shown beside.
"""
import argparse, ctypes, json, os, statistics, subprocess, sys, time

PROMPT = NEW = 128
ap = argparse.ArgumentParser()
for name, default in (("merx", "build/merx"), ("model", None), ("scratch", "/tmp"), ("out", None), ("threads", 2), ("batches", "1,8,32"),
                      ("repeats", 3), ("dtypes", "f32,bf16,int8"), ("worker", None), ("batch", 1), ("dtype", "f32"), ("commit", "")):
    ap.add_argument("--" + name, default=default, type=type(default) if isinstance(default, int) else str)
ap.add_argument("--gpt2", action="store_true")
a = ap.parse_args()

def prompts(n, vocab):
    state, out = 12345, []
    for _ in range(n):
        ids = []
        for _ in range(PROMPT):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            ids.append(1000 + (state >> 33) % (vocab - 2000))
        out.append(ids)
    return out

# ---- workers: one program, one batch size; print seconds -------------------------------

def llama_cpp_worker():
    import numpy as np, llama_cpp as L
    global quiet                                              # must outlive every message
    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    L.llama_log_set(quiet, None)
    m = L.llama_model_load_from_file(a.model.encode(), L.llama_model_default_params())
    c = L.llama_context_default_params()
    c.n_ctx, c.n_batch, c.n_ubatch, c.n_seq_max = (PROMPT + NEW + 8) * a.batch, 512, 512, a.batch
    c.n_threads = c.n_threads_batch = a.threads
    ctx = L.llama_init_from_model(m, c)
    vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(m))
    texts = prompts(a.batch, vocab)
    b = L.llama_batch_init(512, 0, 1)
    def put(i, tok, pos, seq, logits):
        b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = tok, pos, 1, logits
        b.seq_id[i][0] = seq
    def best(row):
        return int(np.ctypeslib.as_array(L.llama_get_logits_ith(ctx, row), (vocab,)).argmax())
    def run():
        L.llama_memory_clear(L.llama_get_memory(ctx), True)
        start, last = time.perf_counter(), [0] * a.batch
        for s in range(0, a.batch, 4):                     # four prompts fill a batch of 512
            group = range(s, min(s + 4, a.batch))
            b.n_tokens = PROMPT * len(group)
            for k, q in enumerate(group):
                for i, t in enumerate(texts[q]): put(k * PROMPT + i, t, i, q, i == PROMPT - 1)
            assert L.llama_decode(ctx, b) == 0
            for k, q in enumerate(group): last[q] = best(k * PROMPT + PROMPT - 1)
        for n in range(NEW - 1):
            b.n_tokens = a.batch
            for q in range(a.batch): put(q, last[q], PROMPT + n, q, 1)
            assert L.llama_decode(ctx, b) == 0
            last = [best(q) for q in range(a.batch)]
        return time.perf_counter() - start
    return run

def transformers_worker():
    import torch
    from transformers import AutoModelForCausalLM
    torch.set_num_threads(a.threads)
    at, name = os.path.split(a.model)
    where = {"pretrained_model_name_or_path": at, "gguf_file": name} if name.endswith(".gguf") else {"pretrained_model_name_or_path": a.model}
    m = AutoModelForCausalLM.from_pretrained(**where, dtype={"f32": torch.float32, "bf16": torch.bfloat16}[a.dtype]).eval()
    x = torch.tensor(prompts(a.batch, m.config.vocab_size))
    def run():
        start = time.perf_counter()
        with torch.inference_mode():
            m.generate(x, attention_mask=torch.ones_like(x), do_sample=False, min_new_tokens=NEW, max_new_tokens=NEW, pad_token_id=0)
        return time.perf_counter() - start
    return run

def ctranslate2_worker():
    import ctranslate2
    g = ctranslate2.Generator(a.model, compute_type={"f32": "float32", "int8": "int8"}[a.dtype], intra_threads=a.threads, inter_threads=1)
    words = json.load(open(os.path.join(a.model, "vocabulary.json")))
    texts = [[words[t] for t in p] for p in prompts(a.batch, 50257)]
    def run():
        start = time.perf_counter()
        g.generate_batch(texts, max_length=NEW, min_length=NEW, sampling_topk=1, include_prompt_in_result=False, end_token=[], max_batch_size=a.batch)
        return time.perf_counter() - start
    return run

if a.worker:
    run = {"llama.cpp": llama_cpp_worker, "transformers": transformers_worker, "ctranslate2": ctranslate2_worker}[a.worker]()
    run() if a.batch == 1 else None                           # warm
    print(json.dumps(run()))
    sys.exit()

# ---- models ----------------------------------------------------------------------------

def gguf_as(kind):
    """The same numbers as a GGUF of one type for all matrices."""
    out = os.path.join(a.scratch, f"smollm2-{kind}.gguf")
    if not os.path.exists(out):
        import gguf, numpy as np
        r = gguf.GGUFReader(a.model)
        w = gguf.GGUFWriter(out, "llama")
        for f in r.fields.values():
            if f.name.startswith("GGUF.") or f.name in ("general.architecture", "general.file_type"): continue
            t = f.types[0]
            v = f.contents()
            w.add_array(f.name, v) if t == gguf.GGUFValueType.ARRAY else w.add_key_value(f.name, v, t)
        q = {"f32": gguf.GGMLQuantizationType.F32, "bf16": gguf.GGMLQuantizationType.BF16, "int8": gguf.GGMLQuantizationType.Q8_0}[kind]
        for t in r.tensors:
            x = gguf.dequantize(t.data, t.tensor_type).astype(np.float32)
            if x.ndim < 2 or q == gguf.GGMLQuantizationType.F32: w.add_tensor(t.name, x)
            else: w.add_tensor(t.name, gguf.quantize(x, q), raw_dtype=q)
        w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
    return out

def gpt2_folder():
    out = os.path.join(a.scratch, "gpt2-random")
    if not os.path.exists(out):
        import torch
        from transformers import GPT2Config, GPT2LMHeadModel
        torch.manual_seed(1)
        GPT2LMHeadModel(GPT2Config()).save_pretrained(out)
        words = {f"w{i}": i for i in range(50256)} | {"<|endoftext|>": 50256}         # ids are all that is used
        json.dump(words, open(os.path.join(out, "vocab.json"), "w"))
        open(os.path.join(out, "merges.txt"), "w").write("#version: 0.2\n")
    return out

def ct2_folder(dtype):
    out = os.path.join(a.scratch, f"gpt2-ct2-{dtype}")
    if not os.path.exists(out):
        import ctranslate2
        ctranslate2.converters.TransformersConverter(gpt2_folder(), load_as_float16=False).convert(out, quantization={"f32": "float32", "int8": "int8"}[dtype])
    return out

# ---- measuring -----------------------------------------------------------------------------

def merx(model, dtype, batch):
    vocab = 50257 if a.gpt2 else 49152
    rows, out = os.path.join(a.scratch, "rows.jsonl"), os.path.join(a.scratch, "answers.jsonl")
    with open(rows, "w") as f:
        for i, p in enumerate(prompts(batch, vocab)): f.write(json.dumps({"id": i, "ids": p}) + "\n")
    r = subprocess.run([a.merx, "generate", "-m", model, "--dtype", dtype, "-i", rows, "-o", out, "--overwrite", "--max-tokens", str(NEW), "--ignore-eos",
                        "--temperature", "0", "--threads", str(a.threads), "--max-num-seqs", str(batch), "--max-model-len", str(PROMPT + NEW)],
                       capture_output=True, text=True)
    for line in r.stderr.splitlines():
        if " tokens in " in line: return float(line.split(" tokens in ")[1].split(" s")[0])
    sys.exit(r.stderr)

def peer(worker, model, dtype, batch):
    r = subprocess.run([sys.executable, __file__, "--worker", worker, "--model", model, "--dtype", dtype, "--batch", str(batch), "--threads", str(a.threads)],
                       capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS=str(a.threads)))
    try: return float(r.stdout.splitlines()[-1])
    except Exception: sys.exit(f"{worker}: {r.stderr[-2000:]}")

table = {}
for dtype in a.dtypes.split(","):
    if a.gpt2:
        programs = {"merx": lambda b, d=dtype: merx(gpt2_folder(), d, b)}
        if dtype != "int8": programs["transformers"] = lambda b, d=dtype: peer("transformers", gpt2_folder(), d, b)
        if dtype != "bf16": programs["ctranslate2"] = lambda b, d=dtype: peer("ctranslate2", ct2_folder(d), d, b)
    else:
        programs = {"merx": lambda b, d=dtype: merx(gguf_as("f32"), d, b), "llama.cpp": lambda b, d=dtype: peer("llama.cpp", gguf_as(d), d, b)}
        if dtype != "int8": programs["transformers"] = lambda b, d=dtype: peer("transformers", gguf_as("f32"), d, b)
    for batch in map(int, a.batches.split(",")):
        times = {p: [] for p in programs}
        for _ in range(a.repeats):
            for p, f in programs.items(): times[p].append(f(batch))
        for p, t in times.items():
            table[dtype, batch, p] = (batch * NEW / statistics.median(t), batch * NEW / min(t))
            print(f"{dtype:5} batch {batch:3} {p:13} {table[dtype, batch, p][0]:8.1f} tokens/s (best {table[dtype, batch, p][1]:.1f})", flush=True)

if a.out:
    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "")
    head = [f"date {time.strftime('%Y-%m-%d')}, commit {a.commit}, {cpu}, {a.threads} threads, prompt {PROMPT}, new {NEW}, median of {a.repeats}",
            "command: python3 bench/peers/generate.py " + " ".join(x for x in sys.argv[1:] if "/" not in x)]
    with open(a.out + ".csv", "w") as f:
        f.writelines(f"# {h}\n" for h in head)
        f.write("model,dtype,batch,program,tokens_per_s,best_tokens_per_s\n")
        for (d, b, p), (m, best) in table.items(): f.write(f"{'gpt2-124m' if a.gpt2 else 'smollm2-135m'},{d},{b},{p},{m:.1f},{best:.1f}\n")
