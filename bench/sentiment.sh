#!/bin/sh
# The mood of Chinese shop reviews, by an encoder that Merx alone trained: WordPiece vocabulary,
# masked words on the training reviews, then classes.
#
#     bench/sentiment.sh REVIEWS.zip FOLDER
#
# REVIEWS.zip: ChineseNlpCorpus' online_shopping_10_cats.csv (category, label, review).  Rows with text in file
# order; the test is index % 10 == 0, and of the rest index % 50 == 1 chooses the checkpoint.  The floor is 0.90427,
# a naive Bayes of character bigrams.  Needs python3 with tokenizers.  WORD_EPOCHS, CLASS_EPOCHS, MERX, THREADS may
# be given.  A run that was stopped goes on.  At the end the chosen checkpoint is served and all test reviews go through
# AnalyzeSentiment (peers/sentiment.py, which can be run alone; needs grpcio).
set -eu
reviews=$1
out=$2
merx=${MERX:-$(dirname "$0")/../build/merx}
mkdir -p "$out/model"
[ -e "$out/model/vocab.txt" ] || ${PYTHON:-python3} - "$reviews" "$out" <<'PY'
import csv, io, json, sys, zipfile
from tokenizers import BertWordPieceTokenizer
reviews, out = sys.argv[1:]
z = zipfile.ZipFile(reviews)
rows = [r for r in csv.DictReader(io.StringIO(z.read(z.namelist()[0]).decode("utf-8-sig"))) if r["review"].strip()]
def write(name, keep):
    with open(f"{out}/{name}.jsonl", "w", encoding="utf-8") as f:
        for i, r in enumerate(rows):
            if keep(i): f.write(json.dumps({"text": r["review"].strip(), "label": int(r["label"])}, ensure_ascii=False) + "\n")
write("test", lambda i: i % 10 == 0)
write("held", lambda i: i % 50 == 1)
write("train", lambda i: i % 10 and i % 50 != 1)
t = BertWordPieceTokenizer(lowercase=True)
t.train_from_iterator((r["review"] for i, r in enumerate(rows) if i % 10 and i % 50 != 1), vocab_size=7000, min_frequency=3, show_progress=False)
t.save_model(out + "/model")
json.dump({"tokenizer_class": "BertTokenizer", "do_lower_case": True}, open(out + "/model/tokenizer_config.json", "w"))
json.dump({"architectures": ["BertForMaskedLM"], "model_type": "bert", "vocab_size": t.get_vocab_size(), "hidden_size": 192, "num_hidden_layers": 4,
           "num_attention_heads": 3, "intermediate_size": 768, "max_position_embeddings": 160, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
           "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.02, "pad_token_id": 0,
           "dtype": "float32"}, open(out + "/model/config.json", "w"), indent=1)
PY
"$merx" train encoder --model "$out/model" --from-scratch --data "$out/train.jsonl" --eval-data "$out/held.jsonl" --run "$out/run_words" \
    --batch 128 --micro-rows 8192 --epochs "${WORD_EPOCHS:-8}" --lr 2e-3 --warmup 100 --mask-rate 0.2 --eval-every 200 --save-every 200 \
    ${THREADS:+--threads "$THREADS"}
last=$(ls -d "$out"/run_words/checkpoint-* | tail -1)
"$merx" train encoder --task classify --label-names negative --label-names positive --model "$last" --data "$out/train.jsonl" \
    --eval-data "$out/held.jsonl" --run "$out/run_mood" --batch 64 --micro-rows 8192 --epochs "${CLASS_EPOCHS:-3}" --lr 5e-4 --warmup 80 \
    --dropout 0.15 --eval-every 200 --save-every 200 ${THREADS:+--threads "$THREADS"}
for folder in "$out"/run_mood/checkpoint-*; do
    printf '%s held ' "$(basename "$folder")"
    "$merx" train encoder --task classify --model "$folder" --eval-data "$out/held.jsonl" --eval-only --quiet
    printf '%s test ' "$(basename "$folder")"
    "$merx" train encoder --task classify --model "$folder" --eval-data "$out/test.jsonl" --eval-only --quiet
done
${PYTHON:-python3} "$(dirname "$0")/peers/sentiment.py" "$out" --build "$(dirname "$merx")" ${THREADS:+--threads "$THREADS"}
