#!/usr/bin/env python3
"""Ids of BERT tokenizers: cased and not, from vocab.txt and from tokenizer.json.

    python3 make_wordpiece_golden.py OUT_FOLDER   (needs transformers)
"""
import json, os, sys
from transformers import BertTokenizerFast

PIECES = """[PAD] [UNK] [CLS] [SEP] [MASK] the run ##ning shoe ##s light a ##b b c ##c e ##e é ##é resume rés ##um i ##i ss ß
很 好 不 质 量 ##很 ##好 ! , . ( ) - _ 。 ， 3 ##3 ##4 $ Shoe THE the un ##want ##ed want ##able İ ##aff ##able aff 한 국 ᄒ ##ᅡ ##ᆫ""".split()
TEXTS = ["", " ", "the running shoes", "THE Running, SHOES!", "unwanted unaffable unknownword", "résumé RÉSUMÉ", "质量很好，不错。", "a质b量c",
         "the\u00a0run\u3000shoe\tthe\nrun", "run\u200bning", "a\u0000b", "(light)-shoe_s $3.34", "İi ß SS", "a" * 100, "a" + "b" * 99, "a" + "b" * 100,
         "한국 한국", "e\u0301e", "[CLS] the [MASK] shoe[SEP]", "[cls] [mask]", "\ufffd\ue000 the", "𠀀的很好 𪜀", "the run.the run"]
out = sys.argv[1]
for name, lower, strip, cjk in (("uncased", True, None, True), ("cased", False, None, True), ("words", True, False, False)):
    folder = os.path.join(out, name)
    os.makedirs(folder, exist_ok=True)
    pieces = list(dict.fromkeys(PIECES))
    open(os.path.join(folder, "vocab.txt"), "w").write("\n".join(pieces) + "\n")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower, "strip_accents": strip, "tokenize_chinese_chars": cjk}
    json.dump(config, open(os.path.join(folder, "tokenizer_config.json"), "w"))
    t = BertTokenizerFast(os.path.join(folder, "vocab.txt"), do_lower_case=lower, strip_accents=strip, tokenize_chinese_chars=cjk)
    rows = [{"text": x, "ids": t(x)["input_ids"], "words": t(x, add_special_tokens=False)["input_ids"]} for x in TEXTS]
    json.dump(rows, open(os.path.join(folder, "cases.json"), "w"), indent=0)
    # the same tokenizer as one file
    both = os.path.join(out, name + "-json")
    os.makedirs(both, exist_ok=True)
    t.backend_tokenizer.save(os.path.join(both, "tokenizer.json"))
    json.dump(rows, open(os.path.join(both, "cases.json"), "w"), indent=0)
