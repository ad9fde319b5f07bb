#!/usr/bin/env python3
"""echo.py [--build build] [--seconds 2] [--rounds 5] [--threads 1] [--server-cpus 0 --client-cpus 1] -
calls a second of Merx beside a bare server over gRPC's C core (bench/echo.c) in one run: Health.Check of both,
closed loop, the same client (merx bench serve), the same cores, taking turns.  Medians of the rounds; us/call is
the server's own user and system time for a call, which a busy client does not blur."""
import argparse, json, os, statistics, subprocess, tempfile, time

a = argparse.ArgumentParser()
a.add_argument("--build", default="build")
a.add_argument("--seconds", type=float, default=2)
a.add_argument("--rounds", type=int, default=5)
a.add_argument("--threads", default="1", help="completion queues and threads of each server")
a.add_argument("--concurrency", default="1,16,64,256")
a.add_argument("--connections", default="2")
a.add_argument("--server-cpus", help="as for taskset; all when not given")
a.add_argument("--client-cpus")
a = a.parse_args()
TICK = os.sysconf("SC_CLK_TCK")


def pinned(cpus, command):
    return (["taskset", "-c", cpus] if cpus else []) + command


def cpu_seconds(p):
    fields = open(f"/proc/{p.pid}/stat").read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def load(address, calls, seconds):
    command = [a.build + "/merx", "bench", "serve", "--server", address, "--workload", "echo", "--max-concurrency", str(calls), "--connections",
               str(min(calls, int(a.connections))), "--duration", str(seconds), "--json", "-q"]
    return json.loads(subprocess.run(pinned(a.client_cpus, command), check=True, capture_output=True, text=True).stdout)


def measure(p, address, calls):
    load(address, calls, 0.2)
    was = cpu_seconds(p)
    r = load(address, calls, a.seconds)
    return r["request_throughput"], 1e6 * (cpu_seconds(p) - was) / r["completed"], 1e3 * r["echo"]["e2el"]["p50_ms"], 1e3 * r["echo"]["e2el"]["p99_ms"]


with tempfile.TemporaryDirectory() as folder:
    servers = {
        "bare": (pinned(a.server_cpus, [a.build + "/bench/echo", "127.0.0.1:20983", a.threads]), "127.0.0.1:20983"),
        "merx": (pinned(a.server_cpus, [a.build + "/merx", "serve", "--pricing", folder + "/p.db", "--listen", "127.0.0.1:20984", "--rpc-threads", a.threads]), "127.0.0.1:20984"),
    }
    running = {k: subprocess.Popen(c, stderr=subprocess.DEVNULL) for k, (c, _) in servers.items()}
    try:
        for _ in range(100):
            try:
                for _, address in servers.values(): load(address, 1, 0.05)
                break
            except subprocess.CalledProcessError: time.sleep(0.1)
        print("| calls under way | bare calls/s | p50 | p99 us | us/call | merx calls/s | p50 | p99 us | us/call | merx/bare | by CPU |\n|---|---|---|---|---|---|---|---|---|---|---|")
        for calls in map(int, a.concurrency.split(",")):
            seen = {k: [] for k in servers}
            for i in range(a.rounds):
                for k in list(servers) if i % 2 else reversed(list(servers)): seen[k].append(measure(running[k], servers[k][1], calls))
            mid = {k: [statistics.median(x) for x in zip(*v)] for k, v in seen.items()}
            b, m = mid["bare"], mid["merx"]
            print(f"| {calls} | {b[0]:.0f} | {b[2]:.0f} | {b[3]:.0f} | {b[1]:.1f} | {m[0]:.0f} | {m[2]:.0f} | {m[3]:.0f} | {m[1]:.1f} | {m[0] / b[0]:.3f} | {b[1] / m[1]:.3f} |", flush=True)
    finally:
        for p in running.values(): p.terminate()
        for p in running.values(): p.wait()
