#!/bin/sh
# A small Chinese copy model, trained by Merx alone: pre-trained on shop reviews,
# fine-tuned on pairs of product attributes and advertising copy.
#
#     bench/chinese_copy.sh REVIEWS.zip PAIRS.json FOLDER
#
# REVIEWS.zip: ChineseNlpCorpus' online_shopping_10_cats.csv (category, label, review);
# PAIRS.json: lines of {"content": attributes, "summary": copy} (AdvertiseGen).  Every 15th
# pair and every 50th review is held out.  Writes the tokenizer (byte-level BPE), the data
# and both runs into FOLDER, then copy for held-out attributes.  Needs python3 with tokenizers.
# PRE_STEPS, TUNE_EPOCHS and MERX may be given.  A run that was stopped goes on.
set -eu
reviews=$1
pairs=$2
out=$3
merx=${MERX:-$(dirname "$0")/../build/merx}
mkdir -p "$out/model"
[ -e "$out/model/tokenizer.json" ] || ${PYTHON:-python3} - "$reviews" "$pairs" "$out" <<'PY'
import csv, io, json, sys, zipfile
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
reviews, pairs, out = sys.argv[1:]
z = zipfile.ZipFile(reviews)
rows = [r["review"].strip() for r in csv.DictReader(io.StringIO(z.read(z.namelist()[0]).decode("utf-8-sig"))) if r["review"].strip()]
ads = [json.loads(line) for line in open(pairs, encoding="utf-8")]
prompt = lambda content: "商品：" + content.replace("#", "是").replace("*", "，") + "\n文案："
write = lambda name, items: open(f"{out}/{name}.jsonl", "w", encoding="utf-8").writelines(json.dumps(i, ensure_ascii=False) + "\n" for i in items)
kept = [a for i, a in enumerate(ads) if i % 15]
learn = [{"text": r} for i, r in enumerate(rows) if i % 50] + [{"text": prompt(a["content"]) + a["summary"]} for a in kept]
write("pre", learn)
write("pre_held", [{"text": r} for i, r in enumerate(rows) if i % 50 == 0])
write("tune", [{"prompt": prompt(a["content"]), "completion": a["summary"]} for a in kept])
held = [a for i, a in enumerate(ads) if i % 15 == 0]
write("tune_held", [{"prompt": prompt(a["content"]), "completion": a["summary"]} for a in held])
write("ask", [{"id": i, "prompt": prompt(a["content"])} for i, a in enumerate(held)])
t = Tokenizer(models.BPE())
t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
t.decoder = decoders.ByteLevel()
t.train_from_iterator((i["text"] for i in learn), trainers.BpeTrainer(vocab_size=8000, special_tokens=["<|endoftext|>"], show_progress=False,
                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
t.save(out + "/model/tokenizer.json")
json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}, open(out + "/model/tokenizer_config.json", "w"))
json.dump({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": t.get_vocab_size(), "max_position_embeddings": 256,
           "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 4,
           "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "attention_bias": False, "mlp_bias": False,
           "initializer_range": 0.02, "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": True, "dtype": "float32"},
          open(out + "/model/config.json", "w"), indent=1)
PY
"$merx" train lm --model "$out/model" --from-scratch --data "$out/pre.jsonl" --eval-data "$out/pre_held.jsonl" --run "$out/run_pre" \
    --packing masked-blocks --length 128 --batch 64 --micro-rows 8192 --steps "${PRE_STEPS:-1500}" --lr 1e-3 --warmup 100 --dropout 0.1 \
    --eval-every 250 --save-every 100 ${THREADS:+--threads "$THREADS"}
best=$(ls -d "$out"/run_pre/checkpoint-* | tail -1)
"$merx" train lm --model "$best" --data "$out/tune.jsonl" --eval-data "$out/tune_held.jsonl" --run "$out/run_tune" --batch 32 \
    --epochs "${TUNE_EPOCHS:-8}" --lr 3e-4 --warmup 20 --dropout 0.1 --eval-every 31 --save-every 31 --patience 3 ${THREADS:+--threads "$THREADS"}
best=$(ls -d "$out"/run_tune/checkpoint-* | tail -1)
"$merx" generate --model "$best" -i "$out/ask.jsonl" -o "$out/copy.jsonl" --overwrite --max-tokens 100 --temperature 0.7 --top-p 0.9 \
    --repetition-penalty 1.1 --seed 7 ${THREADS:+--threads "$THREADS"}
