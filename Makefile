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
	TSAN_OPTIONS=ignore_noninstrumented_modules=1 ctest --test-dir build-tsan --output-on-failure -R 'pool|scheduler|server|cli|swap|turns|profile|pricing|http|remember|memory_plan|ahead'

# The lines that differ from HEAD (or from BASE=main): tables aligned by hand stay as they are.
BASE ?= HEAD
format:
	@tools/install.sh clang-format
	git clang-format --extensions c,h,cu,cuh $(BASE)

lint:
	@tools/install.sh cppcheck
	tools/lint.sh

clean:
	rm -rf build build-asan build-tsan build-debug build-fuzz
