#!/usr/bin/env python3
"""Writes tests/golden/tokenizer: small tokenizers of each style and their ids.

Needs tokenizers, transformers, sentencepiece, gguf and numpy; the tests need
none of them.  Every text here was written for this file.  Each folder holds a
tokenizer as a model's folder does, and

  cases.txt   one case a line: hex of the text, add_special 0 or 1, ids
  chat.txt    one conversation a line: role=hex role=hex ... | ids

all fields split by tabs.  Run it from anywhere; the result is the same.
"""
import json
import os
import shutil
import tempfile

import gguf
import numpy as np
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tokenizer")

CORPUS = """
Our new summer sunscreen keeps its promise: light on the skin, gentle to the sea, ready for the whole day.
The customer bought three bottles in June, returned one in July, and wrote a long review about it in August.
It's what we've always said: they'll come back if you're honest, and I'd rather wait than I'm ready to hurry.
Write a short advertisement for a sports watch that young people would like to wear every day.
The quick delivery surprised everybody; the parcel came before breakfast, and the box wasn't even dented.
Prices went from 1999 to 2499 between 2021 and 2023, which is about 25 percent, or 12.5 percent a year.
for (int i = 0; i < count; i++) { total += price[i] * number[i]; }
def average(values):
    return sum(values) / len(values) if values else 0.0
SELECT name, SUM(price) FROM orders WHERE year = 2024 GROUP BY name ORDER BY name;
if (error != NULL) return fail(error, "the file %s does not parse", path);
\tindented with a tab, then    four spaces, then  two.
这款防晒霜质地清爽，涂在脸上不油腻，夏天出门必备。
为这款运动手表写一条吸引年轻人的文案，要简短有力。
物流很快，第二天就到了，包装完好，客服态度也很好。
这本书的内容不错，孩子很喜欢，就是价格有点贵。
酒店的房间很干净，早餐一般，离地铁站只有五分钟。
电脑运行速度快，屏幕清晰，键盘手感好，值得购买。
水果很新鲜，味道甜，下次还会再来买的。
洗发水的味道很好闻，用了以后头发很柔顺。
Größe und Farbe stimmen, die Lieferung war pünktlich, gerne wieder.
Très bon produit, livré à l'heure, je l'ai déjà recommandé à mes amis.
La calidad es muy buena, pero el envío tardó más de diez días.
とても使いやすいです。また買いたいと思います。ありがとうございました。
Товар пришёл вовремя, качество хорошее, рекомендую всем друзьям.
Great value 😀 would buy again 👍🏽 thanks ❤️ the kids love it 🎉🎉🎉
the the the and and of of to to in in is is that that it it was was for for on on with with as as at at
people like this product because it is cheap and good and the service is friendly and quick
marketing platform campaign audience budget channel message offer price discount season brand story
""".strip("\n").split("\n")

TEXTS = [
    "", " ", "a", "  ", "\n", "\n\n", " \n ", "\t", "Hello world", " Hello world", "Hello  world ", "hello\nworld\n",
    "It's what we've always said: they'll come back, I'd bet; I'm sure you're right, isn't it?",
    "IT'S WE'VE THEY'LL I'D I'M YOU'RE 'Tis 'twas rock 'n' roll '\u017f", "don’t isn’t",
    "1 12 123 1234 12345 1234567890 3.14159 1,000,000 0xff 1e-9 ½ ² Ⅷ ٣٤٥ 一二三 １２３",
    "price2499yuan 24h7d a1b2c3", "为夏季防晒霜设计一条吸引年轻女性的文案:", "这款手表真的很好用！！！推荐购买。。。", "你好，world，世界 2024年8月1日",
    "Übergröße naïve café Ångström", "e\u0301 cafe\u0301 A\u030angstro\u0308m \u1100\u1161\u11a8 가각 が か\u3099 \u212b \u2126 q\u0307\u0323",
    "ﬁne ﬂow ㎏ ℡ Ａ", "😀", "😀😀 👍🏽 👨‍👩‍👧‍👦 🇨🇳 ❤️ 🏴󠁧󠁢󠁥󠁮󠁧󠁿", "mixed😀text👍🏽and中文🎉end",
    "    four\n        eight\n\ttab\n\t\ttwo tabs\n", "a   b    c     d      e", "trailing spaces   ", "   leading", "line\r\nline\r\n\r\nend",
    "\u00a0nbsp\u00a0\u00a0x\u2003em\u2028ls\u2029ps\u3000全角\u3000\u3000x", "\u0085next\u0085\u0085 line \u180e\u180emongol \u200bzero\ufeffbom",
    "\x00nul\x00\x01\x02\x1c\x1d\x1e\x1f\x7f", "for (int i = 0; i < count; i++) { total += price[i] * number[i]; }",
    "def f(x):\n    return x**2 if x != 0 else None  # comment\n", "<div class=\"a\">&amp;</div> <!-- c -->", "https://example.com/a_b?c=d&e=%20#f",
    "!!!???...---___***///\\\\\\", "()[]{}<>«»“”‘’「」『』【】", "_underscore_ __init__ snake_case camelCase", "<|endoftext|>", "a<|endoftext|>b", "a <|endoftext|> b",
    "<|im_start|>user\nhi<|im_end|>\n", "<|im_start", "<s>", "</s> <s>x</s>", "<unk>", "[INST] hi [/INST]", "<0x41><0xE4>", "▁under▁score ▁ ▁▁",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "the" * 40, "防晒霜" * 30, "ab" * 700, " " * 200 + "x", "\n" * 50, "-" * 300,
    "Привет, как дела? Всё хорошо.", "ありがとうございました。使いやすいです", "한국어 문장입니다", "हिन्दी में लिखा", "العربية تُكتب من اليمين", "ไทย", "עברית",
    "𝓤𝓷𝓲𝓬𝓸𝓭𝓮 𝟙𝟚𝟛 𐍈 𠮷野家", "x\u0300\u0301\u0302\u0303 z̷͎", "\ufffd \uffff \U0010ffff", "SELECT name FROM orders WHERE year = 2024;",
    "Mr. O'Neill's 20% off, $5.99 → €4,99 ± 3° ≤ 10µm", "<mask>", "a <mask> b", "x<keep>y <keep> z", "onlyword only word only", "CAFÉ cafe\u0301",
]
TEXTS += CORPUS

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")

# Chat forms, in the manner of the models' own.
CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
          "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
CHATML_DEFAULT = ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are "
                  "a clerk of a shop, and answer \\'briefly\\'<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
                  "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
CHATML_TOOLS = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a clerk with tools.' }}
    {%- endif %}
    {{- "\\n\\n# Tools<|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a clerk, made by nobody. You help.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant") %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA3_CHAT = ("{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + "
               "message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
               "{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}")
LLAMA31_CHAT = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
LLAMA2_CHAT = ("{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}{% else %}"
               "{% set rest = messages %}{% set system = false %}{% endif %}{% for message in rest %}"
               "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
               "{% if loop.index0 == 0 and system != false %}{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}"
               "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
               "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
               "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}")

TALKS = [
    [("user", "Hello")],
    [("user", "为夏季防晒霜设计一条吸引年轻女性的文案:")],
    [("system", "You write advertisements."), ("user", "  Sunscreen, please.\n\n")],
    [("user", "Hi"), ("assistant", " How can I help?\n"), ("user", "Write\n\nsomething. 😀")],
    [("system", "\tsystem with spaces  "), ("user", "\n one \n"), ("assistant", ""), ("user", "1234 it's")],
    [("user", "")],
]


def byte_level(vocab, pre, normalizer=None, post=None, ignore_merges=False, added=(), seed_alphabet=True):
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        t.normalizer = normalizer
    t.pre_tokenizer = pre
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(CORPUS * 3, trainers.BpeTrainer(
        vocab_size=vocab, show_progress=False, min_frequency=2, special_tokens=list(added),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if seed_alphabet else []))
    if post:
        t.post_processor = post(t)
    return t


def write_cases(folder, name, ids_of):
    with open(os.path.join(folder, name), "w") as f:
        for text in TEXTS:
            for special in (0, 1):
                ids = ids_of(text, bool(special))
                f.write(f"{text.encode().hex()}\t{special}\t{' '.join(map(str, ids))}\n")


def write_chat(folder, name, fast, template):
    with open(os.path.join(folder, name), "w") as f:
        for talk in TALKS:
            out = fast.apply_chat_template([{"role": r, "content": c} for r, c in talk], chat_template=template,
                                           add_generation_prompt=True, tokenize=True, return_dict=False)
            f.write(" ".join(f"{r}={c.encode().hex()}" for r, c in talk) + "\t" + " ".join(map(str, out)) + "\n")


def write_config(folder, template=None, **more):
    config = dict(more)
    if template:
        config["chat_template"] = template
    with open(os.path.join(folder, "tokenizer_config.json"), "w") as f:
        json.dump(config, f, indent=1)


def fresh(name):
    folder = os.path.join(HERE, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    return folder


def tokenizer_folder(name, t, template=None, extra_templates=(), bos=None, eos=None):
    folder = fresh(name)
    with open(os.path.join(folder, "tokenizer.json"), "w") as f:
        f.write(t.to_str(pretty=False))
    names = {k: v for k, v in (("bos_token", bos), ("eos_token", eos)) if v}
    write_config(folder, template, **names)
    write_cases(folder, "cases.txt", lambda s, sp: t.encode(s, add_special_tokens=sp).ids)
    fast = PreTrainedTokenizerFast(tokenizer_object=t, **names)
    if template:
        write_chat(folder, "chat.txt", fast, template)
    for suffix, text in extra_templates:
        with open(os.path.join(folder, f"template_{suffix}.jinja"), "w") as f:
            f.write(text)
        write_chat(folder, f"chat_{suffix}.txt", fast, text)
    return folder


def bos_template(bos):
    return lambda t: processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B:1", special_tokens=[(bos, t.token_to_id(bos))])])


def gguf_file(path, model, pre, tokens, types, merges=None, scores=None, template=None, **values):
    w = gguf.GGUFWriter(path, "llama")
    w.add_tokenizer_model(model)
    if pre:
        w.add_tokenizer_pre(pre)
    w.add_token_list(tokens)
    w.add_token_types(types)
    if merges:
        w.add_token_merges(merges)
    if scores:
        w.add_token_scores(scores)
    if template:
        w.add_chat_template(template)
    for key, value in values.items():
        (w.add_bool if isinstance(value, bool) else w.add_uint32)(f"tokenizer.ggml.{key}", value)
    w.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def make_gpt2():
    t = byte_level(900, pre_tokenizers.ByteLevel(add_prefix_space=False), added=["<|endoftext|>"])
    folder = fresh("gpt2")
    model = json.loads(t.to_str())["model"]
    with open(os.path.join(folder, "vocab.json"), "w") as f:
        json.dump(model["vocab"], f)
    with open(os.path.join(folder, "merges.txt"), "w") as f:
        f.write("#version: 0.2\n" + "".join(" ".join(m) + "\n" for m in model["merges"]))
    write_cases(folder, "cases.txt", lambda s, sp: t.encode(s, add_special_tokens=sp).ids)


def make_llama3():
    marks = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    pre = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                                   pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t = byte_level(1000, pre, post=bos_template(marks[0]), ignore_merges=True, added=marks)
    # a token that no merges lead to: ignore_merges finds it, merging does not
    model = json.loads(t.to_str())
    model["model"]["vocab"]["Ġunreachable"] = len(model["model"]["vocab"])
    t = Tokenizer.from_str(json.dumps(model))
    TEXTS.append("an unreachable word, unreachable")
    tokenizer_folder("llama3", t, LLAMA3_CHAT, [("31", LLAMA31_CHAT)], bos=marks[0], eos=marks[1])
    TEXTS.pop()


def make_qwen2():
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    pre = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2), "isolated"),
                                   pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t = byte_level(1000, pre, normalizer=normalizers.NFC(), post=lambda t: processors.ByteLevel(trim_offsets=False))
    t.add_special_tokens(marks)
    t.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True), AddedToken("<keep>", rstrip=True, normalized=False)])
    t.add_tokens([AddedToken("only", single_word=True, normalized=False), AddedToken("café", normalized=True)])
    tokenizer_folder("qwen2", t, CHATML_DEFAULT, [("tools", CHATML_TOOLS), ("plain", CHATML)], eos="<|im_end|>")


def make_smollm():
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    pre = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                   pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    t = byte_level(900, pre, added=marks)
    folder = tokenizer_folder("smollm", t, CHATML_DEFAULT, bos="<|im_start|>", eos="<|im_end|>")
    model = json.loads(t.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    gguf_file(os.path.join(folder, "tokenizer.gguf"), "gpt2", "smollm", tokens, [3 if s in marks else 1 for s in tokens],
              merges=[" ".join(m) for m in model["merges"]], template=CHATML_DEFAULT, bos_token_id=1, eos_token_id=2,
              unknown_token_id=0, add_bos_token=False)


def make_stages():
    """Stages that the big families do not use, in one chain."""
    pre = pre_tokenizers.Sequence([
        pre_tokenizers.Split("-", "merged_with_previous"), pre_tokenizers.Split(Regex("[,;]"), "merged_with_next"),
        pre_tokenizers.Split(Regex(r"\s"), "contiguous"), pre_tokenizers.Split("|", "removed"),
        pre_tokenizers.Split(Regex(r"[^()]+"), "isolated", invert=True), pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Punctuation("isolated"), pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)])
    t = byte_level(700, pre, normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(), normalizers.Replace("~", "--")]),
                   added=["<s>", "</s>"], post=lambda t: processors.RobertaProcessing(("</s>", 1), ("<s>", 0)))
    tokenizer_folder("stages", t, bos="<s>", eos="</s>")


def make_llama2():
    """A SentencePiece BPE model; tokenizer.json by the rule of transformers' converter, GGUF with its scores."""
    work = tempfile.mkdtemp()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 3), model_prefix=os.path.join(work, "m"), vocab_size=1100, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=True, split_digits=True,
        character_coverage=0.995, unk_id=0, bos_id=1, eos_id=2, minloglevel=2, allow_whitespace_only_pieces=True)
    sp = sentencepiece.SentencePieceProcessor(model_file=os.path.join(work, "m.model"))
    shutil.rmtree(work)
    pieces = [sp.id_to_piece(i) for i in range(sp.get_piece_size())]
    scores = [sp.get_score(i) for i in range(len(pieces))]
    vocab = {p: i for i, p in enumerate(pieces)}
    merges = []
    for piece in sorted(pieces[259:], key=lambda p: -scores[vocab[p]]):
        cuts = [(piece[:k], piece[k:]) for k in range(1, len(piece)) if piece[:k] in vocab and piece[k:] in vocab]
        merges += sorted(cuts, key=lambda c: (vocab[c[0]], vocab[c[1]]))
    t = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    t.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in ("<unk>", "<s>", "</s>")])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", 1)])
    folder = tokenizer_folder("llama2", t, LLAMA2_CHAT, bos="<s>", eos="</s>")
    types = [2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1 for i in range(len(pieces))]
    gguf_file(os.path.join(folder, "tokenizer.gguf"), "llama", None, pieces, types, scores=scores, template=LLAMA2_CHAT,
              bos_token_id=1, eos_token_id=2, unknown_token_id=0, add_bos_token=True, add_eos_token=False)
    # the same merges with Metaspace in place of the normaliser, as newer conversions have it
    m = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    m.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=True)
    m.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    m.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in ("<unk>", "<s>", "</s>")])
    tokenizer_folder("metaspace", m, bos="<s>", eos="</s>")


if __name__ == "__main__":
    os.makedirs(HERE, exist_ok=True)
    for make in (make_gpt2, make_llama3, make_qwen2, make_smollm, make_stages, make_llama2):
        make()
    for root, _, files in os.walk(HERE):
        for name in files:
            path = os.path.join(root, name)
            print(f"{os.path.getsize(path):8d} {os.path.relpath(path, HERE)}")
