# What a contributor runs. Everything is built with the one dev profile, so that dependencies are compiled once.

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
CARGO := cargo

.PHONY: help setup tools build test lint bench demo faults fuzz recipes guest guest-bump test-vm soak proto

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 16

setup: ## install the system packages that are missing (Debian; needs root)
	@deploy/setup

tools: setup ## build the pinned Temporal, buildkitd, buildctl and runc from source, once
	@deploy/tools/link temporal buildkitd buildctl runc

build: setup ## build kiln
	$(CARGO) build --locked

test: tools lint ## all checks and all tests
	@deploy/setup test
	$(CARGO) test --locked --workspace
	@if deploy/setup guest; then $(MAKE) --no-print-directory test-vm; \
	else echo "make test: QEMU cannot be installed here, so no guest was tested" >&2; fi

lint: setup ## formatting, clippy, dependencies (cargo-deny), documentation
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) fetch --locked
	"$$(deploy/tools/cargo-deny)" --log-level error --offline check bans licenses sources
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps

bench: tools ## the figures of docs/PERFORMANCE.md, as ratios (ONLY="cached snapshots contexts orchestration postgres history cells admit guests")
	@deploy/setup test
	@case "$(ONLY)" in "" | *guests*) deploy/setup guest ;; esac
	$(CARGO) build --locked --workspace --example context
	$(CARGO) bench --locked --profile dev --workspace --bench kiln -- $(ONLY)

demo: ## from nothing to a pushed image that answers (KEEP=1 leaves it running)
	@deploy/demo

faults: tools ## the tests in which things are killed, cut off and filled up, on true clocks (N=20 rounds, ONLY="storm:: cells::")
	@deploy/setup test
	deploy/faults "$(or $(N),1)" "$(ONLY)"

fuzz: setup ## fuzz the parsers of what comes from outside, T seconds each (T=60, ONLY="dns manifest")
	@fuzz/run "$(or $(T),60)" $(ONLY)

recipes: tools ## the recipes of docs/contract.md for Python and Go, with their SDKs from PyPI and the Go proxy
	@python3 -c 'import ensurepip' 2>/dev/null || { echo "make recipes: Python's venv is missing: apt-get install python3-venv" >&2; exit 1; }
	$(CARGO) test --locked --test all -- --include-ignored recipes

guest: tools build ## build the guest image of microVM cells and print its directory and digest
	@deploy/setup guest
	@image=$$(deploy/guest/build "$${CARGO_TARGET_DIR:-target}/debug/kiln"); echo "$$image sha256:$$(sha256sum <"$$image/manifest.json" | cut -d' ' -f1)"

guest-bump: ## record the newest kernel and e2fsck of Debian's archive for the guest image
	@deploy/guest/bump

test-vm: tools build ## boot real guests and test them (part of make test)
	@deploy/setup guest
	deploy/guest/test

soak: tools build ## cut a guest's power in mid-build, N=20 times in a row; goes on where it was broken off
	@deploy/setup guest
	TEST=guest deploy/faults "$(or $(N),20)" "disks::a_power_cut"

proto: ## generate buildkit/src/proto from buildkit/proto/vendor (needs protoc)
	@command -v protoc >/dev/null || { echo "make proto: protoc is missing: apt-get install protobuf-compiler" >&2; exit 1; }
	cd buildkit/proto && $(CARGO) run --manifest-path generate/Cargo.toml
