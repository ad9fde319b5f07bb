#!/usr/bin/env python3
"""A real model in Merx, llama.cpp and transformers: ids, logits, greedy texts.

    python3 compare_llama_cpp.py BUILD_FOLDER MODEL.gguf     (needs llama-cpp-python, gguf, transformers)

20 prompts, the first 48 tokens.  Three comparisons:
  the file as it is, with llama.cpp, which rounds activations to 8 bits where the
  weights have 4: where the texts part, the gap between the two candidates is
  shown in both programs;
  the same weights written out as F32, with llama.cpp: the texts must be equal but
  for near-ties (gap below 1e-3);
  the file as it is, with transformers in f32 (10 prompts): logits within 2e-5,
  equal texts.
Then the weights as bf16, int8 and fp8, and the KV cache as bf16 and fp8, against f32, over the
f32 texts; that alone, and no other program, with a third argument `precision`.
Exit status 1 when one of the bounds is broken.
"""
import os, subprocess, sys, tempfile
import numpy as np

BUILD, MODEL = sys.argv[1], sys.argv[2]
TOKENS = 48
PROMPTS = [
    "The capital of France is", "Once upon a time, in a small village by the sea,",
    "Write a slogan for a sunscreen that young women will love:", "Here are three reasons to drink green tea every day:\n1.",
    "def fibonacci(n):\n    ", "Dear customer,\n\nThank you for your order", "Q: What is the boiling point of water?\nA:",
    "为夏季防晒霜设计一条吸引年轻女性的文案:", "今天天气很好，我们去", "这款手机的主要特点是", "中华人民共和国的首都是", "新品上市！限时优惠，",
    "I love pizza 🍕 and", "🎉🎉🎉 Big sale today! 🎉", "👩‍👩‍👧‍👦 family time 😊", "🚀",
    "1 2 3 4 5 6 7 8 9", "3.14159265358979", "2023-11-24 12:30:45,", "The price is $1,299.99, which is 25% off the",
]

def merx(model, dtype, lines, n, folder, kv="f32"):
    out = os.path.join(folder, "merx.bin")
    said = subprocess.run([os.path.join(BUILD, "tests", "decoder_dump"), model, dtype, str(n), out, kv], input="\n".join(lines) + "\n",
                          text=True, check=True, capture_output=True).stdout.splitlines()
    raw, at, made = np.fromfile(out, np.float32), 0, []
    texts = [[[int(i) for i in part.split()] for part in line.split("/")] for line in said]
    rows = [len(p) + len(a) - (1 if n else 0) for p, a in texts]
    vocab = raw.size // sum(rows)
    for (prompt, appended), r in zip(texts, rows):
        made.append((prompt, appended, raw[at: at + r * vocab].reshape(r, vocab)))
        at += r * vocab
    os.remove(out)
    return made

def text_lines(): return ["text " + p.encode().hex() for p in PROMPTS]

class LlamaCpp:
    def __init__(self, path):
        import llama_cpp
        # keys and values as F32: its default, F16, is an error of its own
        self.model = llama_cpp.Llama(path, logits_all=True, n_ctx=512, n_threads=2, verbose=False, type_k=0, type_v=0)
    def ids(self, text): return self.model.tokenize(text.encode(), add_bos=False, special=False)
    def greedy(self, prompt, n):
        self.model.reset()
        self.model.eval(prompt)
        ids = list(prompt)
        while len(ids) < len(prompt) + n:
            ids.append(int(self.model.scores[len(ids) - 1].argmax()))
            if len(ids) < len(prompt) + n: self.model.eval(ids[-1:])
        return ids[len(prompt):], np.array(self.model.scores[: len(ids) - 1])

def compare_texts(name, ours, theirs, bound):
    """theirs(i, prompt ids): appended ids and logits.  Returns how many texts part at a gap over the bound."""
    equal, over, worst = 0, 0, 0.0
    for i, (prompt, appended, logits) in enumerate(ours):
        ids, other = theirs(i, prompt)
        same = 0
        while same < len(ids) and ids[same] == appended[same]: same += 1
        row = len(prompt) - 1 + same
        common = min(row + 1, len(logits), len(other))
        error = np.abs(logits[:common] - other[:common]).max() / np.abs(logits[:common]).max()
        worst = max(worst, float(error))
        if same == len(ids):
            equal += 1
            continue
        a, b = appended[same], ids[same]
        gap, their_gap = logits[row, a] - logits[row, b], other[row, b] - other[row, a]
        over += max(gap, their_gap) > bound
        print("  %-28.28s parts at token %2d: %d or %d; gap here %.4f, there %.4f (logit error up to %.4f)" %
              (repr(PROMPTS[i]), same, a, b, gap, their_gap, np.abs(logits[row] - other[row]).max()))
    print("%s: %d of %d texts equal, relative logit error up to %.2e" % (name, equal, len(ours), worst))
    return over, worst

def as_f32(path, out):
    """The same file with every matrix written out as F32."""
    import gguf
    reader = gguf.GGUFReader(path)
    arch = bytes(reader.fields["general.architecture"].parts[-1]).decode()
    writer = gguf.GGUFWriter(out, arch)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"): continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=sub)
    writer.add_file_type(0)
    for t in reader.tensors:
        writer.add_tensor(t.name, np.ascontiguousarray(gguf.dequantize(t.data, t.tensor_type), dtype=np.float32))
    writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()

def transformers_model(path):
    import torch
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(os.path.dirname(path), gguf_file=os.path.basename(path), dtype=torch.float32).eval()
    def greedy(i, prompt):
        ids = list(prompt)
        with torch.no_grad():
            out = model(torch.tensor([ids]), use_cache=True)
            rows, cache = [out.logits[0]], out.past_key_values
            while True:
                ids.append(int(rows[-1][-1].argmax()))
                if len(ids) == len(prompt) + TOKENS: break
                out = model(torch.tensor([ids[-1:]]), past_key_values=cache, use_cache=True)
                rows.append(out.logits[0]); cache = out.past_key_values
        return ids[len(prompt):], torch.cat(rows).numpy()
    return greedy

def precision(ours, folder):
    lines = ["ids " + " ".join(map(str, p + a[:-1])) for p, a, _ in ours]
    print("smaller weights and KV against f32, over the f32 texts (%d rows):" % sum(len(l) for _, _, l in ours))
    for dtype, kv in (("bf16", "f32"), ("int8", "f32"), ("fp8", "f32"), ("f32", "bf16"), ("f32", "fp8"), ("fp8", "fp8")):
        forced, free = merx(MODEL, dtype, lines, 0, folder, kv), merx(MODEL, dtype, text_lines(), TOKENS, folder, kv)
        worst, squares, count, top, rows, size, kl = 0.0, 0.0, 0, 0, 0, 0.0, 0.0
        for (_, _, want), (_, _, got) in zip(ours, forced):
            d = got.astype(np.float64) - want
            worst, size = max(worst, np.abs(d).max()), max(size, float(np.abs(want).max()))
            squares, count = squares + float((d * d).sum()), count + d.size
            top, rows = top + int((got.argmax(1) == want.argmax(1)).sum()), rows + len(want)
            p = want - want.max(1, keepdims=True); p = p - np.log(np.exp(p.astype(np.float64)).sum(1, keepdims=True))
            q = got - got.max(1, keepdims=True); q = q - np.log(np.exp(q.astype(np.float64)).sum(1, keepdims=True))
            kl += float((np.exp(p) * (p - q)).sum())
        same = [next((k for k, (x, y) in enumerate(zip(a, b)) if x != y), TOKENS) for (_, a, _), (_, b, _) in zip(ours, free)]
        print("  %s, KV %s: logit error max %.3f, rms %.4f (largest logit %.1f); same best token in %.1f%% of rows; KL %.5f; "
              "%d of %d texts equal, %.1f of %d tokens before they part" %
              (dtype, kv, worst, (squares / count) ** 0.5, size, 100 * top / rows, kl / rows, same.count(TOKENS), len(same), np.mean(same), TOKENS))

failed = 0
with tempfile.TemporaryDirectory() as folder:
    ours = merx(MODEL, "f32", text_lines(), TOKENS, folder)
    if sys.argv[3:] == ["precision"]:
        precision(ours, folder)
        sys.exit(0)
    llama = LlamaCpp(MODEL)
    for text, (prompt, _, _) in zip(PROMPTS, ours):
        if llama.ids(text) != prompt:
            failed += 1
            print("ids differ: %r: here %s, llama.cpp %s" % (text, prompt, llama.ids(text)))
    compare_texts("llama.cpp, same file", ours, lambda i, p: llama.greedy(p, TOKENS), np.inf)
    whole = os.path.join(folder, "f32.gguf")
    as_f32(MODEL, whole)
    llama = LlamaCpp(whole)
    same = merx(whole, "f32", text_lines(), TOKENS, folder)
    if any(a[1] != b[1] or not np.array_equal(a[2], b[2]) for a, b in zip(ours, same)):
        failed += 1
        print("Merx itself: the F32 file does not give the bits of the quantised one")
    over, _ = compare_texts("llama.cpp, weights as F32", same, lambda i, p: llama.greedy(p, TOKENS), 1e-3)
    failed += over
    del llama, same
    over, worst = compare_texts("transformers, f32", ours[::2], transformers_model(MODEL), 0)
    failed += over + (worst > 2e-5)
    precision(ours, folder)
print("FAILED: %d" % failed if failed else "all within bounds")
sys.exit(failed > 0)
