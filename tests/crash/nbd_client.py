"""
A client for NBD servers that get killed: requests are sent before the replies
to others have come, and it is known which have been answered.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import socket
import struct
from typing import List, Tuple

WRITE, DISCONNECT, FLUSH, TRIM, WRITE_ZEROES, BLOCK_STATUS = 1, 2, 3, 4, 6, 7
FLAG_NO_HOLE = 2
# What base:allocation says
STATE_ZERO = 2

OPTION_MAGIC = b'IHAVEOPT'
OPT_GO, OPT_STRUCTURED_REPLY, OPT_SET_META_CONTEXT = 7, 8, 10
REP_ACK, REP_META_CONTEXT = 1, 4
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668e33ef
CHUNK_BLOCK_STATUS = 5


class ServerError(Exception):
    """The server refuses a request."""


class Client:
    """
    A connection to an export.  All methods raise OSError if the server is
    gone, and ServerError for an error that it reports.
    """

    def __init__(self, path: str, export: str, context: str = '') -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._cookie = 0
        self._socket.connect(path)
        name = struct.pack('>I', len(export)) + export.encode()
        self._receive(18)
        self._socket.sendall(struct.pack('>I', 3))
        if context:
            self._option(OPT_STRUCTURED_REPLY, b'')
            query = struct.pack('>II', 1, len(context)) + context.encode()
            if not self._option(OPT_SET_META_CONTEXT, name + query):
                raise ServerError(f'no context {context}')
        self._option(OPT_GO, name + struct.pack('>H', 0))

    def _receive(self, length: int) -> bytes:
        data = b''
        while len(data) < length:
            part = self._socket.recv(length - len(data))
            if not part:
                raise ConnectionError('the server is gone')
            data += part
        return data

    def _option(self, option: int, data: bytes) -> bool:
        """Returns true if the answer has a context."""
        self._socket.sendall(
            OPTION_MAGIC + struct.pack('>II', option, len(data)) + data)
        found = False
        while True:
            _, _, kind, length = struct.unpack('>QIII', self._receive(20))
            data = self._receive(length)
            if kind & 0x80000000:
                raise ServerError(data.decode(errors='replace'))
            found |= kind == REP_META_CONTEXT
            if kind == REP_ACK:
                return found

    def send(self, command: int, offset: int = 0, length: int = 0,
             data: bytes = b'', flags: int = 0) -> int:
        """Send a request; returns its cookie."""
        self._cookie += 1
        self._socket.sendall(
            struct.pack('>IHHQQI', REQUEST_MAGIC, flags, command, self._cookie,
                        offset, length or len(data)) + data)
        return self._cookie

    def reply(self) -> int:
        """The cookie of the next request that is answered."""
        magic, error, cookie = struct.unpack('>IIQ', self._receive(16))
        if magic != SIMPLE_REPLY_MAGIC:
            raise ServerError(f'unexpected magic {magic:x}')
        if error:
            raise ServerError(f'error {error} of request {cookie}')
        assert isinstance(cookie, int)
        return cookie

    def block_status(self, size: int) -> List[Tuple[int, int, int]]:
        """Offset, length and flags of each part of the disk."""
        result = []
        offset = 0
        while offset < size:
            self.send(BLOCK_STATUS, offset, size - offset)
            magic, _, kind, _, length = struct.unpack('>IHHQI',
                                                      self._receive(20))
            data = self._receive(length)
            if magic != STRUCTURED_REPLY_MAGIC or kind != CHUNK_BLOCK_STATUS:
                raise ServerError(f'no block status at {offset}')
            for part, flags in struct.iter_unpack('>II', data[4:]):
                result.append((offset, part, flags))
                offset += part
        return result

    def close(self) -> None:
        """Tell the server, if it is there."""
        try:
            self.send(DISCONNECT)
        except OSError:
            pass
        self._socket.close()
