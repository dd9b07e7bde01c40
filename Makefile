# Thin: brings the scratch tree up to date and hands over to ninja, to the
# scripts and to meson.  "make" builds, "make demo" and "make check" do so and
# show or test it, "make check-bases" tests it with other versions of QEMU, too,
# "make package" makes and tests Debian packages, "make check-clients" tests what
# other programs do, also with a newer libvirt, "make check-upstream" runs QEMU's
# own tests, "make crash" kills QEMU ROUNDS times and more, "make live-guest" puts
# shells over the disk of a Debian guest, "make crash-states" looks at STATES states
# that a crash can leave, "make check-model" goes through all states of the model of
# the write-intent log, "make damage-table" prints what becomes of damaged shells,
# "make fuzz" and "make check-sanitizers" look for mistakes in builds of their own,
# "make bench" measures, BENCH=quick makes that short; BUILD names another build
# directory.
#
# SPDX-License-Identifier: GPL-2.0-or-later

BUILD = build
override BUILD := $(abspath $(BUILD))

PROGRAMS = qemu-img qemu-io qemu-nbd qemu-system-x86_64 \
           storage-daemon/qemu-storage-daemon
NINJA = ninja -C $(BUILD)/qemu

# Clones in other directories share what ccache has
export CCACHE_BASEDIR = $(BUILD)
export CCACHE_NOHASHDIR = 1

all: $(BUILD)/configured
	scripts/import --sync $(BUILD)/qemu-src
	$(NINJA) $(PROGRAMS) modules
	@cd $(BUILD) && ln -sf $(PROGRAMS:%=qemu/%) .
	@# Where this program looks for modules
	@ln -sfn ../qemu-bundle $(BUILD)/qemu/storage-daemon/qemu-bundle

$(BUILD)/configured:
	./configure --build-dir=$(BUILD)

demo: all
	tests/demo/run --build $(BUILD)

check: all
	-scripts/install-packages $(BUILD)
	-scripts/fetch-servers $(BUILD)
	scripts/check $(BUILD)

check-bases: all
	scripts/install-packages $(BUILD)
	scripts/fetch-servers $(BUILD)
	scripts/check --all-bases $(BUILD)

check-clients: all
	scripts/install-packages --guest $(BUILD)
	scripts/fetch-servers $(BUILD)
	scripts/fetch-libvirt $(BUILD)
	tests/clients/libvirt --build $(BUILD)
	NEWER_LIBVIRT=$(BUILD)/libvirt tests/clients/libvirt --build $(BUILD)
	tests/clients/disk-on-rbd --build $(BUILD)

package: $(BUILD)/configured
	scripts/import --sync $(BUILD)/qemu-src
	scripts/install-packages --guest $(BUILD)
	scripts/make-package $(BUILD)
	scripts/check-package $(BUILD)

check-upstream: all
	scripts/check-upstream $(BUILD)

ROUNDS = 300
crash: all
	tests/crash/run --build $(BUILD) --rounds $(ROUNDS)
	tests/crash/run --build $(BUILD) --rounds $(ROUNDS) --log
	tests/crash/insert --build $(BUILD) --rounds $(ROUNDS)
	tests/crash/insert --build $(BUILD) --rounds $(ROUNDS) --iothread

GUEST_ROUNDS = 50
live-guest: all
	scripts/install-packages --guest $(BUILD)
	scripts/fetch-guest $(BUILD)
	tests/live-guest/run --build $(BUILD) --rounds $(GUEST_ROUNDS)

STATES = 100000
crash-states: all
	$(NINJA) tests/unit/test-qcow2-rw-backing-crash
	tests/crash-states/run --build $(BUILD) --states $(STATES)
	tests/crash-states/run --build $(BUILD) --states $(STATES) --log
	tests/crash-states/run --build $(BUILD) --states $(STATES) --log \
	    --faults

damage-table: all
	scripts/damage-table $(BUILD)

check-model: $(BUILD)/configured
	scripts/install-packages $(BUILD)
	scripts/check-model $(BUILD)/model

FUZZ_SECONDS = 600
fuzz: $(BUILD)/configured
	scripts/import --sync $(BUILD)/qemu-src
	scripts/install-packages --fuzz $(BUILD)
	scripts/fuzz --seconds=$(FUZZ_SECONDS) $(BUILD) $(BUILD)-fuzz

check-sanitizers: $(BUILD)/configured
	scripts/import --sync $(BUILD)/qemu-src
	scripts/check-sanitizers $(BUILD) $(BUILD)-sanitizers

bench: all
	scripts/install-packages --bench $(BUILD)
	-scripts/fetch-servers $(BUILD)
	tests/bench/run $(BENCH:%=--%) $(BUILD)

validate: $(BUILD)/configured
	scripts/validate $(BUILD)

install: all
	$(NINJA)
	DESTDIR=$(DESTDIR) $(BUILD)/qemu/pyvenv/bin/meson install --no-rebuild \
	    --quiet -C $(BUILD)/qemu

clean:
	if [ -e $(BUILD)/qemu/build.ninja ]; then $(NINJA) -t clean; fi
	rm -rf $(BUILD)/meson

distclean:
	rm -rf $(BUILD)

.PHONY: all demo check check-bases check-clients check-model check-sanitizers \
        check-upstream crash crash-states damage-table fuzz live-guest package \
        bench validate install clean distclean
