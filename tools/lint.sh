#!/bin/sh
# lint.sh - the rules that a compiler does not check: rooms, sizes, cppcheck.
# Seconds, and no build needed.
set -eu
tests/layers.sh .
tests/sizes.sh .
# __has_include and jansson's loops are given, because cppcheck does not read system headers.
# Not portable on purpose: the oneDNN home reads tensor memory as what it is.
# Wrong in cppcheck 2.10: mx_arena_alloc's branch makes a->chunks; a sum that has a weight
# of 1 is not 0; memory that a compound literal takes is not lost.
cppcheck -j "$(nproc)" --quiet --error-exitcode=1 --enable=warning,performance,portability --std=c11 -I . -D_GNU_SOURCE \
    '-D__has_include(x)=1' '-Djson_array_foreach(a,i,v)=if((i=0,v=json_array_get(a,i)))' '-Djson_object_foreach(o,k,v)=while((v=json_object_get(o,k)))' \
    --template='{file}:{line}: {message} [{id}]' \
    --suppress=invalidPointerCast --suppress=nullPointerRedundantCheck:server/messages.c \
    --suppress=invalidFunctionArg:kernels/cpu/sample.c --suppress=memleak:models/tokenizer_build.c \
    runtime kernels models server
echo "lint: clean"
