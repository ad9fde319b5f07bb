#!/bin/sh
# rules.sh SOURCE_DIR - the rules for CUDA code that a script can see (HACKING.md).
# Prints what breaks one.
set -u
cd "${1:-.}" || exit 2
bad=0
report() { # rule, lines
    [ -z "$2" ] && return
    printf 'cuda rules: %s\n%s\n' "$1" "$2"
    bad=1
}
code() { # every .cu and .cuh without comments, as file:line:text
    for f in kernels/cuda/*.cu kernels/cuda/*.cuh runtime/*.cu; do
        [ -f "$f" ] && sed -e 's|//.*||' -e 's|/\*.*\*/||' "$f" | awk -v f="$f" '
            /\/\*/ { open = 1; sub(/\/\*.*/, "") } { if (!open || $0 !~ /./) { } }
            { if (!open) print f ":" NR ":" $0 } /\*\// { open = 0 }'
    done
}
all=$(code)
find_in() { printf '%s\n' "$all" | grep -E "$1"; }

report 'asm outside kernels/cuda/ptx.cuh' "$(find_in '(^|[^_a-z])(asm|__asm__)([^_a-z]|$)' | grep -v '^kernels/cuda/ptx\.cuh:')"
report 'a launch without MX_LAUNCH' "$(find_in '<<<|cudaLaunchKernel|cudasim_launch' | grep -v '^kernels/cuda/common\.cuh:')"
report 'the simulator known outside common.cuh and ptx.cuh' "$(find_in 'CUDASIM|cudasim' | grep -vE '^kernels/cuda/(common|ptx)\.cuh:')"
report 'a kernel that is not static' "$(find_in '__global__' | grep -v 'static __global__')"
report 'shared memory by hand: MX_DYN_SHARED' "$(find_in 'extern __shared__' | grep -v '^kernels/cuda/common\.cuh:')"
report 'static __shared__ in a template kernel (g++ cannot place it): MX_DYN_SHARED' "$(printf '%s\n' "$all" | awk '
    /:template </ { t = 1 } /:static|:typedef|:extern/ { if ($0 !~ /template/ && seen) t = 0; seen = 1 } /template </ { seen = 0 }
    /:}$/ { t = 0 } t && /__shared__/ { print }')"
report 'a device global, texture, managed or cooperative thing' \
    "$(find_in '__managed__|texture<|cudaMallocManaged|cooperative_groups|cudaTextureObject|this_grid|__cluster_dims__|^[^:]*:[0-9]+:(static )?__device__ [a-z0-9_ ]+(\[|=|;)')"
report 'C++ that C readers do not know: class, namespace, lambda, std::, new, delete, virtual, auto' \
    "$(find_in '(^|[^_a-zA-Z])(class|namespace|std::|virtual|auto|new|delete|operator|try|catch|throw) |std::|\[[&=]\]')"
report '__activemask, or a warp call without _sync' "$(find_in '__activemask|__shfl\(|__shfl_(up|down|xor)\(|__ballot\(|__any\(|__all\(')"
report 'a loop that waits for memory' "$(find_in 'while \(.*(volatile|atomic(CAS|Exch|Add)).*\);')"
report 'a CUDA library: cub, thrust' "$(find_in '#include <(cub|thrust)/')"
if [ $bad = 0 ]; then echo "cuda rules: $(ls kernels/cuda/* runtime/*.cu | wc -l) files keep them"; fi
exit $bad
