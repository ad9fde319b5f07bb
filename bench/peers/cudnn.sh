#!/bin/sh
# cudnn.sh BUILD - attention of training through cuDNN, beside our own kernels: right, then how quick.
#
# bench/gpu.sh runs it.  cuDNN is not packed: libcudnn.so.9 of the machine is taken, or that of
# Python's nvidia packages.  What our own kernels did after all fails.  Lines begin with cudnn-.
set -u
build=${1:?cudnn.sh: BUILD}
at=$(python3 -c '
import ctypes, glob, os
try:
    ctypes.CDLL("libcudnn.so.9"); print("/usr/lib")
except OSError:
    import nvidia; print(":".join(glob.glob(os.path.join(list(nvidia.__path__)[0], "*", "lib"))))' 2>/dev/null)
[ -n "$at" ] || { echo "skipped: no libcudnn.so.9 here"; exit 0; }
LD_LIBRARY_PATH=$at:${LD_LIBRARY_PATH:-} && export LD_LIBRARY_PATH
bad=0
through() { # command...
    out=$("$@" 2>&1)
    status=$?
    printf '%s\n' "$out" | sed -E 's/^(attention|train)/cudnn-\1/'
    case $out in *"our own kernels"*) status=1 ;; esac
    [ $status = 0 ] || { echo "FAILED ($status): $*"; bad=1; }
}
through "$build/ops_cases" test attention --device cuda --cudnn
through "$build/ops_cases" perf attention --device cuda --cudnn
through "$build/learn" train --device cuda --rows 16384 --cudnn on
exit $bad
