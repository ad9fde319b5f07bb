# The front door.  Each target installs what it needs (Debian or Ubuntu, as
# root or with sudo), says what it does, and calls CMake.
# PATH of another model: make demo MODEL=path
.PHONY: all deps demo test asan tsan format lint clean
BUILD ?= build
JOBS  ?= $(shell nproc)

all: $(BUILD)/build.ninja
	cmake --build $(BUILD) -j $(JOBS)

$(BUILD)/build.ninja: | deps
	cmake --preset release

deps:
	@tools/install.sh

test: deps all
	ctest --test-dir $(BUILD) --output-on-failure -j $(JOBS)

demo: deps all
	@tools/demo.sh $(MODEL)

asan: deps
	cmake --preset asan
	cmake --build --preset asan -j $(JOBS)
	ctest --test-dir build-asan --output-on-failure -j $(JOBS)

tsan: deps
	cmake --preset tsan
	cmake --build --preset tsan -j $(JOBS)
	TSAN_OPTIONS=ignore_noninstrumented_modules=1 ctest --test-dir build-tsan --output-on-failure -R 'pool|scheduler|server'

format:
	git ls-files '*.c' '*.h' | xargs clang-format -i

lint: all
	tests/layers.sh .
	git ls-files 'runtime/*.c' 'kernels/*.c' 'models/*.c' 'server/*.c' | xargs clang-tidy -p $(BUILD) --quiet

clean:
	rm -rf build build-asan build-tsan build-debug build-fuzz
