#!/usr/bin/env python3
"""merx train as a person runs it: killed at 20 random moments it gives the run that was
not; and what it says of bad data, bad folders and full disks.

    test_train_run.py MERX SOURCE_DIR        (MX_TEST_SEED sets the seed)
"""
import json, os, random, resource, shutil, signal, subprocess, sys, tempfile, time

merx, source = sys.argv[1:3]
seed = int(os.environ.get("MX_TEST_SEED", random.randrange(1 << 30)))
rng = random.Random(seed)
model, data = source + "/tests/golden/decoder/gpt2", source + "/tests/golden/train/gpt2/data.safetensors"
work = tempfile.mkdtemp(prefix="merx-train-")
failures = 0

def check(ok, what):
    global failures
    if not ok:
        failures += 1
        print("failed:", what)

def command(run, *more, files=(data,)):
    c = [merx, "train", "lm", "-m", model, "--run", run, "--threads", "1", "--no-bind"]
    for f in files: c += ["-d", f]
    return c + list(more)

settings = ("--steps", "60", "--batch", "3", "--save-every", "4", "--lr", "1e-2", "--warmup", "5", "--dropout", "0.1", "--keep", "2")

def result(run):
    rows = [json.loads(l) for l in open(run + "/metrics.jsonl")]
    return [(r["step"], r["loss"], r["grad_norm"]) for r in rows], open(run + "/checkpoint-00000060/model.safetensors", "rb").read()

def text(r):
    return r.stderr.decode(errors="replace")

# ---- killed, and not ----------------------------------------------------------------
began = time.time()
subprocess.run(command(work + "/whole", *settings), check=True, stderr=subprocess.DEVNULL)
took = time.time() - began
kills = 0
while kills < 20:
    p = subprocess.Popen(command(work + "/killed", *settings), stderr=subprocess.DEVNULL)
    time.sleep(rng.uniform(0.02, max(0.05, took * 0.4)))
    if p.poll() is None:
        p.send_signal(signal.SIGKILL)
        kills += 1
    elif p.returncode == 0:
        if kills < 20: shutil.rmtree(work + "/killed", ignore_errors=True)      # done too early: again
    p.wait()
subprocess.run(command(work + "/killed", *settings), check=True, stderr=subprocess.DEVNULL)
check(result(work + "/whole") == result(work + "/killed"), f"a run killed 20 times is not the run that was not (seed {seed})")
check(len(result(work + "/killed")[0]) == 60, "not 60 rows of metrics")
check(not [f for f in os.listdir(work + "/killed") if f.startswith(".")], "remains of broken writes")

# ---- stopped by a person --------------------------------------------------------------
p = subprocess.Popen(command(work + "/stopped", "--steps", "100000", "--batch", "3"), stderr=subprocess.PIPE)
time.sleep(0.5)
p.send_signal(signal.SIGINT)
out = p.communicate(timeout=60)[1].decode()
check(p.returncode == 130 and "goes on from there" in out, f"Ctrl-C: {p.returncode}, {out}")
check(any(f.startswith("checkpoint-") for f in os.listdir(work + "/stopped")), "Ctrl-C left no checkpoint")

# ---- data that is not as it should be ------------------------------------------------------
rows = work + "/rows.jsonl"
with open(rows, "w") as f: f.write('{"text": "abc abc"}\n{"text": 7}\nnot json\n{"text": ""}\n{"prompt": "ab", "completion": "ba"}\n')
r = subprocess.run(command(work + "/bad", "--steps", "1", files=[rows]), capture_output=True)
check(r.returncode == 1 and "rows.jsonl:2" in text(r), "a bad line is named: " + text(r))
r = subprocess.run(command(work + "/skip", "--steps", "2", "--batch", "2", "--skip-bad-lines", files=[rows]), capture_output=True)
check(r.returncode == 0 and "3 lines" in text(r), "bad lines are counted: " + text(r))
for name, content, words in (("none.jsonl", "", "no document"), ("what.csv", "a,b", ".jsonl, .txt or .safetensors")):
    open(work + "/" + name, "w").write(content)
    r = subprocess.run(command(work + "/none", files=[work + "/" + name]), capture_output=True)
    check(r.returncode != 0 and words in text(r), f"{name}: {text(r)}")
r = subprocess.run(command(work + "/none", files=[source + "/tests/golden/train/nothing.jsonl"]), capture_output=True)
check(r.returncode != 0 and "nothing.jsonl" in text(r), "a missing file is named: " + text(r))
r = subprocess.run(command(work + "/whole", "--steps", "60", "--batch", "4"), capture_output=True)
check(r.returncode == 1 and "batch 3" in text(r), "another batch is refused: " + text(r))

# ---- folders and disks ------------------------------------------------------------------------
open(work + "/file", "w").write("x")
r = subprocess.run(command(work + "/file/run", "--steps", "2"), capture_output=True)
check(r.returncode == 1 and "/file" in text(r), "a folder that cannot be made: " + text(r))

def small_files():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))
run = work + "/full"
subprocess.run(command(run, "--steps", "4", "--batch", "3"), check=True, stderr=subprocess.DEVNULL)
r = subprocess.run(command(run, "--steps", "8", "--batch", "3"), capture_output=True, preexec_fn=small_files)
check(r.returncode == 1 and "cannot be written" in text(r), "a full disk: " + text(r))
check(os.listdir(run).count("checkpoint-00000004") == 1 and len([f for f in os.listdir(run) if f.startswith("checkpoint")]) == 1,
      "after a full disk: " + " ".join(os.listdir(run)))
r = subprocess.run(command(run, "--steps", "8", "--batch", "3"), capture_output=True)
check(r.returncode == 0 and "goes on from step 4" in text(r), "after room was made: " + text(r))

# ---- an adapter, and the two as one --------------------------------------------------------------
subprocess.run(command(work + "/lora", "--steps", "6", "--batch", "3", "--lora-rank", "4", "--lr", "1e-2"), check=True, stderr=subprocess.DEVNULL)
step = work + "/lora/checkpoint-00000006"
check(sorted(os.listdir(step))[:3] == ["SHA256SUMS", "adapter_config.json", "adapter_model.safetensors"], "an adapter's files: " + " ".join(os.listdir(step)))
r = subprocess.run([merx, "merge", "-m", model, "--adapter", step, "-o", work + "/merged"], capture_output=True)
check(r.returncode == 0 and os.path.exists(work + "/merged/model.safetensors"), "merge: " + text(r))
r = subprocess.run([merx, "generate", "-m", work + "/merged", "--max-tokens", "4", "ab"], capture_output=True)
check(r.returncode == 0, "the merged model generates: " + text(r))

shutil.rmtree(work, ignore_errors=True)
print(f"{kills} kills, seed {seed}, {failures} failed")
sys.exit(failures != 0)
