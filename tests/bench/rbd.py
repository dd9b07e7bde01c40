# Requests per second of a shell over an image of a Ceph cluster, against those
# of the image alone, with the rounds of throughput.py.  The cluster runs in a
# room, see tests/clients/room.py, and this program once more inside of it.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / 'scripts'), str(ROOT / 'tests/clients')]
# pylint: disable=wrong-import-position
import ceph_cluster  # noqa: E402
import room  # noqa: E402
from client import Client, talk  # noqa: E402
from common import Failure  # noqa: E402
from remote_disk import Skip, run  # noqa: E402
from subjects import GIB, MIB, Options, Place, RAW, SHELL  # noqa: E402
import throughput  # noqa: E402

SIZE = 4 * GIB
CELLS = [throughput.Cell('block layer', pattern, depth)
         for pattern in ('randread', 'randwrite') for depth in (1, 32)]
# A request takes a hundred times as long as over a file
FULL = throughput.Plan(sittings=5, rounds=6, seconds=0.3, fio_rounds=0,
                       fio_seconds=0)
QUICK = throughput.Plan(sittings=2, rounds=3, seconds=0.3, fio_rounds=0,
                        fio_seconds=0)


class RbdPlace(Place):
    """Images whose data an image of the cluster has."""

    def storage(self, storage: str) -> Options:
        pool, image = ceph_cluster.IMAGE.split('/')
        return {'driver': 'rbd', 'pool': pool, 'image': image}

    def create_shell(self) -> None:
        self.qemu_img('create', '-q', '-f', 'qcow2', '-o',
                      f'rw-backing=rbd:{ceph_cluster.IMAGE},'
                      'rw-backing-log=on', self.image(SHELL))


def measure(client: Path, build: Path, scratch: Path,
            quick: bool) -> list[dict[str, Any]]:
    """A row for each cell; none where there can be no room."""
    why = room.obstacle()
    if why:
        print(f'bench: {why}', flush=True)
        return []
    result = subprocess.run(
        room.command(build, Path(__file__).resolve(), client, build, scratch,
                     str(int(quick))), check=False, text=True,
        stdout=subprocess.PIPE,
        # The client is not where QEMU looks for its modules
        env={**os.environ, 'QEMU_MODULE_DIR': str(build / 'qemu')})
    if result.returncode:
        raise Failure(f'measuring over RBD failed:\n{result.stdout}')
    rows: list[dict[str, Any]] = json.loads(result.stdout)
    return rows


def measure_inside(client: Path, place: RbdPlace,
                   plan: throughput.Plan) -> list[dict[str, Any]]:
    """The same in the room, with the cluster."""
    place.create_shell()
    options = {subject: throughput.options_of(place, subject)
               for subject in (RAW, SHELL)}
    # All places that requests go to have data, and have been written to
    talk([client], [f'open {json.dumps(options[SHELL])}',
                    f'run write {throughput.REQUEST} '
                    f'{8 * SIZE // throughput.ALIGNMENT} 32 random', 'close'])
    found: throughput.Rounds = {cell: [] for cell in CELLS}
    for _ in range(plan.sittings):
        with contextlib.ExitStack() as stack:
            clients = {subject: stack.enter_context(Client([client]))
                       for subject in options}
            for subject, running in clients.items():
                running.ask(f'open {json.dumps(options[subject])}')
            for cell in CELLS:
                count = throughput.requests_in(clients, cell, plan.seconds)
                found[cell] += [
                    throughput.client_round(clients, cell, count,
                                            throughput.OURS)
                    for _ in range(plan.rounds)]
    return [throughput.summary(cell, rounds) for cell, rounds in found.items()]


def main() -> None:
    client, build, scratch = map(Path, sys.argv[1:4])
    try:
        cluster = ceph_cluster.Cluster(Path('/tmp'))
    except Skip as skip:
        print(f'bench: {skip}', file=sys.stderr)
        print([])
        return
    cluster.image.write_bytes(bytes(MIB))
    with cluster.serve():
        run('rbd', 'resize', '--no-progress', '--size', f'{SIZE // MIB}M',
            ceph_cluster.IMAGE)
        place = RbdPlace(build, scratch, SIZE)
        rows = measure_inside(client, place,
                              QUICK if sys.argv[4] == '1' else FULL)
    print(json.dumps(rows))


if __name__ == '__main__':
    main()
