"""
Build the demo guest's initramfs: a static busybox, the init script, and the
kernel modules that bring a virtio disk with ext4 to life.  The archive is
written as bytes, so that neither root nor cpio nor depmod is needed.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import lzma
import re
import stat
from pathlib import Path
from typing import Dict, List, Tuple


# What the guest needs, in the order of loading; dependencies are looked up.
MODULES = ('virtio_pci', 'virtio_blk', 'crc32c_generic', 'ext4')

# ext4 asks the crypto API for it by algorithm name, which no module
# dependency shows; kernels that have it in their own library lack the module.
OPTIONAL_MODULES = ('crc32c_generic',)


class ModuleTree:
    """The modules of one kernel, as its Debian package has them."""

    # pylint: disable=too-few-public-methods

    def __init__(self, root: Path) -> None:
        self._files = {
            self._name(path): path
            for pattern in ('*.ko', '*.ko.xz')
            for path in root.glob(f'kernel/**/{pattern}')
        }
        self._builtin = {
            self._name(Path(line))
            for line in (root / 'modules.builtin').read_text().split()
        }

    @staticmethod
    def _name(path: Path) -> str:
        """The name the kernel uses: file names may have dashes for it."""
        return path.name.split('.')[0].replace('-', '_')

    def resolve(self, names: Tuple[str, ...]) -> Dict[str, bytes]:
        """Return the modules to load, dependencies first."""
        loaded: Dict[str, bytes] = {}
        for name in names:
            self._add(name, loaded)
        return loaded

    def _add(self, name: str, loaded: Dict[str, bytes]) -> None:
        if name in loaded or name in self._builtin:
            return
        if name not in self._files:
            if name in OPTIONAL_MODULES:
                return
            raise FileNotFoundError(f'the guest kernel has no module {name}')
        module = self._read(self._files[name])
        for needed in self._depends(module):
            self._add(needed, loaded)
        loaded[name] = module

    @staticmethod
    def _read(path: Path) -> bytes:
        data = path.read_bytes()
        return lzma.decompress(data) if path.suffix == '.xz' else data

    @staticmethod
    def _depends(module: bytes) -> List[str]:
        """Read the dependencies from the module itself: the file
        modules.dep is made on installation and not in the package."""
        match = re.search(rb'\0depends=([^\0]*)\0', module)
        found = match.group(1).decode() if match else ''
        return [name.replace('-', '_') for name in found.split(',') if name]


class Cpio:
    """A cpio archive in the "newc" format, the one the kernel unpacks."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._entries = 0

    def add(self, name: str, mode: int, data: bytes = b'',
            device: Tuple[int, int] = (0, 0)) -> None:
        """Append one entry; @mode has the file type as in st_mode."""
        self._entries += 1
        encoded = name.encode() + b'\0'
        fields = (self._entries, mode, 0, 0, 1, 0, len(data), 0, 0,
                  device[0], device[1], len(encoded), 0)
        self._data += b'070701' + b''.join(b'%08x' % f for f in fields)
        self._data += encoded
        self._align()
        self._data += data
        self._align()

    def _align(self) -> None:
        self._data += bytes(-len(self._data) % 4)

    def finish(self) -> bytes:
        """Return the archive with its trailer."""
        self.add('TRAILER!!!', 0)
        return bytes(self._data)


def build(busybox: Path, init: Path, modules: Path,
          names: Tuple[str, ...] = MODULES) -> bytes:
    """Return an initramfs that runs @init with @busybox, and with those of
    @modules that @names says."""
    archive = Cpio()
    for directory in ('bin', 'dev', 'mnt', 'modules', 'proc', 'sys'):
        archive.add(directory, stat.S_IFDIR | 0o755)
    # Without it the kernel starts init with no standard input and output.
    archive.add('dev/console', stat.S_IFCHR | 0o600, device=(5, 1))
    archive.add('bin/busybox', stat.S_IFREG | 0o755, busybox.read_bytes())
    archive.add('init', stat.S_IFREG | 0o755, init.read_bytes())

    order = ModuleTree(modules).resolve(names)
    for name, data in order.items():
        archive.add(f'modules/{name}.ko', stat.S_IFREG | 0o644, data)
    listing = ''.join(f'{name}.ko\n' for name in order)
    archive.add('modules/order', stat.S_IFREG | 0o644, listing.encode())
    return archive.finish()
