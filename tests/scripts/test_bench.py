#!/usr/bin/env python3
#
# tests/bench reads what callgrind, fio and ninja say, makes slopes, ratios and
# tables of it, and knows which goals are missed; docs/performance.rst has the
# tables of the recorded results.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import json
import sys
import unittest
from pathlib import Path
from unittest import mock

import support
# pylint: disable=wrong-import-order
from common import Failure

sys.path.insert(0, str(support.ROOT / 'tests/bench'))
# pylint: disable=wrong-import-position
from client import Client, build_commands, talk  # noqa: E402
import creation  # noqa: E402
import instructions  # noqa: E402
import openclose  # noqa: E402
import page  # noqa: E402
import report  # noqa: E402
from subjects import (DATA_FILE, FILE, NULL, QCOW2, RAW, SHELL,  # noqa: E402
                      TIB, has_storage)
from throughput import (BLOCK_LAYER, NBD, Cell, Sample,  # noqa: E402
                        daemon_option, fio_command, fio_round, mean, ratios,
                        read_fio, summary)

PROFILE = '''# callgrind format
pid: 1
part: 2

desc: I1 cache: \n
desc: Timerange: Basic block 0 - 1
desc: Trigger: Client Request: read_4_KiB:some

events: Ir
summary: 4264904
'''
NINJA = '''ccache gcc -I. -o block.o -c ../qemu-src/block.c
gcc -MQ p/qemu-io.c.o -MF p/qemu-io.c.o.d -o p/qemu-io.c.o -c ../qemu-io.c
gcc -o other block.o
gcc -m64 -o qemu-io block.o p/qemu-io.c.o -lz
'''
FIO = '''fio: this may be slow
{"jobs": [{
 "read": {"total_ios": 300, "iops": 30.0,
  "clat_ns": {"mean": 2000.0, "percentile": {"99.000000": 7000}}},
 "write": {"total_ios": 100, "iops": 10.0,
  "clat_ns": {"mean": 6000.0, "percentile": {"99.000000": 9000}}}},
 {"read": {"total_ios": 500, "iops": 50.0,
  "clat_ns": {"mean": 2000.0, "percentile": {"99.000000": 8000}}},
 "write": {"total_ios": 0}}]}
'''


def row(shell, raw=100.0, **other):
    """Instructions of a request that has the goal 0.97, if not said else."""
    return {'storage': NULL, 'pattern': 'random', 'depth': 64, 'bitmaps': 0,
            'request': 'read 4 KiB', RAW: raw, DATA_FILE: 1000.0,
            SHELL: shell, **other}


ECHO = ['sed', '-u', 's/.*/{"a": "&"}/']


class ClientTest(unittest.TestCase):
    def test_build_commands(self):
        compile_object, link = build_commands(NINJA, Path('/s/client.c'),
                                              Path('/t/client'))
        self.assertEqual(' '.join(compile_object),
                         'gcc -MQ /t/client.o -MF /t/client.o.d -o '
                         '/t/client.o -c /s/client.c')
        self.assertEqual(' '.join(link), 'gcc -m64 -o /t/client block.o '
                         '/t/client.o -lz')

    def test_answers(self):
        self.assertEqual(talk(ECHO, ['x', 'y']), [{'a': 'x'}, {'a': 'y'}])

    def test_failure_names_the_command(self):
        with self.assertRaisesRegex(Failure, '"y":\ntrouble'):
            talk(['sh', '-c', 'read x; echo 1; read x; echo trouble >&2; '
                  'exit 1'], ['x', 'y', 'z'])

    def test_a_client_that_has_ended(self):
        with (Client(['true']) as client,
              self.assertRaisesRegex(Failure, 'true failed at "x"')):
            client.ask('x')

    def test_time_limit(self):
        with (mock.patch('client.LIMIT', 0.1),
              self.assertRaisesRegex(Failure, 'more than')):
            talk(['sleep', '60'], ['x'])


class Instructions(unittest.TestCase):
    def test_profile(self):
        self.assertEqual(instructions.read_profile(PROFILE),
                         ('read_4_KiB:some', 4264904))

    def test_profile_nobody_asked_for(self):
        self.assertIsNone(instructions.read_profile(
            PROFILE.replace('Client Request: read_4_KiB:some',
                            'Program termination')))

    def test_slope_leaves_out_what_is_not_repeated(self):
        counts = {}
        for kind in instructions.KINDS:
            label = kind.replace(' ', '_')
            counts[f'{label}:warm-up'] = 1
            for number, cost in enumerate((70, 7000, 60)):
                some = 5000 + cost * instructions.REQUESTS
                counts[f'{label}:some{number}'] = some
                counts[f'{label}:twice{number}'] = 2 * some - 5000
        self.assertEqual(set(instructions.slopes(counts, 3).values()), {70.0})

    def test_every_profile_has_its_label(self):
        for storage in (NULL, FILE):
            setting = instructions.Setting(storage, 'random', 64, 8, SHELL)
            script = instructions.script(setting, {'driver': 'x'})
            self.assertEqual(script[:2],
                             ['open {"driver": "x"}', 'bitmaps 8 65536'])
            labels = [line.split()[1] for line in script
                      if line.startswith('profile ')]
            instructions.slopes(dict.fromkeys(labels, 0), setting.repeats)
            self.assertEqual(len(labels), len(set(labels)))

    def test_bitmaps_have_to_be_persistent(self):
        place = mock.Mock()
        for subject, persistent, stored, good in (
                (SHELL, 8, 8, True), (SHELL, 0, 8, False),
                (SHELL, 8, 7, False), (RAW, 0, 0, True), (RAW, 8, 0, False)):
            place.stored_bitmaps.return_value = stored
            setting = instructions.Setting(NULL, 'random', 64, 8, subject)
            try:
                instructions.check_bitmaps(place, setting, persistent)
                self.assertTrue(good)
            except Failure:
                self.assertFalse(good)

    def test_rows(self):
        rows = instructions.merge(
            (instructions.Setting(NULL, 'random', 1, 0, subject),
             {'flush': count}) for subject, count in ((RAW, 9), (SHELL, 8)))
        self.assertEqual(rows, [{'storage': NULL, 'pattern': 'random',
                                 'depth': 1, 'bitmaps': 0,
                                 'request': 'flush', RAW: 9, SHELL: 8}])

    def test_goals(self):
        for good in (row(97.04), row(100.04, bitmaps=1), row(99.0, depth=1),
                     row(100.1, request='write zeroes 64 KiB'),
                     row(100.0, request='flush'), row(200.0, storage=FILE)):
            self.assertEqual(instructions.missed([good]), [])
        for bad in (row(97.1), row(100.1, bitmaps=1), row(100.1, depth=1),
                    row(100.1, request='flush'),
                    row(97.0, **{DATA_FILE: 96.0})):
            self.assertEqual(len(instructions.missed([bad])), 1, bad)

    def test_quick_decides_goals(self):
        self.assertEqual({setting.storage for setting
                          in instructions.settings(quick=True)}, {NULL})
        self.assertFalse(has_storage(QCOW2, NULL))


class Throughput(unittest.TestCase):
    def test_fio(self):
        self.assertEqual(read_fio(FIO), [(Sample(25000, None, 3.0, 9.0), 400),
                                         (Sample(20000, None, 2.0, 8.0), 500)])

    def test_fio_runs_one_after_the_other(self):
        words = fio_command(NBD[0], 0.2, 1, ['a', 'b', 'b', 'a'])
        self.assertEqual([word for word in words if 'uri' in word],
                         ['--uri=a', '--uri=b', '--uri=b', '--uri=a'])
        self.assertEqual(words.count('--stonewall'), 4)

    def test_processor_time_is_of_all_runs(self):
        daemons = {subject: mock.Mock(uri=subject) for subject in (RAW, SHELL)}
        daemons[RAW].cpu_seconds.side_effect = [1.0, 1.0004]
        daemons[SHELL].cpu_seconds.side_effect = [2.0, 2.0005]
        result = mock.Mock(returncode=0, stdout=FIO)
        with mock.patch('throughput.subprocess.run', return_value=result):
            found = fio_round(daemons, NBD[0], 0.2, 1, [RAW, SHELL])
        self.assertAlmostEqual(found[RAW].cpu_us, 1.0)
        self.assertAlmostEqual(found[SHELL].cpu_us, 1.0)

    def test_mean(self):
        self.assertEqual(mean([Sample(1, 4), Sample(2, 8)]), Sample(1.5, 6))

    def test_ratios_are_of_rounds(self):
        rounds = [{RAW: Sample(10), SHELL: Sample(20)},
                  {RAW: Sample(99, 8), SHELL: Sample(100, 4)},
                  {RAW: Sample(100), SHELL: Sample(10)},
                  {RAW: Sample(100), QCOW2: Sample(1000)}]
        self.assertEqual(ratios(rounds, SHELL, 'request_us'), [0.5, 0.99, 10])
        self.assertEqual(ratios(rounds, SHELL, 'cpu_us'), [2.0])
        self.assertEqual(ratios(rounds, SHELL, 'p99_us'), [])
        found = summary(Cell('NBD', 'randread', 32), rounds)
        self.assertEqual(found['request_us'], {SHELL: 0.99, QCOW2: 0.1})
        self.assertEqual((found['raw_request_us'], found['rounds'],
                          found['quartiles']), (99.5, 3, [0.5, 10]))
        self.assertNotIn('p99_us', found)

    def test_commas(self):
        self.assertEqual(daemon_option({'a': 'b', 'c.d': 'e,f'}),
                         'a=b,c.d=e,,f')


class OpenClose(unittest.TestCase):
    def test_stored(self):
        self.assertEqual(openclose.Setting(TIB, 10, '10 %').stored, 20 << 20)

    def test_settings(self):
        some = openclose.settings(quick=True)
        self.assertEqual(len([it for it in some if not it.bitmaps]), 1)
        self.assertLess(set(some), set(openclose.settings(quick=False)))

    def test_room(self):
        large = openclose.Setting(16 * TIB, 100, '10 %')
        with mock.patch('openclose.shutil.disk_usage') as usage:
            usage.return_value.free = 1
            self.assertFalse(openclose.fits(large, Path('.')))
            self.assertTrue(openclose.fits(
                openclose.Setting(TIB, 100, '10 %'), Path('.')))

    def test_order(self):
        self.assertEqual(openclose.order(1), [SHELL, QCOW2, QCOW2, SHELL])
        self.assertEqual(openclose.order(0), [SHELL, QCOW2])

    def test_times_faster(self):
        ours = [{'open_ms': 1, 'close_ms': 1}, {'open_ms': 50, 'close_ms': 0}]
        theirs = [{'open_ms': 3, 'close_ms': 3}, {'open_ms': 0,
                                                  'close_ms': 50}]
        self.assertEqual(openclose.speed_up(ours, theirs,
                                            ['open_ms', 'close_ms']), 2.0)
        self.assertEqual(openclose.speed_up(ours, theirs, ['open_ms']), 1.5)
        self.assertEqual(openclose.medians(ours), {'open_ms': 25.5,
                                                   'close_ms': 0.5})


def recorded():
    """Results of all sections, made up."""
    cells = [{'client': cell.client, 'pattern': cell.pattern,
              'depth': cell.depth, 'connections': cell.connections,
              'raw_request_us': 10, 'quartiles': [0.9, 1.1],
              'request_us': {SHELL: 0.99, DATA_FILE: 0.5, QCOW2: 0.25},
              'cpu_us': {SHELL: 0.97}} for cell in BLOCK_LAYER]
    shells = [{'size': size, 'storage': creation.SPARSE, 'subject': SHELL,
               'create_ms': 5.0, 'created_kib': 192, 'grow_ms': grow,
               'grown_kib': 192} for size, grow in ((TIB, 2.0),
                                                    (64 * TIB, 8.0))]
    times = {'open_ms': 1, 'close_ms': 2, 'cpu_ms': 3, 'peak_mib': 4}
    opened = {'size': TIB, 'bitmaps': 1, 'dirty': '10 %', 'stored_mib': 20,
              SHELL: times, QCOW2: times, 'times_faster': 3.5,
              'times_less_cpu': 0.9}
    about = {'command': 'make bench', 'version': 'V', 'machine': 'M',
             'date': 'D', 'took': 'T'}
    rows = {'instructions': [row(97.0), row(200.0, storage=FILE)],
            'throughput': cells, 'rbd': cells, 'creation': shells,
            'openclose': [opened],
            'guard': [{'kind': 'mtime', 'auto': times, 'off': times}]}
    return {section: {'about': about, 'rows': some}
            for section, some in rows.items()}


class Report(unittest.TestCase):
    def test_table(self):
        self.assertEqual(report.table(['a', 'b'], [['ccc', 'd']]),
                         '===  =\na    b\n===  =\nccc  d\n===  =')

    def test_text(self):
        text = report.text(recorded())
        self.assertIn('``make bench``, V, M, D, T', text)
        self.assertRegex(text, r'read 4 KiB +random +64 +0 +100 +1000 +97 +'
                               r'0\.970 +0\.97')
        self.assertRegex(text, r'block layer +randread +1 +1 +100000 +0\.990 +'
                               r'0\.90-1\.10 +0\.970 +0\.500 +0\.250')
        self.assertRegex(text, r'\nrandread +1 +100000 +0\.990 +0\.90-1\.10 +'
                               r'0\.970\n')
        self.assertRegex(text, r'1 TiB +1 +10 % +20 .* 3\.50 +0\.90')
        self.assertRegex(text, r'mtime( +[123]\.00){6}')

    def test_goals(self):
        lines = report.goals_table(recorded()).splitlines()[3:-1]
        self.assertEqual([line.split()[-2:] for line in lines], [
            ['0.97', 'yes'], ['0.097', 'yes'],
            ['0.99', 'yes'], ['0.97', 'no'], ['1.98', 'yes'],
            ['1', 'yes'], ['4', 'no'], ['192', 'yes'],
            ['3.5', 'yes'], ['0.9', 'no'], ['3.5', 'yes']])

    def test_one_section(self):
        results = {'guard': recorded()['guard']}
        self.assertNotIn('Goals', report.text(results))
        self.assertEqual(report.missed(results), [])

    def test_missed(self):
        results = recorded()
        self.assertEqual(report.missed(results), [])
        results['instructions']['rows'].append(row(98.0))
        results['creation']['rows'][0]['created_kib'] = 260
        self.assertEqual(len(report.missed(results)), 2)

    def test_large_shells(self):
        found = recorded()['creation']['rows'][0]
        self.assertEqual(creation.missed([found]), [])
        self.assertTrue(creation.missed([{**found, 'created_kib': 260}]))
        self.assertTrue(creation.missed([{**found, 'grown_kib': 260}]))
        self.assertEqual(creation.missed([{**found, 'grown_kib': 260,
                                           'subject': QCOW2}]), [])


class Page(unittest.TestCase):
    TEXT = 'x\n\n.. begin guard\n\nold\n\n.. end guard\n\ny\n'

    def test_tables_are_filled_in(self):
        text = page.fill(self.TEXT, recorded())
        self.assertNotIn('old', text)
        self.assertRegex(text, r'(?s)\Ax\n\n.*mtime.*``make bench``.*\ny\n\Z')
        self.assertEqual(page.fill(text, recorded()), text)

    def test_unknown_tables(self):
        with self.assertRaisesRegex(Failure, 'no table sums'):
            page.fill(self.TEXT.replace('guard', 'sums'), recorded())

    def test_tables_that_are_not_there_yet(self):
        self.assertIn('Not recorded yet', page.fill(self.TEXT, {}))

    def test_record_can_be_read(self):
        self.assertEqual(json.loads(page.dump(recorded())), recorded())

    def test_the_page_has_what_is_recorded(self):
        text = (support.ROOT / 'docs/performance.rst').read_text()
        results = json.loads(
            (support.ROOT / 'docs/performance.json').read_text())
        self.assertEqual(set(page.places(text)),
                         {page.GOALS, *report.TABLES})
        self.assertTrue(page.fill(text, results) == text,
                        'run tests/bench/record')


if __name__ == '__main__':
    support.main()
