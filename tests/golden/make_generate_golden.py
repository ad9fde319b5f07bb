#!/usr/bin/env python3
"""What transformers' logits processors and beam search make of fixed inputs.

    python3 make_generate_golden.py TESTS_GOLDEN_FOLDER      (needs torch, transformers)

Writes generate/processors.txt (logits rows, and the distribution that is left of
them), generate/texts.txt (token ids of whole generations by the models in
decoder/).  The list of processors and its order are transformers' own
(GenerationMixin._get_logits_processor); the presence and frequency penalties,
which it lacks, follow the definition of OpenAI's API and stand behind the
repetition penalty.  All arithmetic is in double precision.

Parameters are rounded to f32, as Merx holds them.  A case in which a threshold or
a draw is closer than 1e-5 to a decision is left out: there the last bit decides.
Equals that a cut divides: transformers leaves open which of them stay (its sort
is not stable); here, as in Merx, the lower ids do.
"""
import os, random, struct, sys
import numpy as np
import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation import LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

FOLDER = sys.argv[1]
f32 = lambda x: struct.unpack("f", struct.pack("f", x))[0]
g9 = lambda x: "%.9g" % x

class OpenAIPenalties(LogitsProcessor):
    """mu[j] -= c[j] * frequency + (c[j] > 0) * presence, c counted in the output."""
    def __init__(self, presence, frequency, start):
        self.presence, self.frequency, self.start = presence, frequency, start
    def __call__(self, ids, scores):
        count = torch.bincount(ids[0, self.start:], minlength=scores.shape[-1]).to(scores.dtype)
        return scores - (count * self.frequency + (count > 0) * self.presence)[None]

def processors(model, p, start, scale=1.0):
    """scale moves every threshold a little: survivors must not depend on it."""
    near = lambda x: min(max(x * scale, 1e-9), 1.0)
    c = GenerationConfig(do_sample=p.get("temperature", 1.0) > 0, num_beams=1)
    c.temperature = p.get("temperature", 1.0) or 1.0
    c.top_k = p.get("top_k", 0)
    c.top_p = near(p["top_p"]) if p.get("top_p", 1) < 1 else 1.0
    c.min_p = near(p["min_p"]) if p.get("min_p", 0) > 0 else None
    c.typical_p = near(p["typical_p"]) if p.get("typical_p", 1) < 1 else 1.0
    c.repetition_penalty = p.get("repetition_penalty", 1.0)
    c.no_repeat_ngram_size = p.get("no_repeat_ngram", 0)
    c.sequence_bias = {(i,): float(b) for i, b in p["bias"].items()} if p.get("bias") else None
    ends = list(p.get("stop_ids", []))
    c.bad_words_ids = p.get("banned")
    c.min_new_tokens = p.get("min_tokens") or None
    c.eos_token_id = ends or None
    c._eos_token_tensor = torch.tensor(ends) if ends else None
    made = model._get_logits_processor(c, input_ids_seq_length=start)
    out, done = LogitsProcessorList(), False
    extra = OpenAIPenalties(p.get("presence_penalty", 0.0), p.get("frequency_penalty", 0.0), start)
    at = max([i + 1 for i, x in enumerate(made) if isinstance(x, RepetitionPenaltyLogitsProcessor)] +
             [1 if c.sequence_bias else 0])
    for i in range(len(made) + 1):
        if i == at: out.append(extra)
        if i < len(made): out.append(made[i])
    return out

def survivors(scores, before):
    """Ids that are left, in Merx' order; equals that a cut divides go by rising id."""
    left = torch.isfinite(scores) & torch.isfinite(before)
    key = before.to(torch.float32)
    chosen = []
    for value in sorted(set(key[left].tolist()), reverse=True):
        equals = (key == value).nonzero()[:, 0].tolist()
        chosen += equals[: int(left[equals].sum())]
    return chosen

def distribution(model, p, ids, start, row, exact=False):
    """[(id, probability)] in the order of the draw, or None when it hangs on a last bit."""
    answers = []
    for scale in (1.0, 1 - 1e-5, 1 + 1e-5):
        x = row[None].double()
        for q in processors(model, p, start, scale):
            x = q(ids, x)
        before = row[None].double()
        for q in processors(model, {k: v for k, v in p.items() if k not in ("top_k", "top_p", "min_p", "typical_p")}, start):
            before = q(ids, before)
        kept = survivors(x[0], before[0])
        prob = torch.softmax(before[0][kept], -1)
        answers.append((kept, prob.tolist()))
        if exact: break
    if any(a[0] != answers[0][0] for a in answers): return None
    return list(zip(*answers[0]))

# ---- fixed rows ------------------------------------------------------------------------------

def rows():
    r = torch.Generator().manual_seed(7)
    normal = lambda scale: torch.randn(128, generator=r) * scale
    yield normal(3), False
    yield (normal(2) * 2).round() / 2, False                 # many equals
    yield torch.full((128,), 0.75), True                     # all equal: 1/128 each, exact in binary
    two = torch.full((128,), -40.0); two[17] = two[90] = 5.0
    yield two, False
    big = normal(1) * 1e4
    yield big, False
    holes = normal(3); holes[::3] = float("-inf")
    yield holes, False
    peak = normal(0.5); peak[3] = 16.0
    yield peak, False
    yield normal(0.01), False
    yield normal(10), False
    quarter = torch.full((128,), -1e30); quarter[[5, 40, 41, 99]] = -2.0
    yield quarter, True

def fixed_cases(draw):
    yield {}
    for t in (0.1, 0.7, 2.5, 100.0): yield {"temperature": t}
    for k in (1, 2, 5, 40, 127, 128, 1000): yield {"top_k": k}
    for v in (1e-6, 0.25, 0.5, 0.9, 0.999): yield {"top_p": v}
    for v in (0.01, 0.1, 0.5, 1.0): yield {"min_p": v}
    for v in (1e-6, 0.2, 0.5, 0.95, 0.999): yield {"typical_p": v}
    for _ in range(8):
        p = {"temperature": draw.choice([0.3, 0.8, 1.0, 1.7])}
        if draw.random() < 0.5: p["top_k"] = draw.choice([3, 10, 50])
        if draw.random() < 0.5: p["top_p"] = draw.choice([0.3, 0.8, 0.95])
        if draw.random() < 0.4: p["min_p"] = draw.choice([0.02, 0.2])
        if draw.random() < 0.4: p["typical_p"] = draw.choice([0.3, 0.9])
        if draw.random() < 0.6: p["repetition_penalty"] = draw.choice([0.7, 1.3, 5.0])
        if draw.random() < 0.5: p["presence_penalty"] = draw.choice([-2.0, 0.6, 2.0])
        if draw.random() < 0.5: p["frequency_penalty"] = draw.choice([-1.0, 0.4, 2.0])
        if draw.random() < 0.5: p["bias"] = {draw.randrange(128): f32(draw.choice([-100, -3.5, 2.25, 7, 100])) for _ in range(4)}
        yield p

def write_processors(model):
    draw, written, left_out = random.Random(11), 0, 0
    with open(os.path.join(FOLDER, "generate", "processors.txt"), "w") as f:
        for row, exact in rows():
            f.write("row " + " ".join(g9(x) for x in row.tolist()) + "\n")
            for p in fixed_cases(draw):
                p = {k: f32(v) if isinstance(v, float) else v for k, v in p.items()}
                prompt = [draw.randrange(128) for _ in range(6)]
                output = [draw.choice(prompt + [draw.randrange(128)]) for _ in range(8)]
                ids = torch.tensor([prompt + output])
                d = distribution(model, p, ids, len(prompt), row, exact)
                if d is None:
                    left_out += 1
                    continue
                seen = {i: output.count(i) for i in prompt + output}
                words = ["%s=%s" % (k, g9(v)) for k, v in p.items() if k != "bias"]
                words.append("seen=" + ",".join("%d:%d" % s for s in seen.items()))
                if p.get("bias"): words.append("bias=" + ",".join("%d:%s" % (i, g9(b)) for i, b in p["bias"].items()))
                words.append("want=" + ",".join("%d:%.8g" % w for w in d))
                f.write("case " + " ".join(words) + "\n")
                written += 1
    print("processors: %d cases, %d left out" % (written, left_out))

# ---- whole texts -----------------------------------------------------------------------------

def uniform(seed, candidate, position):
    """Philox4x32-10, as models/choose.c."""
    c, k0, k1, M = [position, candidate, 0, 0], seed & 0xffffffff, seed >> 32, 0xffffffff
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [((b >> 32) ^ c[1] ^ k0) & M, b & M, ((a >> 32) ^ c[3] ^ k1) & M, a & M]
        k0, k1 = (k0 + 0x9E3779B9) & M, (k1 + 0xBB67AE85) & M
    return ((c[0] << 32 | c[1]) >> 11) * 2.0 ** -53

def logits_of(model, ids):
    with torch.no_grad(): return model(ids).logits[0, -1].double()

def text_of(model, p, prompt, n):
    ids, start = torch.tensor([prompt]), len(prompt)
    while ids.shape[1] < start + n:
        row = logits_of(model, ids)
        if p.get("temperature", 1.0) == 0:
            x = row[None]
            for q in processors(model, p, start): x = q(ids, x)
            best = torch.topk(x[0], 2)
            if best.values[0] - best.values[1] < 1e-4: return None
            token = int(best.indices[0])
        else:
            d = distribution(model, p, ids, start, row)
            if d is None: return None
            u, run, token = uniform(p["seed"], 0, ids.shape[1] - start), 0.0, None
            for i, w in d:
                if abs(run + w - u) < 1e-5: return None
                run += w
                if token is None and run > u: token = i
            if token is None: return None
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
        if token in p.get("stop_ids", []): break
    return ids[0, start:].tolist()

def beams_of(model, p, prompt, n):
    ends = p.get("stop_ids") or None
    c = GenerationConfig(do_sample=False, num_beams=p["beams"], num_return_sequences=p["n"], length_penalty=p["length_penalty"],
                         early_stopping=False, max_new_tokens=n, eos_token_id=ends, pad_token_id=0,
                         return_dict_in_generate=True, output_scores=True)
    ids = torch.tensor([prompt])
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=c)
    made = []
    for row, score, index in zip(out.sequences, out.sequences_scores, out.beam_indices):
        length = int((index >= 0).sum())
        made.append((float(score), row[len(prompt): len(prompt) + length].tolist()))
    return made

TEXTS = [
    {"temperature": 0.0, "repetition_penalty": 1.3}, {"temperature": 0.0, "repetition_penalty": 5.0},
    {"temperature": 0.0, "repetition_penalty": 0.8, "max_tokens": 20}, {"temperature": 0.0, "no_repeat_ngram": 1, "max_tokens": 40},
    {"temperature": 0.0, "no_repeat_ngram": 2}, {"temperature": 0.0, "no_repeat_ngram": 3},
    {"temperature": 0.0, "presence_penalty": 2.0}, {"temperature": 0.0, "frequency_penalty": 0.5},
    {"temperature": 0.0, "presence_penalty": -0.5, "frequency_penalty": 1.5, "repetition_penalty": 1.2},
    {"temperature": 0.0, "ban": 3}, {"temperature": 0.0, "ban": 6, "repetition_penalty": 1.5}, {"temperature": 0.0, "pairs": 4},
    {"temperature": 0.0, "end": 2}, {"temperature": 0.0, "end": 2, "min_tokens": 20}, {"temperature": 0.0, "end": 3, "min_tokens": 5},
    {"temperature": 0.0, "biases": 6}, {"temperature": 0.0, "biases": 6, "repetition_penalty": 2.0, "no_repeat_ngram": 2},
    {}, {"temperature": 0.6}, {"temperature": 1.5}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"typical_p": 0.5},
    {"temperature": 1.4, "top_k": 30, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.9},
    {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.2, "no_repeat_ngram": 3, "end": 2, "min_tokens": 10},
    {"temperature": 1.1, "top_k": 40, "presence_penalty": 0.7, "frequency_penalty": 0.3, "biases": 5, "ban": 4},
    {"temperature": 0.8, "typical_p": 0.8, "min_p": 0.05, "pairs": 5, "biases": 3, "repetition_penalty": 1.1},
]

def complete(p, plain, prompt, draw):
    """Numbers of ends, bans and biases become ids that the plain text does use."""
    p = dict(p)
    used = list(dict.fromkeys(plain))
    if "end" in p: p["stop_ids"] = used[2: 2 + p.pop("end")]
    # single bytes are one token each in these vocabularies; ids 0 to 3 have no byte of their own
    letters = [i for i in used if 4 <= i < 98]
    if "ban" in p: p["banned"] = [[i] for i in letters[: p.pop("ban")]]
    if "pairs" in p:
        near = [[a, b] for a, b in zip(plain, plain[1:]) if 4 <= a < 98 and 4 <= b < 98 and a != prompt[-1]]
        p["banned"] = near[: p.pop("pairs")]
    if "biases" in p: p["bias"] = {i: draw.choice([-100.0, -4.0, 1.5, 3.0]) for i in draw.sample(range(131), p.pop("biases"))}
    return p

def write_texts():
    draw, count, left_out = random.Random(5), 0, 0
    key = lambda v: ",".join("%d:%s" % (i, g9(b)) for i, b in v.items())
    with open(os.path.join(FOLDER, "generate", "texts.txt"), "w") as f:
        for name in ("gpt2", "llama"):
            model = AutoModelForCausalLM.from_pretrained(os.path.join(FOLDER, "decoder", name), dtype=torch.float64).eval()
            model.config.eos_token_id = model.generation_config.eos_token_id = None     # or it would end texts that have no end
            head = open(os.path.join(FOLDER, "decoder", name, "golden.bin"), "rb").read()
            all_ids = list(struct.unpack("<29i", head[8: 8 + 116]))
            for p in TEXTS:
                for attempt in range(20):
                    n_prompt, seed = draw.randrange(4, 29), draw.randrange(1 << 62)
                    n = p.get("max_tokens", 48)
                    q = {k: f32(v) if isinstance(v, float) else v for k, v in p.items() if k != "max_tokens"}
                    q["seed"] = seed
                    prompt = all_ids[:n_prompt]
                    plain = text_of(model, {k: v for k, v in q.items() if k in ("temperature", "seed")}, prompt, n)
                    if plain is None: continue
                    q = complete(q, plain, prompt, draw)
                    ids = text_of(model, q, prompt, n)
                    if ids is None: continue
                    words = ["%s=%s" % (k, v if k == "seed" else g9(v)) for k, v in q.items() if isinstance(v, (int, float))]
                    if q.get("bias"): words.append("bias=" + key(q["bias"]))
                    if q.get("stop_ids"): words.append("stop_ids=" + ",".join(map(str, q["stop_ids"])))
                    if q.get("banned"): words.append("banned=" + ",".join("+".join(map(str, w)) for w in q["banned"]))
                    f.write("text model=%s prompt=%d max_tokens=%d %s want=%s\n" % (name, n_prompt, n, " ".join(words), ",".join(map(str, ids))))
                    count += 1
                    break
                else: left_out += 1
            for beams in (2, 4, 8):
                for penalty in (-1.0, 0.0, 0.5, 1.0, 2.0):
                    for ends in (0, 1, 3):
                        n_prompt, n = draw.randrange(4, 29), draw.choice([1, 2, 12, 30])
                        prompt = all_ids[:n_prompt]
                        q = {"beams": beams, "n": draw.randrange(1, beams + 1), "length_penalty": penalty}
                        plain = beams_of(model, dict(q, n=beams), prompt, 12)
                        used = list(dict.fromkeys(plain[-1][1][2:] + plain[0][1]))
                        if ends: q["stop_ids"] = used[:ends]
                        got = beams_of(model, q, prompt, n)
                        words = ["beams=%d n=%d length_penalty=%g" % (beams, q["n"], penalty)]
                        if ends: words.append("stop_ids=" + ",".join(map(str, q["stop_ids"])))
                        want = ";".join("%.9g:%s" % (s, ",".join(map(str, ids))) for s, ids in got)
                        f.write("beam model=%s prompt=%d max_tokens=%d %s want=%s\n" % (name, n_prompt, n, " ".join(words), want))
                        count += 1
    print("texts: %d cases, %d left out" % (count, left_out))

torch.set_num_threads(1)
os.makedirs(os.path.join(FOLDER, "generate"), exist_ok=True)
write_processors(AutoModelForCausalLM.from_pretrained(os.path.join(FOLDER, "decoder", "llama")))
write_texts()
