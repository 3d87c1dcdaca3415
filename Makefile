# make quickstart   raw text -> instruction data -> two small models -> a report, on this machine
# make test         everything a change must pass
# make check        of that what takes seconds
# make chips        attention and steps compiled by the compilers of GPUs and TPUs, without one
# All make .venv first (`make env`), from locks/cpu.txt.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON := .venv/bin/python
STAMP := .venv/.made-from-lock
LOCK := locks/cpu.txt
# A uv found on the machine, or else one in .tools/: a venv of its own works where the system's
# pip refuses to install (PEP 668).
UV := $(or $(shell command -v uv 2>/dev/null),.tools/bin/uv)
QUICKSTART_ARGUMENTS ?=

.PHONY: help env quickstart test check chips lint types lock clean

help:
	@sed -n 's/^# \?//p' Makefile | sed -n '1,5p'
	@echo "make lint | types | lock | clean"

env: $(STAMP)

# The stamp holds the time of the last sync; a newer lock, project file or Python asks for another.
$(STAMP): $(LOCK) pyproject.toml .python-version
	@test -x "$(UV)" || command -v "$(UV)" >/dev/null || $(MAKE) --no-print-directory .tools/bin/uv
	@rm -f "$(STAMP)"
	$(UV) venv --quiet --allow-existing --no-project --python "$$(cat .python-version)" .venv
	$(UV) pip sync --python "$(PYTHON)" --require-hashes $(LOCK)
	$(UV) pip install --quiet --python "$(PYTHON)" --no-deps --no-build-isolation --editable .
	@touch "$(STAMP)"

# From / because here .python-version would make pyenv insist on 3.12, and any Python does for uv.
# Some distributions ship Python without ensurepip; there pip itself is asked to fetch uv.
.tools/bin/uv:
	@echo "uv is not installed: putting it into .tools/"
	@cd / && python3 -m venv "$(CURDIR)/.tools" >/dev/null 2>&1 \
	  && "$(CURDIR)/.tools/bin/python" -m pip install --quiet --disable-pip-version-check uv \
	  || { rm -rf "$(CURDIR)/.tools"; python3 -m pip install --quiet --disable-pip-version-check \
	       --break-system-packages --target "$(CURDIR)/.tools" uv; } \
	  || { rm -rf "$(CURDIR)/.tools"; echo "error: no uv, and python3 could not install it:" \
	       "install uv or python3-venv, then run make again." >&2; exit 2; }

quickstart: env
	$(PYTHON) launch/quickstart.py $(QUICKSTART_ARGUMENTS)

test: env lint types
	$(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not chips"

# What takes seconds, for work in between; tests/budget.json says which files those are.
check: env lint
	$(PYTHON) -m pytest -n 2 --dist loadfile -m "not chips" --light

chips: env .chips/cuda/.made-from-lock .chips/tpu/.made-from-lock
	$(PYTHON) -m pytest -n 2 --maxschedchunk 1 -m chips tests/chips

.chips/%/.made-from-lock: locks/%-train.txt .python-version | env
	@rm -f "$@"
	$(UV) venv --quiet --allow-existing --no-project --python "$$(cat .python-version)" .chips/$*
	$(UV) pip sync --quiet --python .chips/$*/bin/python --require-hashes $<
	@.chips/$*/bin/python -c "import pathlib, sysconfig; \
	  pathlib.Path(sysconfig.get_path('purelib'), 'ipt_jax.pth').write_text('$(CURDIR)')"
	@touch "$@"

lint: env
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: env
	.venv/bin/pyright

# Needs the package index. Keeps the versions already locked unless told `make lock UPGRADE=--upgrade`.
# The fourth argument of a lock: the platform, where wheels for an older glibc lack (libtpu).
UPGRADE ?=
COMPILE = $(UV) pip compile --quiet $(UPGRADE) pyproject.toml --python-version 3.12 \
  --python-platform x86_64-$(or $(4),manylinux_2_28) --generate-hashes --no-annotate --no-header
define lock_file
	@echo "$(3)"
	@$(COMPILE) $(2) --output-file $(3)
	@sed -i '1i # $(1). Written by `make lock`; not edited by hand.' $(3)
endef

lock:
	@test -x "$(UV)" || command -v "$(UV)" >/dev/null || $(MAKE) --no-print-directory .tools/bin/uv
	$(call lock_file,Quickstart and tests on a CPU,--extra test,locks/cpu.txt)
	$(call lock_file,Training on GPU machines,--extra cuda --extra tokenizers,locks/cuda-train.txt)
	$(call lock_file,Training on TPU machines,--extra tpu --extra tokenizers,locks/tpu-train.txt,manylinux_2_31)
	$(call lock_file,Synthesis on GPU machines,--no-config --extra synthesis --extra vllm --extra matching,locks/cuda-synthesis.txt)

clean:
	rm -rf .venv .tools .chips
