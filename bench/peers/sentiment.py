#!/usr/bin/env python3
"""sentiment.py FOLDER [--build build] [--explain 300] [--threads 2] - the test reviews through Profiling.AnalyzeSentiment.
FOLDER is bench/sentiment.sh's; its checkpoint with the best accuracy on held.jsonl is served by merx serve, and every
row of test.jsonl is asked for in batches of 256 (two calls under way) and in one stream.  Told: accuracy, reviews/s, whether
each answer's class is what the offline evaluation says (merx embed --classify), whether batch and stream agree bit for
bit; and of --explain reviews, evenly spread, how far the words' weights are from adding up to the score (1e-3 is
promised; more ends with 1), and whether they are the text's own words, all of them.  Needs grpcio."""
import argparse, concurrent.futures, glob, json, math, os, subprocess, sys, tempfile, time

a = argparse.ArgumentParser()
a.add_argument("folder")
a.add_argument("--build", default="build")
a.add_argument("--explain", type=int, default=300)
a.add_argument("--threads", default="2")
a = a.parse_args()
sys.path.insert(0, a.build + "/tests/python")
import grpc
import merx_pb2 as pb

MERX, TEST, ADDRESS = a.build + "/merx", a.folder + "/test.jsonl", "127.0.0.1:20987"
BATCH, CALLS, EXPLAINED, LIMIT = 256, 2, 8, 1e-3          # an encoder has 256 places for texts that wait; a call takes 128 at most


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
    answers = list(answers)
    bad = [r.status.message for m in answers for r in m.results if r.HasField("status")]
    if bad: sys.exit(f"{len(bad)} reviews failed: {bad[0]}")
    return [r for m in answers for r in m.results]


def gaps(text, words):
    """Characters between the words that are not space; characters up to the last word; whether all of the text was read."""
    data, at, lost = text.encode(), 0, 0
    for w in words:
        if data[w.begin:w.end].decode() != w.text: sys.exit(f"{w.text!r} is not what stands at {w.begin} of {text!r}")
        lost += sum(not c.isspace() for c in data[at:w.begin].decode())
        at = w.end
    return lost, sum(not c.isspace() for c in data[:at].decode()), not data[at:].decode().strip()


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
    print(f"explained          {len(got)} reviews, {len(got) / took:.1f} a second, {sum(len(r.tokens) for r in got) / len(got):.0f} words each")
    print(f"completeness       worst {worst:.2e}, {over} over {LIMIT:g}; the probability by the explained score is apart from the served one by at most {apart:.1e}")
    parts = [gaps(t, r.tokens) for t, r in zip(sample, got)]
    print(f"cover              {sum(p[0] for p in parts)} of {sum(p[1] for p in parts)} characters that were read are in no word; {sum(p[2] for p in parts)} reviews were read to their ends, "
          f"{sum(not p[2] for p in parts)} to the model's length")
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
