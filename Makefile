# make         build ./mogile, and link its other names to it
# make test    install what the tests need, and run them all with the race detector
# make budgets compare allocations and system calls of hot operations with those recorded
# make budgets-write  record them
# make scenarios  the long end-to-end tests, which make test leaves out
# make soak    the same scenarios in large, and an hour of fuzzing
# make fuzz    the fuzz targets alone, FUZZ seconds in all
# make lint    formatting, go vet, staticcheck
# make bench   Mogile beside pgbench, nginx and fio, into docs/performance.md
# make bench-units  the benchmarks of single packages
# make bench-shards  those of erasure coding, on a tmpfs, beside their yardsticks

GO    ?= go
SHELL := /bin/bash

# Packages are tested two at a time, and four tests of each: end-to-end tests
# start processes of their own, and mostly wait, but a machine of two cores must
# not be what a test measures.
PARALLEL ?= 2

# Seconds of fuzzing, shared by all targets.
FUZZ ?= 3600

.PHONY: all build test budgets budgets-write scenarios soak fuzz lint vulncheck bench bench-units bench-shards deps clean

all: build

# The binary is static: no C library is linked in.
build:
	CGO_ENABLED=0 $(GO) build -trimpath -o mogile .
	for name in mogtool mogadm mogilefsd mogdbsetup mogstored cmogstored mogautomount; do ln -sf mogile $$name; done

test: deps
	$(GO) test -race -p $(PARALLEL) -parallel 4 -timeout 8m ./...

budgets:
	@.ci/deps
	@.ci/deps budgets
	MOGILE_BUDGETS=check $(GO) test -count 1 -timeout 8m -run '^TestBudgets$$' ./tools/e2e

budgets-write:
	@.ci/deps budgets
	MOGILE_BUDGETS=write $(GO) test -count 1 -v -timeout 8m -run '^TestBudgets$$' ./tools/e2e

# Tests that say scenario(t): lost hosts, drained devices, killed trackers.
scenarios: deps
	MOGILE_TEST_SCENARIOS=1 $(GO) test -count 1 -parallel 3 -timeout 12m ./tools/e2e \
		-run "^($$(awk -F '[ (]' '/^func Test/ { name = $$2 } /scenario\(t\)$$/ { print name }' tools/e2e/*_test.go | sort -u | paste -sd '|'))$$"

# MOGILE_TEST_SCALE multiplies the counts of the tests that take it.
soak: deps
	MOGILE_TEST_SCALE=10 $(GO) test -p 1 -count 1 -timeout 150m ./...
	.ci/fuzz $(FUZZ)

fuzz:
	.ci/fuzz $(FUZZ)

lint:
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$unformatted" || { echo "not formatted: $$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

# Needs the network: the list of vulnerabilities is not part of the module.
vulncheck:
	$(GO) tool govulncheck ./...

bench:
	@.ci/deps yardsticks
	MOGILE_BENCH=$(CURDIR)/docs/performance.md $(GO) test -count 1 -v -timeout 120m -run '^TestRatios$$' ./tools/e2e

bench-units: deps
	$(GO) test -run '^$$' -bench . -benchmem ./...

bench-shards: deps
	TMPDIR=/dev/shm $(GO) test -run '^$$' -bench 'Upload|Encode|Rebuild|Verify|Read|Range|Shards' -benchmem -timeout 60m ./storaged ./storaged/erasure ./tools/e2e

# The race detector needs a C compiler, the tests PostgreSQL's server programs
# and curl.
deps:
	@.ci/deps

clean:
	rm -f mogile mogtool mogadm mogilefsd mogdbsetup mogstored cmogstored mogautomount
