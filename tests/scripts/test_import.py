#!/usr/bin/env python3
#
# scripts/import makes the tree from source and series, keeps it up to date
# touching only what differs, applies with offsets and never with fuzz, and
# never throws a developer's edits away.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import os
import shutil

import support


class Import(support.Workshop):
    def test_one_commit_for_each_patch(self):
        self.import_tree()
        self.assertEqual(
            self.git('log', '--reverse', '--format=%an <%ae> %s').split('\n'),
            ['import <import@localhost> QEMU 10.0.9',
             f'{support.AUTHOR} block: add the first hook',
             f'{support.AUTHOR} tests: add the second hook', ''])
        self.assertEqual(
            self.git('diff', '--name-status', 'base', 'HEAD'),
            'M\tblock/a.c\nM\tblock/b.c\nA\tblock/ours.c\n'
            'A\ttests/unit/test-ours.c\n')
        self.assertEqual(
            self.git('show', '--format=', '--name-only', 'HEAD~1'),
            'block/a.c\nblock/ours.c\n')
        self.assertIn('line 10\nfirst hook\nline 11\n',
                      self.in_tree('block/a.c'))
        self.assertEqual(self.git('status', '--porcelain'), '')

    def test_files_that_qemu_ignores_are_source_too(self):
        self.import_tree()
        self.assertIn('debian/a.patch', self.git('ls-tree', '-r', 'base'))

    def test_same_input_gives_same_commits(self):
        self.import_tree()
        first = self.git('rev-parse', 'HEAD')
        shutil.rmtree(self.tree)
        self.import_tree()
        self.assertEqual(self.git('rev-parse', 'HEAD'), first)

    def test_tarball(self):
        tarball = self.place / 'qemu.tar.xz'
        self.run_command('tar', '-cJf', tarball, '-C', self.place,
                         self.source.name)
        self.script('import', tarball, self.tree)
        self.assertIn('first hook', self.in_tree('block/a.c'))

    def test_offset_is_accepted(self):
        self.replace(self.source / 'block/a.c', 'line 1\n',
                     'new\n' * 5 + 'line 1\n')
        self.import_tree()
        self.assertIn('line 10\nfirst hook\n', self.in_tree('block/a.c'))

    def test_fuzz_is_refused(self):
        self.replace(self.source / 'block/a.c', 'line 8\n', 'changed\n')
        output = self.import_tree(status=1)
        self.assertIn('patches/one.patch does not apply without fuzz to '
                      'QEMU 10.0.9 at block/a.c:8', output)
        self.assertIn('Remedy: ', output)
        self.assertFalse(self.tree.exists())

    def test_half_done_import_is_repaired(self):
        self.write(self.tree.with_name('qemu-src.partial') / '.git/HEAD', '?')
        self.import_tree()
        self.assertEqual(self.git('status', '--porcelain'), '')
        self.assertFalse(self.tree.with_name('qemu-src.partial').exists())

    def test_source_of_another_base_is_refused(self):
        self.write(self.source / 'VERSION', '9.2.0\n')
        self.assertIn('is QEMU 9.2.0, and base 10.0 is 10.0.x',
                      self.import_tree(status=1))

    def test_source_that_is_not_qemu_is_refused(self):
        (self.source / 'VERSION').unlink()
        self.assertIn('has no file VERSION', self.import_tree(status=1))

    def test_missing_source(self):
        self.assertIn('no such file', self.script(
            'import', self.place / 'nowhere', self.tree, status=1))

    def test_broken_tarball(self):
        self.write(self.place / 'qemu.tar.xz', 'not a tarball')
        self.assertIn('cannot be unpacked', self.script(
            'import', self.place / 'qemu.tar.xz', self.tree, status=1))

    def test_foreign_directory_is_left_alone(self):
        self.write(self.tree / 'precious', 'mine')
        self.assertIn('was not made by', self.import_tree(status=1))
        self.assertEqual(self.in_tree('precious'), 'mine')

    def test_missing_own_file(self):
        (self.repo / 'block/ours.c').unlink()
        self.assertIn('patches/one.patch lists block/ours.c',
                      self.import_tree(status=1))

    def test_own_file_that_qemu_has(self):
        self.write(self.source / 'block/ours.c', 'theirs\n')
        self.assertIn('patches/one.patch lists block/ours.c as a file of ours',
                      self.import_tree(status=1))

    def test_pattern(self):
        self.replace(self.two, 'test-ours.c', 'test-*.c')
        self.write(self.repo / 'tests/unit/test-more.c', 'more\n')
        self.write(self.repo / 'tests/unit/test-more.c~', 'less\n')
        self.write(self.repo / 'tests/unit/deep/test-more.c', 'deep\n')
        self.import_tree()
        self.assertEqual(
            self.git('show', '--format=', '--name-only', 'HEAD'),
            'block/a.c\nblock/b.c\ntests/unit/test-more.c\n'
            'tests/unit/test-ours.c\n')

    def test_name_goes_before_pattern(self):
        self.replace(self.two, 'tests/unit/test-ours.c', '*/*.c\n'
                     'Own-file: tests/unit/test-ours.c')
        self.write(self.repo / 'block/more.c', 'more\n')
        self.import_tree()
        self.assertEqual(
            self.git('log', '--format=%s', '--', 'block/ours.c'),
            'block: add the first hook\n')
        self.assertEqual(
            self.git('log', '--format=%s', '--', 'block/more.c'),
            'tests: add the second hook\n')

    def test_pattern_of_no_file(self):
        self.replace(self.two, 'test-ours.c', 'check-*.c')
        self.assertIn('patches/two.patch lists tests/unit/check-*.c',
                      self.import_tree(status=1))

    def test_file_of_two_patterns(self):
        self.replace(self.one, 'block/ours.c', 'block/o*.c')
        self.replace(self.two, 'tests/unit/test-ours.c', 'block/*.c')
        self.assertIn('patches/two.patch lists block/ours.c as a file of ours',
                      self.import_tree(status=1))

    def test_own_program_stays_a_program(self):
        (self.repo / 'block/ours.c').chmod(0o755)
        self.import_tree()
        self.assertTrue(os.access(self.tree / 'block/ours.c', os.X_OK))


class Update(support.Workshop):
    def setUp(self):
        super().setUp()
        self.import_tree()
        for path in self.tree.glob('block/*'):
            os.utime(path, (1, 1))
        self.git('update-index', '-q', '--refresh')

    def touched(self):
        """The files in block/ that were written since setUp."""
        return sorted(path.name for path in self.tree.glob('block/*')
                      if path.stat().st_mtime != 1)

    def test_nothing_new_touches_nothing(self):
        head = self.git('rev-parse', 'HEAD')
        self.assertEqual(self.import_tree(), '')
        self.assertEqual(self.script('import', '--sync', self.tree), '')
        self.assertEqual(self.touched(), [])
        self.assertEqual(self.git('rev-parse', 'HEAD'), head)

    def test_own_edit_touches_that_file(self):
        self.write(self.repo / 'block/ours.c', 'ours, better\n')
        self.script('import', '--sync', self.tree)
        self.assertEqual(self.touched(), ['ours.c'])
        self.assertEqual(self.in_tree('block/ours.c'), 'ours, better\n')
        self.assertEqual(self.git('status', '--porcelain'), '')

    def test_new_file_of_a_pattern_comes_and_goes(self):
        self.replace(self.one, 'block/ours.c', 'block/*.c')
        self.script('import', '--sync', self.tree)
        self.write(self.repo / 'block/new.c', 'new\n')
        self.script('import', '--sync', self.tree)
        self.assertEqual(self.touched(), ['new.c'])
        self.assertEqual(self.git('status', '--porcelain'), '')
        (self.repo / 'block/new.c').unlink()
        self.script('import', '--sync', self.tree)
        self.assertFalse((self.tree / 'block/new.c').exists())
        self.assertEqual(self.touched(), [])

    def test_own_file_edited_in_the_tree_is_overwritten(self):
        self.write(self.tree / 'block/ours.c', 'edited in the wrong place\n')
        self.script('import', '--sync', self.tree)
        self.assertEqual(self.in_tree('block/ours.c'), 'ours\n')

    def test_changed_patch_touches_what_it_changes(self):
        self.replace(self.two, 'third hook', 'better hook')
        self.script('import', '--sync', self.tree)
        self.assertEqual(self.touched(), ['b.c'])
        self.assertIn('better hook', self.in_tree('block/b.c'))

    def test_dropped_patch_takes_its_files_along(self):
        self.write(self.patches / 'series', 'two.patch\n')
        self.script('import', '--sync', self.tree)
        self.assertFalse((self.tree / 'block/ours.c').exists())
        self.assertNotIn('first hook', self.in_tree('block/a.c'))

    def test_new_point_release(self):
        self.write(self.source / 'VERSION', '10.0.10\n')
        self.replace(self.source / 'block/b.c', 'line 1\n', 'line one\n')
        self.import_tree()
        self.assertEqual(self.git('show', '-s', '--format=%s', 'base'),
                         'QEMU 10.0.10\n')
        self.assertIn('line one', self.in_tree('block/b.c'))
        self.assertEqual(self.touched(), ['b.c'])

    def test_bad_point_release_changes_nothing(self):
        head = self.git('rev-parse', 'HEAD', 'base')
        self.replace(self.source / 'block/a.c', 'line 8\n', 'changed\n')
        self.import_tree(status=1)
        self.assertEqual(self.git('rev-parse', 'HEAD', 'base'), head)
        self.script('import', '--sync', self.tree)
        self.assertEqual(self.touched(), [])

    def test_uncommitted_edit_stays(self):
        self.replace(self.tree / 'block/b.c', 'line 30\n', 'edit\n')
        self.write(self.repo / 'block/ours.c', 'ours, better\n')
        self.script('import', '--sync', self.tree)
        self.assertIn('edit\n', self.in_tree('block/b.c'))
        self.assertEqual(self.in_tree('block/ours.c'), 'ours, better\n')

    def test_uncommitted_edit_in_the_way_is_refused(self):
        self.replace(self.tree / 'block/b.c', 'line 30\n', 'edit\n')
        self.replace(self.two, 'third hook', 'better hook')
        output = self.script('import', '--sync', self.tree, status=1)
        self.assertIn('has uncommitted edits', output)
        self.assertIn('scripts/refresh', output)
        self.assertIn('edit\n', self.in_tree('block/b.c'))

    def test_commit_stays_and_own_files_follow(self):
        self.replace(self.tree / 'block/b.c', 'line 30\n', 'edit\n')
        self.git('commit', '-qam', 'block: more\n\nBody')
        head = self.git('rev-parse', 'HEAD')
        self.write(self.repo / 'block/ours.c', 'ours, better\n')
        self.script('import', '--sync', self.tree)
        self.assertEqual(self.git('rev-parse', 'HEAD'), head)
        self.assertEqual(self.in_tree('block/ours.c'), 'ours, better\n')

    def test_commit_and_changed_patches_are_refused(self):
        self.replace(self.tree / 'block/b.c', 'line 30\n', 'edit\n')
        self.git('commit', '-qam', 'block: more\n\nBody')
        head = self.git('rev-parse', 'HEAD')
        self.replace(self.two, 'third hook', 'better hook')
        self.assertIn('has commits that patches/ has not', self.script(
            'import', '--sync', self.tree, status=1))
        self.assertEqual(self.git('rev-parse', 'HEAD'), head)

    def test_rebase_under_way_is_left_alone(self):
        (self.tree / '.git/rebase-merge').mkdir()
        self.assertIn('rebase', self.script('import', '--sync', self.tree,
                                            status=1))

    def test_sync_needs_a_tree(self):
        self.assertIn('run ./configure', self.script(
            'import', '--sync', self.place / 'nowhere', status=1))


class Adaptation(support.Workshop):
    REASON = 'Adapts one.patch to 10.2: the call has another name there.\n\n'

    def setUp(self):
        super().setUp()
        self.write(self.source / 'VERSION', '10.2.1\n')
        self.adapt = self.patches / 'adapt/10.2'

    def import_tree(self, status=0):
        return self.script('import', '--base', '10.2', self.source, self.tree,
                           status=status)

    def test_on_top_in_the_same_commit(self):
        ours = self.repo / 'block/ours.c'
        self.write(ours, support.numbered(20))
        self.write(self.adapt / 'one.patch', self.REASON
                   + support.add_after('block/ours.c', 10, 'on 10.2'))
        self.import_tree()
        self.assertIn('line 10\non 10.2\n', self.in_tree('block/ours.c'))
        self.assertEqual(self.git('rev-list', '--count', 'base..HEAD'), '2\n')
        self.replace(ours, 'line 1\n', 'line one\n')
        self.script('import', '--sync', self.tree)
        self.assertTrue(self.in_tree('block/ours.c').startswith('line one\n'))
        self.assertIn('line 10\non 10.2\n', self.in_tree('block/ours.c'))

    def test_in_place_of_the_hunks(self):
        self.replace(self.source / 'block/a.c', 'line 9\n', 'line nine\n')
        self.import_tree(status=1)
        hunks = support.add_after('block/a.c', 10, 'first hook')
        self.write(self.adapt / 'one.hunks.patch', self.REASON
                   + hunks.replace(' line 9\n', ' line nine\n'))
        self.import_tree()
        self.assertIn('line nine\nline 10\nfirst hook\n',
                      self.in_tree('block/a.c'))
        self.assertEqual(self.in_tree('block/ours.c'), 'ours\n')

    def test_other_base_does_without(self):
        self.write(self.source / 'VERSION', '10.0.9\n')
        self.write(self.adapt / 'one.patch', self.REASON
                   + support.add_after('block/b.c', 10, 'only 10.2'))
        super().import_tree()
        self.assertNotIn('only 10.2', self.in_tree('block/b.c'))

    def test_newer_base(self):
        """It has those of the one before, but for its own."""
        self.write(self.source / 'VERSION', '11.1.0\n')
        self.write(self.adapt / 'one.patch', self.REASON
                   + support.add_after('block/b.c', 10, 'on 10.2'))
        args = ('import', '--base', '11.1', self.source)
        self.script(*args, self.tree)
        self.assertIn('line 10\non 10.2\n', self.in_tree('block/b.c'))
        self.write(self.patches / 'adapt/11.1/one.patch', self.REASON
                   + support.add_after('block/b.c', 10, 'on 11.1'))
        self.script('import', '--sync', self.tree)
        self.assertIn('line 10\non 11.1\n', self.in_tree('block/b.c'))
        self.assertNotIn('on 10.2', self.in_tree('block/b.c'))

    def test_adaptation_that_does_not_apply_is_named(self):
        self.write(self.adapt / 'one.patch', self.REASON
                   + support.add_after('block/none.c', 10, 'x'))
        self.assertIn('patches/adapt/10.2/one.patch does not apply',
                      self.import_tree(status=1))

    def test_a_tree_has_one_base(self):
        self.import_tree()
        self.assertIn('is a tree of base 10.2', self.script(
            'import', '--base', '10.0', self.source, self.tree, status=1))


if __name__ == '__main__':
    support.main()
