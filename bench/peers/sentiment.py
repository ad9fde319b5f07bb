#!/usr/bin/env python3
"""sentiment.py FOLDER [--build build] [--explain 300] [--threads 2] - the test reviews through Profiling.AnalyzeSentiment.
FOLDER is bench/sentiment.sh's; its checkpoint with the best accuracy on held.jsonl is served by merx serve, and every
row of test.jsonl is asked for in batches of 256 (four calls under way) and in one stream.  Told: accuracy, reviews/s, whether
each answer's class is what the offline evaluation says (merx embed --classify), whether batch and stream agree bit for
bit; and of --explain reviews, evenly spread, how far the words' weights are from adding up to the score (1e-3 is
promised; more ends with 1), and how much of the text they cover.  Needs grpcio."""
import argparse, concurrent.futures, glob, json, math, os, subprocess, sys, tempfile, time, unicodedata

a = argparse.ArgumentParser()
a.add_argument("folder")
a.add_argument("--build", default="build")
a.add_argument("--explain", type=int, default=300)
a.add_argument("--threads", default="2")
a = a.parse_args()
sys.path.insert(0, a.build + "/tests/python")
import grpc
import merx_pb2 as pb

MERX, TEST, ADDRESS = a.build + "/merx", a.folder + "/test.jsonl", "127.0.0.1:50987"
BATCH, CALLS, EXPLAINED, LIMIT = 256, 4, 8, 1e-3


def evaluate(checkpoint, data):
    out = subprocess.run([MERX, "train", "encoder", "--task", "classify", "--model", checkpoint, "--eval-data", data, "--eval-only", "--quiet", "--threads", a.threads],
                         check=True, capture_output=True, text=True).stdout
    return json.loads(out)["accuracy"]


def offline(checkpoint, folder):
    subprocess.run([MERX, "embed", "-m", checkpoint, "--classify", "-i", TEST, "-o", folder + "/classes.jsonl", "--threads", a.threads], check=True, stderr=subprocess.DEVNULL)
    return [json.loads(line)["label"] for line in open(folder + "/classes.jsonl")]


def messages(texts, size, **more):
    return [pb.AnalyzeSentimentRequest(texts=texts[i:i + size], **more) for i in range(0, len(texts), size)]


def results(answers):
    bad = [r.status.message for m in answers for r in m.results if r.HasField("status")]
    if bad: sys.exit(f"{len(bad)} reviews failed: {bad[0]}")
    return [r for m in answers for r in m.results]


def plain(text):
    """As WordPiece without case and accents sees it, without spaces."""
    return "".join(c for c in unicodedata.normalize("NFD", text.lower()) if not c.isspace() and unicodedata.category(c) not in ("Mn", "Cc", "Cf"))


def covered(text, words):
    """Characters that the words stand for, in order; characters up to the last of them; words that are [UNK]."""
    text, at, n, unknown = plain(text), 0, 0, 0
    for w in words:
        w = plain(w)
        found = text.find(w, at) if w and w != "[unk]" else -1
        if w == "[unk]": unknown += 1
        if found >= 0: at, n = found + len(w), n + len(w)
    return n, at, len(text), unknown


def score_checkpoints():
    best = None
    for c in sorted(glob.glob(a.folder + "/run_mood/checkpoint-*")):
        held = evaluate(c, a.folder + "/held.jsonl")
        if best is None or held > best[0]: best = (held, c)
    if best is None: sys.exit(f"{a.folder}/run_mood has no checkpoint: run bench/sentiment.sh first")
    return best


def explain(method, texts):
    step = max(1, len(texts) // a.explain)
    sample = texts[::step][:a.explain]
    started = time.perf_counter()
    got = results(method(m, timeout=3600) for m in messages(sample, EXPLAINED, explain=True))
    took = time.perf_counter() - started
    worst = max(abs(r.score - r.base_score - math.fsum(t.weight for t in r.tokens)) for r in got)
    over = sum(abs(r.score - r.base_score - math.fsum(t.weight for t in r.tokens)) > LIMIT for r in got)
    apart = max(abs(1 / (1 + math.exp(-r.score)) - r.probability) for r in got) if len(got[0].probabilities) == 2 else float("nan")
    parts = [covered(t, [w.text for w in r.tokens]) for t, r in zip(sample, got)]
    whole = sum(n == size for n, _, size, _ in parts)
    cut = sum(at < size - 8 for _, at, size, _ in parts)
    print(f"explained          {len(got)} reviews, {len(got) / took:.1f} a second, {sum(len(r.tokens) for r in got) / len(got):.0f} words each")
    print(f"completeness       worst {worst:.2e}, {over} over {LIMIT:g}; probability by the explained score is apart from the served one by at most {apart:.2e}")
    print(f"cover              {sum(p[0] for p in parts) / max(1, sum(p[1] for p in parts)):.4f} of the characters that were read; {whole} reviews whole, {cut} cut at the model's length, "
          f"{sum(p[3] > 0 for p in parts)} with characters that its vocabulary lacks ({sum(p[3] for p in parts)} such words)")
    return over


rows = [json.loads(line) for line in open(TEST, encoding="utf-8")]
texts = [r["text"] for r in rows]
held, checkpoint = score_checkpoints()
print(f"checkpoint         {os.path.basename(checkpoint)}, held {held:.4f}, test {evaluate(checkpoint, TEST):.4f} (merx train --eval-only)")
with tempfile.TemporaryDirectory() as folder:
    classes = offline(checkpoint, folder)
server = subprocess.Popen([MERX, "serve", "--model", "mood=" + checkpoint, "--listen", ADDRESS, "--threads", a.threads], stderr=subprocess.PIPE, text=True)
try:
    for line in server.stderr:
        if "serving on" in line: break
    channel = grpc.insecure_channel(ADDRESS, options=[("grpc.max_receive_message_length", 1 << 28)])
    path, codec = "/merx.v1.Profiling/", (pb.AnalyzeSentimentRequest.SerializeToString, pb.AnalyzeSentimentResponse.FromString)
    unary, stream = channel.unary_unary(path + "AnalyzeSentiment", *codec), channel.stream_stream(path + "StreamSentiment", *codec)
    unary(pb.AnalyzeSentimentRequest(texts=texts[:32]), timeout=60)
    started = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(CALLS) as pool:
        batch = results(pool.map(lambda m: unary(m, timeout=600), messages(texts, BATCH)))
    batch_s = time.perf_counter() - started
    started = time.perf_counter()
    streamed = results(stream(iter(messages(texts, BATCH)), timeout=600))
    stream_s = time.perf_counter() - started
    names = list(unary(pb.AnalyzeSentimentRequest(texts=texts[:1]), timeout=60).labels)
    right = sum(names.index(r.label) == row["label"] for r, row in zip(batch, rows)) / len(rows)
    apart = sum(r.label != c for r, c in zip(batch, classes))
    unlike = sum(list(r.probabilities) != list(s.probabilities) for r, s in zip(batch, streamed))
    print(f"AnalyzeSentiment   {len(batch)} reviews, accuracy {right:.4f}, {len(batch) / batch_s:.0f} reviews/s by {BATCH}, {CALLS} calls under way; one stream {len(batch) / stream_s:.0f} reviews/s")
    print(f"the same           {apart} classes differ from the offline ones, {unlike} answers of batch and stream differ in a bit")
    over = explain(unary, texts)
finally:
    server.terminate()
    server.wait()
sys.exit(bool(over or apart or unlike))
