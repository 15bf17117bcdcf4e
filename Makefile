# vpnproviderd: `make help` lists the targets. Continuous integration (.ci/run)
# runs nothing that is not a target here.

PREFIX   ?= /usr
DESTDIR  ?=
# Where zsh looks for completions: Debian's has a folder of its own for packages.
ZSHDIR   ?= share/zsh/site-functions
GO       ?= go
FUZZTIME ?= 10s
# What is built, and when; of a source tarball, what stands in it.
-include packaging/release.mk
VERSION           ?= $(or $(shell packaging/version 2>/dev/null),0.1.0~dev)
SOURCE_DATE_EPOCH ?= $(or $(shell git log -1 --format=%ct 2>/dev/null),$(shell date +%s))
VERSION           := $(VERSION)
SOURCE_DATE_EPOCH := $(SOURCE_DATE_EPOCH)
# Where programs and packages go.
BIN      ?= bin
DIST     ?= dist
# The packages under test, for a quick look at a few: make test PKGS=./driver/...
PKGS     ?= ./...

root    = $(DESTDIR)$(PREFIX)
programs = $(patsubst cmd/%/main.go,%,$(wildcard cmd/*/main.go))
clients = $(addprefix $(BIN)/,$(filter-out vpnproviderd,$(programs)))
# Those that tell shells what can be typed.
complete = $(filter vpnctl vpn-wireguard,$(programs))
tool    = $(GO) tool -modfile=test/tools/go.mod

.DEFAULT_GOAL := build
.PHONY: help build deps test lint fmt fuzz soak bench bench-quick demo install uninstall deb rpm dist clean

help: ## this list
	@sed -n 's/^\([a-z -]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

build: ## all programs, into bin/
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags='-s -w -X main.version=$(VERSION)' -o $(BIN)/ ./cmd/...

deps: ## what tests and demo need, with apt (as root)
	@test/install-deps

# CI makes a missing privilege or program a failure instead of a skipped test.
test: deps ## every test: unit, bus and system (as root)
	$(GO) vet $(PKGS)
	$(GO) build $(PKGS)
	CI=1 $(GO) test -race -shuffle=on -count=1 -timeout=25m $(PKGS)

lint: ## golangci-lint, with the formatters
	$(tool) golangci-lint run ./...

fmt: ## gofumpt and the order of imports
	$(tool) golangci-lint fmt ./...

fuzz: ## every fuzz target for FUZZTIME (10s)
	@GO="$(GO)" test/fuzz $(FUZZTIME)

# The same tests with large numbers, for hours. Each part is one test, and can be
# run alone: make soak PARTS="kills cycles". The figures of all parts that were run
# since `make clean` stand in the table at the end.
PARTS    ?= clients healing kills transitions updates cycles calls floods integrity rekey fuzz
SOAKTIME ?= 10m
soaked    = $(abspath $(BIN))/soak.txt
soak_test = CI=1 SOAK=1 SOAK_TABLE=$(soaked) $(GO) test -v -count=1 -timeout=12h
soak-clients: tests = TestClientDies
soak-healing: tests = TestAttackFlush|TestForeignDeletion
soak-kills: tests = TestDaemonKilled
soak-transitions: tests = TestTransitions|TestLockdownTransitions
soak-updates: tests = TestUpdates
soak-cycles: tests = TestCyclesLeaveNothing
soak-calls: tests = TestFuzzedCalls
soak-floods: tests = TestFloods
soak-integrity: tests = TestIntegrity.*
soak-rekey: tests = TestRekey

soak: deps ## hours of the tests with large numbers (as root; PARTS="kills cycles" for some)
	@mkdir -p $(BIN)
	@failed=; for part in $(PARTS); do $(MAKE) --no-print-directory soak-$$part || failed="$$failed $$part"; done; \
		echo; column -t -s "$$(printf '\t')" $(soaked); echo; \
		if [ -n "$$failed" ]; then echo "failed:$$failed" >&2; exit 1; fi

soak-clients soak-healing soak-kills soak-transitions soak-updates soak-cycles soak-calls soak-floods soak-integrity:
	$(soak_test) -run '^($(tests))$$' ./test/system

soak-rekey:
	$(soak_test) -run '^($(tests))$$' ./cmd/vpn-wireguard

soak-fuzz:
	$(MAKE) --no-print-directory fuzz FUZZTIME=$(SOAKTIME)
	@printf 'fuzz targets\t%s each, no fault\n' $(SOAKTIME) >>$(soaked)

# One session of measurements: docs/performance.md tells the method.
session = CI=1 $(GO) test -run '^$$' -bench '^BenchmarkSession$$' -benchtime 1x -timeout 2h ./test/bench -out=$(abspath $(BIN))/bench

bench: deps ## measure speed, write the tables of docs/performance.md (as root, 15 minutes)
	$(session) -doc=$(abspath docs/performance.md)
	cp $(BIN)/bench/bench.txt test/bench/baseline.txt

bench-quick: deps ## a look at the same in less than 2 minutes, into bin/bench
	$(session) -quick

demo: deps build ## the main job, shown in network namespaces (as root)
	@test/demo/run

# The units name the programs' paths, so that one is written for PREFIX. The
# completions are asked of the programs, built for the machine that builds. What
# runs afterwards on a live system (sysusers, tmpfiles, daemon-reload) is the
# packager's or the administrator's: docs/service.md.
install: build ## below DESTDIR and PREFIX (/usr)
	install -Dm755 -t $(root)/sbin $(BIN)/vpnproviderd
	install -Dm755 -t $(root)/bin $(clients)
	install -d $(root)/lib/systemd/system $(root)/lib/systemd/user
	umask 022; for unit in systemd/*.service systemd/*.socket systemd/user/*.service; do \
		dir=$${unit%/*}; test $$dir = systemd/user || dir=systemd/system; \
		sed 's#/usr/\(s\?bin\)/vpn#$(PREFIX)/\1/vpn#g' $$unit >$(root)/lib/$$dir/$${unit##*/} || exit; \
	done
	install -Dm644 systemd/vpnprovider.sysusers.conf $(root)/lib/sysusers.d/vpnprovider.conf
	install -Dm644 systemd/vpn-nm-bridge.sysusers.conf $(root)/lib/sysusers.d/vpn-nm-bridge.conf
	install -Dm644 systemd/vpnprovider.tmpfiles.conf $(root)/lib/tmpfiles.d/vpnprovider.conf
	install -Dm644 -t $(root)/share/dbus-1/system.d dbus-policy/org.vpnprovider1.conf dbus-policy/vpn-nm-bridge.conf
	install -Dm644 -t $(root)/share/dbus-1/system-services dbus-policy/org.vpnprovider1.service
	install -Dm644 -t $(root)/share/dbus-1/interfaces dbus/wire/org.vpnprovider1.*.xml
	install -Dm644 -t $(root)/share/polkit-1/actions dbus-policy/org.vpnprovider1.policy
	install -Dm644 -t $(root)/share/polkit-1/rules.d dbus-policy/49-vpnproviderd.rules
	install -Dm644 -t $(root)/share/applications cmd/vpn-tray/vpn-tray.desktop
	install -Dm644 -t $(DESTDIR)/etc/xdg/autostart cmd/vpn-tray/vpn-tray.desktop
	install -Dm644 cmd/vpn-nm-bridge/vpn-nm-bridge.NetworkManager.conf $(root)/lib/NetworkManager/conf.d/vpn-nm-bridge.conf
	install -d $(root)/lib/NetworkManager/VPN
	umask 022; sed 's#/usr/bin/vpn#$(PREFIX)/bin/vpn#' cmd/vpn-nm-bridge/vpn-nm-bridge.name >$(root)/lib/NetworkManager/VPN/vpn-nm-bridge.name
	for page in docs/man/*.[1-8]; do \
		test ! -e $$page || install -Dm644 -t $(root)/share/man/man$${page##*.} $$page || exit; \
	done
	install -d $(root)/share/bash-completion/completions $(root)/$(ZSHDIR) $(root)/share/fish/vendor_completions.d
	GOOS= GOARCH= CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -o $(BIN)/host/ $(complete:%=./cmd/%)
	umask 022; for program in $(complete); do \
		$(BIN)/host/$$program completion bash >$(root)/share/bash-completion/completions/$$program && \
		$(BIN)/host/$$program completion zsh >$(root)/$(ZSHDIR)/_$$program && \
		$(BIN)/host/$$program completion fish >$(root)/share/fish/vendor_completions.d/$$program.fish || exit; \
	done

# Every file that install would put there, and none of the administrator's.
uninstall: ## take them away again, with the same DESTDIR and PREFIX
	@set -e; files=$$(mktemp -d); trap 'rm -rf "$$files"' EXIT; \
	$(MAKE) --no-print-directory install DESTDIR="$$files" >/dev/null; \
	cd "$$files"; find . ! -type d | while read -r file; do rm -fv "$(abspath $(DESTDIR)/)/$${file#./}"; done

# Packages hold what install installs: docs/packages.md.
deb: ZSHDIR = share/zsh/vendor-completions
deb rpm: ## packages for Debian or Fedora, into dist/
	rm -rf $(DIST)/$@
	$(MAKE) install PREFIX=/usr DESTDIR=$(abspath $(DIST)/$@/all) ZSHDIR=$(ZSHDIR)
	VERSION=$(VERSION) SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) ARCH=$$($(GO) env GOARCH) GO=$(GO) NFPM="env GOOS= GOARCH= $(tool) nfpm" \
		packaging/build $@ $(DIST)

# The tarball says what it is, for where there is no git.
name = vpnproviderd-$(VERSION)
dist: deb rpm ## both, the source of the last commit, and their checksums
	git archive --format=tar --prefix=$(name)/ --add-virtual-file="$(name)/packaging/release.mk:$$( \
		printf 'VERSION = %s\nSOURCE_DATE_EPOCH = %s' '$(VERSION)' $(SOURCE_DATE_EPOCH))" HEAD | gzip -9n >$(DIST)/$(name).tar.gz
	cd $(DIST) && sha256sum *$(VERSION)* >SHA256SUMS

clean: ## what build made
	rm -rf $(BIN) $(DIST)
