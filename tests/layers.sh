#!/bin/sh
# layers.sh SOURCE_DIR - the rooms stand in one line, runtime <- kernels <-
# models <- server: a folder includes only itself and what is to its left, and
# each outside library is included in its one home.  Prints what breaks a rule.
set -u
cd "${1:-.}" || exit 2
bad=0
report() { # rule, lines
    [ -z "$2" ] && return
    printf 'layers: %s\n%s\n' "$1" "$2"
    bad=1
}
c_files() { find "$@" -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null; }
grep_in() { pattern=$1; shift; c_files "$@" | xargs -r grep -nE "$pattern" /dev/null; }

report 'runtime includes a room to its right' "$(grep_in '#include "(kernels|models|server|tests)/' runtime)"
report 'kernels includes a room to its right' "$(grep_in '#include "(models|server|tests)/' kernels)"
report 'models includes a room to its right' "$(grep_in '#include "(server|tests)/' models)"
report 'server includes the tests' "$(grep_in '#include "tests/' server)"
report '<grpc/...> outside server/rpc*.c' "$(grep_in '#include <grpc/' runtime kernels models server bench | grep -vE '^server/rpc[a-z_]*\.c:|^bench/echo\.c:')"
report '<hwloc.h> outside runtime/topology.c' "$(grep_in '#include <hwloc' runtime kernels models server bench tests | grep -v '^runtime/topology\.c:')"
report 'oneDNN outside kernels/cpu/linear.c' "$(grep_in '#include [<"](oneapi|dnnl)' runtime kernels models server bench tests | grep -v '^kernels/cpu/linear\.c:')"
report 'CUDA headers outside *.cu' "$(grep_in '#include [<"](cuda|cublas|cudnn)' runtime kernels models server bench | grep -vE '^[^:]*\.cuh?:')"
report 'cuDNN outside kernels/cuda/cudnn*' "$(grep_in '#include [<"][a-z/]*cudnn' runtime kernels models server bench | grep -v '^kernels/cuda/cudnn')"
report 'NCCL or MPI outside runtime/comm*' "$(grep_in '#include <(nccl|mpi)\.h' runtime kernels models server bench | grep -v '^runtime/comm')"
report 'jansson outside models/ and server/' "$(grep_in '#include <jansson' runtime kernels)"
report 'SQLite outside server/store_sqlite.c' "$(grep_in '#include <sqlite3' runtime kernels models server bench | grep -v '^server/store_sqlite\.c:')"
report 'libmicrohttpd outside server/http.c' "$(grep_in '#include <microhttpd' runtime kernels models server bench tests | grep -v '^server/http\.c:')"
report 'PCRE2 outside models/tokenizer files' "$(grep_in '#include <pcre2' runtime kernels models server bench | grep -v '^models/tokenizer')"
report 'utf8proc outside models/tokenizer files' "$(grep_in '#include <utf8proc' runtime kernels models server bench | grep -v '^models/tokenizer')"
report 'exit() or abort() below server/main.c' "$(grep_in '(^|[^_a-zA-Z.>])(exit|abort|_exit) *\(' runtime kernels models server | grep -vE '^server/main\.c:|^[^:]*:[0-9]+: *(\*|//|/\*)')"
if [ $bad = 0 ]; then
    echo "layers: $(c_files runtime kernels models server | wc -l) files keep the rules"
fi
exit $bad
