#!/usr/bin/env python3
"""Merx' token ids beside those of Hugging Face, sentencepiece and llama.cpp.

    python3 compare_tokenizers.py BUILD_FOLDER DATA_FOLDER [MODEL.gguf]

Needs tokenizers, transformers, sentencepiece, gguf, numpy and llama-cpp-python.
DATA_FOLDER holds reviews/*.zip (csv) and text/*.txt, and gpt2-bpe/ if there.
Every line of the data, and every text of 40 lines with its line breaks, goes
through Merx and the oracle; the ids must be equal.  The vocabularies are trained
here, on every 7th line, one for each family.  Then MODEL.gguf: the same lines
against the tokenizer that transformers rebuilds from it, and 30 prompts against
llama.cpp's.  Last the speed on one thread.  Exit status 1 when any id differs.
"""
import glob, json, os, subprocess, sys, tempfile, time, zipfile
os.environ["TOKENIZERS_PARALLELISM"] = "true"
import gguf
import numpy as np
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

BUILD, DATA = sys.argv[1], sys.argv[2]
MODEL = sys.argv[3] if len(sys.argv) > 3 else None
TOOL = os.path.join(BUILD, "tests", "tokenize_lines")
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3, QWEN2 = CONTRACTIONS + r"\p{N}{1,3}" + REST, CONTRACTIONS + r"\p{N}" + REST
PROMPTS = [
    "The capital of France is", "Once upon a time, in a small village by the sea,", "It's what we've always said: they'll come back.",
    "Write a slogan for a sunscreen that young women will love:", "Here are three reasons to drink green tea:\n1.", "HELLO WORLD isn't it",
    "def fibonacci(n):\n    if n < 2:\n        return n\n", "Dear customer,\n\nThank you for your order\n\n\n", "a  b   c    d", "   leading and trailing   ",
    "为夏季防晒霜设计一条吸引年轻女性的文案:", "今天天气很好，我们去", "这款手机的主要特点是……", "中华人民共和国的首都是北京。", "新品上市！限时优惠，全场8折",
    "I love pizza 🍕 and", "🎉🎉🎉 Big sale today! 🎉", "👩‍👩‍👧‍👦 family time 😊", "🚀", "🇨🇳❤️👍🏽",
    "1 2 3 4 5 6 7 8 9", "3.14159265358979", "2023-11-24 12:30:45,", "The price is $1,299.99, which is 25% off the", "123456789012345678901234567890",
    "\n", "\n\n \n\t\n", "line\r\nline\r\n", "e\u0301 cafe\u0301 Ångström ½ ² ٣", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
]
failed = 0

def data_lines():
    lines = []
    for path in sorted(glob.glob(os.path.join(DATA, "reviews", "*.zip"))):
        with zipfile.ZipFile(path) as z:
            for name in z.namelist():
                if name.endswith(".csv"): lines += z.read(name).decode("utf-8-sig").split("\n")
    for path in sorted(glob.glob(os.path.join(DATA, "text", "*.txt"))): lines += open(path, encoding="utf-8", newline="").read().split("\n")
    return [line for line in lines if "\0" not in line]

def merx(model, texts):
    said = subprocess.run([TOOL, model, "nul"], input="\0".join(texts).encode() + b"\0", check=True, capture_output=True).stdout.decode().split("\n")
    assert len(said) == len(texts) + 1, (len(said), len(texts))
    return [[int(i) for i in line.split()] for line in said[:-1]]

def compare(name, texts, ours, theirs):
    global failed
    wrong = [i for i, (a, b) in enumerate(zip(ours, theirs)) if a != list(b)]
    failed += len(wrong)
    print("%-44s %6d texts, %9d ids, %d differ" % (name, len(texts), sum(map(len, ours)), len(wrong)), flush=True)
    for i in wrong[:5]: print("   %r\n     here  %s\n     there %s" % (texts[i][:200], ours[i][:60], list(theirs[i])[:60]))

def by_tokenizers(t, texts): return [e.ids for e in t.encode_batch_fast(texts, add_special_tokens=False)]

def byte_level(lines, pre, normalizer=None, ignore_merges=False, marks=("<|endoftext|>",)):
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer: t.normalizer = normalizer
    t.pre_tokenizer, t.decoder = pre, decoders.ByteLevel()
    t.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=16000, show_progress=False, special_tokens=list(marks),
                                                     initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return t

def split_by(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

def gguf_file(path, model, pre, tokens, types, merges=None, scores=None):
    w = gguf.GGUFWriter(path, "llama")
    w.add_tokenizer_model(model)
    if pre: w.add_tokenizer_pre(pre)
    w.add_token_list(tokens); w.add_token_types(types)
    if merges: w.add_token_merges(merges)
    if scores: w.add_token_scores(scores)
    w.add_bos_token_id(1 if scores else 0); w.add_eos_token_id(2 if scores else 0)
    if scores: w.add_unk_token_id(0)
    for key in ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"): w.add_uint32("llama." + key, 4)
    w.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    w.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()

def folder_of(work, name, t):
    folder = os.path.join(work, name)
    os.makedirs(folder)
    t.save(os.path.join(folder, "tokenizer.json"))
    return folder

def llama2(work, lines, texts):
    """A SentencePiece model, as transformers' converter writes it and as GGUF holds it."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=os.path.join(work, "m"), vocab_size=16000, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, character_coverage=0.9995,
        allow_whitespace_only_pieces=True, max_sentence_length=1 << 16, unk_id=0, bos_id=1, eos_id=2, minloglevel=2)
    sp = sentencepiece.SentencePieceProcessor(model_file=os.path.join(work, "m.model"))
    pieces = [sp.id_to_piece(i) for i in range(sp.get_piece_size())]
    vocab = {p: i for i, p in enumerate(pieces)}
    merges = []
    for piece in sorted(pieces[259:], key=lambda p: -sp.get_score(vocab[p])):
        cuts = [(piece[:k], piece[k:]) for k in range(1, len(piece)) if piece[:k] in vocab and piece[k:] in vocab]
        merges += sorted(cuts, key=lambda c: (vocab[c[0]], vocab[c[1]]))
    t = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in ("<unk>", "<s>", "</s>")])
    ours = merx(folder_of(work, "llama2", t), texts)
    compare("Llama 2, tokenizer.json: tokenizers", texts, ours, by_tokenizers(t, texts))
    types = [2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1 for i in range(len(pieces))]
    path = os.path.join(work, "llama2.gguf")
    gguf_file(path, "llama", "default", pieces, types, scores=[sp.get_score(i) for i in range(len(pieces))])
    ours = merx(path, texts)
    compare("Llama 2, GGUF scores: sentencepiece", texts, ours, [sp.encode(s) for s in texts])
    compare("Llama 2, GGUF scores: llama.cpp", texts, ours, by_llama_cpp(path, texts))
    t.normalizer, t.pre_tokenizer = None, pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    compare("Metaspace, tokenizer.json: tokenizers", texts, merx(folder_of(work, "metaspace", t), texts), by_tokenizers(t, texts))

def by_llama_cpp(path, texts):
    import llama_cpp
    model = llama_cpp.Llama(path, vocab_only=True, verbose=False)
    return [model.tokenize(s.encode(), add_bos=False, special=True) if s else [] for s in texts]

def trained(work, lines, texts):
    sample = lines[::7]
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte])
    kinds = [("GPT-2", byte_level(sample, byte), "gpt-2"),
             ("SmolLM", byte_level(sample, digits), "smollm"),
             ("Llama 3", byte_level(sample, split_by(LLAMA3), ignore_merges=True), "llama-bpe"),
             ("Qwen2, NFC", byte_level(sample, split_by(QWEN2), normalizers.NFC()), "qwen2")]
    for name, t, pre in kinds:
        want = by_tokenizers(t, texts)
        folder = folder_of(work, pre, t)
        compare(name + ", tokenizer.json: tokenizers", texts, merx(folder, texts), want)
        model = json.loads(t.to_str())["model"]
        tokens = sorted(model["vocab"], key=model["vocab"].get)
        path = folder + ".gguf"
        gguf_file(path, "gpt2", pre, tokens, [3 if s == "<|endoftext|>" else 1 for s in tokens], merges=[" ".join(m) for m in model["merges"]])
        compare(name + ", GGUF: tokenizers", texts, merx(path, texts), want)
        if pre == "gpt-2":
            bare = os.path.join(work, "bare")
            os.makedirs(bare)
            t.model.save(bare)
            compare(name + ", vocab.json + merges.txt: tokenizers", texts, merx(bare, texts), want)
    return kinds[0][1], os.path.join(work, "gpt-2")

def real_gpt2(texts):
    folder = os.path.join(DATA, "gpt2-bpe")
    if not os.path.isdir(folder): return
    merges = [tuple(line.split(" ")) for line in open(os.path.join(folder, "vocab.bpe"), encoding="utf-8").read().split("\n")[1:] if line]
    t = Tokenizer(models.BPE(vocab=json.load(open(os.path.join(folder, "encoder.json"))), merges=merges))
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.add_special_tokens(["<|endoftext|>"])
    compare("GPT-2's own vocabulary: tokenizers", texts, merx(folder, texts), by_tokenizers(t, texts))
    speed("GPT-2's own vocabulary", t, folder, texts)

def real_model(texts):
    from transformers import AutoTokenizer
    fast = AutoTokenizer.from_pretrained(os.path.dirname(MODEL), gguf_file=os.path.basename(MODEL))
    field = gguf.GGUFReader(MODEL).fields.get("tokenizer.ggml.pre")
    if field and field.contents() == "smollm":
        # transformers does not read tokenizer.ggml.pre; SmolLM's tokenizer.json cuts digits first
        fast.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    ours = merx(MODEL, texts)
    compare("MODEL: tokenizers, rebuilt by transformers", texts, ours, by_tokenizers(fast.backend_tokenizer, texts))
    compare("MODEL: llama.cpp", texts, ours, by_llama_cpp(MODEL, texts))
    compare("MODEL, 30 prompts: llama.cpp", PROMPTS, merx(MODEL, PROMPTS), by_llama_cpp(MODEL, PROMPTS))
    speed("MODEL", fast.backend_tokenizer, MODEL, texts)

def speed(name, t, model, texts):
    """One thread, best of three: line by line, and the whole text at once."""
    lines, whole = [s + "\n" for s in texts if "\n" not in s], "\n".join(s for s in texts if "\n" not in s) + "\n"
    size = len(whole.encode())
    def best(what):
        times = []
        for _ in range(3):
            begin = time.perf_counter(); what(); times.append(time.perf_counter() - begin)
        return size / min(times) * 1e-6
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    theirs = best(lambda: [t.encode(s, add_special_tokens=False) for s in lines]), best(lambda: t.encode_batch_fast([whole], add_special_tokens=False))
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    said = subprocess.run([TOOL, model, "bench"], input=whole.encode(), check=True, capture_output=True).stdout.decode().split("\n")
    ours = [float(line.split()[-2]) for line in said[:2]]
    print("%-44s one thread, %.1f MB: line by line %.1f MB/s (tokenizers %.1f), at once %.1f MB/s (tokenizers %.1f)" %
          (name + ": speed", size * 1e-6, ours[1], theirs[0], ours[0], theirs[1]), flush=True)

lines = data_lines()
texts = lines + ["\n".join(lines[i:i + 40]) for i in range(0, len(lines), 40)] + PROMPTS
print("%d lines, %d texts" % (len(lines), len(texts)))
with tempfile.TemporaryDirectory() as work:
    trained(work, lines, texts)
    llama2(work, lines[::7], texts)
    real_gpt2(texts)
    if MODEL: real_model(texts)
print("FAILED: %d texts differ" % failed if failed else "all equal")
sys.exit(failed > 0)
