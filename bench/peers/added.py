#!/usr/bin/env python3
"""added.py [--build build] [--rate 50] [--seconds 10] [--echo-bytes 600] - what Merx adds to a price quote at low load.
The turn of a quote is its transaction: choosing the price, logging the decision, and the commit (fsync).  Added is all else
between gRPC handing the request over and being handed the answer, as the server's own spans say (merx serve --spans):
into = arrival to turn, out = turn's end to answer.  Beside it the client's view: the end-to-end latency of the quote less its
turn, and that of a bare gRPC echo (bench/echo.c) whose answer has as many bytes, at the same rate."""
import argparse, json, os, subprocess, tempfile, time

a = argparse.ArgumentParser()
a.add_argument("--build", default="build")
a.add_argument("--rate", default="50")
a.add_argument("--seconds", default="10")
a.add_argument("--echo-bytes", default="600")
a.add_argument("--threads", default="1")
a.add_argument("--db", help="folder of the database; its disk decides the commit's time")
a = a.parse_args()
OURS, BARE = "127.0.0.1:20985", "127.0.0.1:20986"


def load(address):
    command = [a.build + "/merx", "bench", "serve", "--server", address, "--workload", "quote", "--sku", "item-1", "--channel", "", "--request-rate", a.rate,
               "--duration", a.seconds, "--json", "-q"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["quote"]["e2el"]


def at(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(q * len(values)))] / 1000


with tempfile.TemporaryDirectory(dir=a.db) as folder:
    spans = folder + "/spans.jsonl"
    ours = subprocess.Popen([a.build + "/merx", "serve", "--pricing", folder + "/p.db", "--listen", OURS, "--rpc-threads", a.threads, "--spans", spans], stderr=subprocess.DEVNULL)
    bare = subprocess.Popen([a.build + "/bench/echo", BARE, a.threads, a.echo_bytes])
    try:
        subprocess.run([a.build + "/bench/quotes", OURS, "put"], check=True)
        client = load(OURS)
        time.sleep(0.6)
        echo = load(BARE)
    finally:
        for p in (ours, bare): p.terminate()
        ours.wait()
    calls, turns = {}, {}
    for line in open(spans):
        for s in json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"]:
            times = int(s["startTimeUnixNano"]), int(s["endTimeUnixNano"])
            if s["name"] == "merx.v1.Pricing/Quote": calls[s["spanId"]] = times
            if s["name"] == "turn": turns[s["parentSpanId"]] = times
both = [(calls[k], turns[k]) for k in calls if k in turns]
rows = {"into: arrival to turn": [t[0] - c[0] for c, t in both], "turn: the transaction, committed": [t[1] - t[0] for c, t in both],
        "out: turn's end to answer": [c[1] - t[1] for c, t in both], "added: into + out": [c[1] - c[0] - (t[1] - t[0]) for c, t in both]}
print(f"{len(both)} quotes at {a.rate}/s\n| us | p50 | p90 | p99 |\n|---|---|---|---|")
for name, v in rows.items(): print(f"| {name} | {at(v, .5):.1f} | {at(v, .9):.1f} | {at(v, .99):.1f} |")
print(f"| client, end to end | {1e3 * client['p50_ms']:.0f} | {1e3 * client['p90_ms']:.0f} | {1e3 * client['p99_ms']:.0f} |")
print(f"| client, bare echo of {a.echo_bytes} bytes | {1e3 * echo['p50_ms']:.0f} | {1e3 * echo['p90_ms']:.0f} | {1e3 * echo['p99_ms']:.0f} |")
