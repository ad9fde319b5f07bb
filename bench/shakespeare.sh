#!/bin/sh
# Character-level Shakespeare, with the CPU setting that nanoGPT's README documents
# (4 layers, 4 heads, 128 channels, context 64, batch 12, 2,000 steps; it reports a
# validation loss of about 1.88).
#
#     bench/shakespeare.sh TINYSHAKESPEARE.txt FOLDER
#
# Writes the model folder, the split and the run into FOLDER; needs python3.
set -eu
text=$1
out=$2
merx=${MERX:-$(dirname "$0")/../build/merx}
mkdir -p "$out/model"
python3 - "$text" "$out" <<'PY'
import json, sys
text, out = open(sys.argv[1], encoding="utf-8").read(), sys.argv[2]
chars = sorted(set(text))
# a byte-level tokenizer without merges: one id for every character there is
def symbol(ch):
    plain = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    b = ord(ch)
    return chr(b) if b in plain else chr(256 + [x for x in range(256) if x not in plain].index(b))
vocab = {symbol(c): i for i, c in enumerate(chars)}
level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
json.dump({"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None, "pre_tokenizer": level,
           "post_processor": None, "decoder": level,
           "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                     "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": []}},
          open(out + "/model/tokenizer.json", "w"))
json.dump({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": len(chars), "n_positions": 64, "n_ctx": 64,
           "n_embd": 128, "n_layer": 4, "n_head": 4, "n_inner": None, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
           "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None,
           "tie_word_embeddings": True}, open(out + "/model/config.json", "w"), indent=1)
cut = int(len(text) * 0.9)
open(out + "/train.txt", "w").write(text[:cut])
open(out + "/val.txt", "w").write(text[cut:])
PY
exec "$merx" train lm --model "$out/model" --from-scratch --data "$out/train.txt" --eval-data "$out/val.txt" --run "$out/run" \
    --packing blocks --batch 12 --steps 2000 --lr 1e-3 --min-lr 1e-4 --warmup 100 --beta2 0.99 --weight-decay 0.1 --eval-every 500
