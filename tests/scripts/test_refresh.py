#!/usr/bin/env python3
#
# scripts/refresh takes a developer's commits back to patches/: nothing
# changes without a commit, an amended commit changes its own patch only, and
# files of ours enter whole, once, and are edited in the repository.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import support


class Refresh(support.Workshop):
    def setUp(self):
        super().setUp()
        self.import_tree()
        self.refresh()          # hand-written patches take their final form
        self.before = self.all_patches()

    def refresh(self, status=0):
        return self.script('refresh', self.tree, status=status)

    def changed(self):
        """The files of patches/ that are not what they were in setUp."""
        now = self.all_patches()
        return {name for name in now.keys() | self.before.keys()
                if now.get(name) != self.before.get(name)}

    def test_round_trip_changes_nothing(self):
        self.script('import', '--sync', self.tree)
        self.assertEqual(self.refresh(), '')
        self.assertEqual(self.changed(), set())

    def test_git_configuration_changes_nothing(self):
        for setting in ('diff.noprefix=true', 'diff.context=9',
                        'diff.algorithm=patience', 'core.abbrev=40',
                        'diff.renames=copies', 'color.ui=always',
                        'diff.mnemonicPrefix=true'):
            self.git('config', *setting.split('='))
        self.refresh()
        self.assertEqual(self.changed(), set())

    def test_same_patches_from_another_blob(self):
        # a point release changes files elsewhere: no hunk may tell
        self.replace(self.source / 'block/a.c', 'line 40\n', 'line forty\n')
        self.import_tree()
        self.refresh()
        self.assertEqual(self.changed(), set())

    def test_amended_commit_changes_its_patch(self):
        self.replace(self.tree / 'block/b.c', 'third hook', 'better hook')
        self.git('commit', '-qa', '--amend', '--no-edit')
        self.refresh()
        self.assertEqual(self.changed(), {'two.patch'})
        self.assertIn('+better hook\n', self.two.read_text())
        self.assertIn(f'From: {support.AUTHOR}\n', self.two.read_text())
        self.assertEqual(self.git('status', '--porcelain'), '')
        self.script('import', '--sync', self.tree)
        self.assertIn('better hook', self.in_tree('block/b.c'))

    def test_new_commit_gets_a_name_from_its_subject(self):
        self.replace(self.tree / 'block/b.c', 'line 30\n', 'more\nline 30\n')
        self.git('commit', '-qam', 'block/b: say more, *now*\n\nBody.\n')
        self.refresh()
        self.assertEqual(self.changed(),
                         {'series', 'block-b-say-more-now.patch'})
        self.assertEqual((self.patches / 'series').read_text(),
                         'one.patch\ntwo.patch\nblock-b-say-more-now.patch\n')

    def test_dropped_commit_drops_its_patch(self):
        self.git('reset', '-q', '--hard', 'HEAD~1')
        self.refresh()
        self.assertFalse(self.two.exists())
        self.assertEqual((self.patches / 'series').read_text(), 'one.patch\n')
        self.assertTrue((self.repo / 'tests/unit/test-ours.c').exists())

    def test_new_file_comes_to_the_repository(self):
        self.write(self.tree / 'block/new.c', 'new\n')
        (self.tree / 'block/new.c').chmod(0o755)
        self.git('add', 'block/new.c')
        self.git('commit', '-qm', 'block: add new\n\nBody.\n')
        self.refresh()
        new = self.repo / 'block/new.c'
        self.assertEqual(new.read_text(), 'new\n')
        self.assertTrue(new.stat().st_mode & 0o100)
        self.assertTrue((self.patches / 'block-add-new.patch').read_text()
                        .endswith('---\nOwn-file: block/new.c\n'))

    def use_pattern(self):
        """Let two.patch list tests/unit/test-ours.c by a pattern."""
        self.replace(self.two, 'test-ours.c', 'test-*.c')
        self.script('import', '--sync', self.tree)
        self.before = self.all_patches()

    def test_pattern_stays(self):
        self.use_pattern()
        self.assertEqual(self.refresh(), '')
        self.assertEqual(self.changed(), set())

    def test_new_file_of_a_pattern_needs_no_line(self):
        self.use_pattern()
        self.write(self.tree / 'tests/unit/test-new.c', 'new\n')
        self.git('add', 'tests')
        self.git('commit', '-q', '--amend', '--no-edit')
        self.refresh()
        self.assertEqual(self.changed(), set())
        self.assertEqual(
            (self.repo / 'tests/unit/test-new.c').read_text(), 'new\n')

    def test_file_of_a_pattern_in_another_commit_has_a_line(self):
        self.use_pattern()
        self.write(self.tree / 'tests/unit/test-new.c', 'new\n')
        self.git('add', 'tests')
        self.git('commit', '-qm', 'block: add new\n\nBody.\n')
        self.refresh()
        self.assertEqual(self.changed(), {'series', 'block-add-new.patch'})
        self.assertIn('Own-file: tests/unit/test-new.c\n',
                      (self.patches / 'block-add-new.patch').read_text())
        self.script('import', '--sync', self.tree)
        self.assertEqual(self.refresh(), '')

    def test_pattern_follows_a_new_subject(self):
        self.use_pattern()
        self.git('commit', '-q', '--amend', '-m', 'tests: say it better\n\n'
                 'Body.\n')
        self.refresh()
        self.assertIn('Own-file: tests/unit/test-*.c\n',
                      (self.patches / 'tests-say-it-better.patch').read_text())

    def test_pattern_goes_with_its_files(self):
        self.use_pattern()
        self.git('rm', '-q', 'tests/unit/test-ours.c')
        self.git('commit', '-q', '--amend', '--no-edit')
        self.refresh()
        self.assertNotIn('Own-file', self.two.read_text())

    def test_new_file_of_a_pattern_beside_a_commit(self):
        self.use_pattern()
        self.replace(self.tree / 'block/b.c', 'third hook', 'better hook')
        self.git('commit', '-qa', '--amend', '--no-edit')
        self.write(self.repo / 'tests/unit/test-new.c', 'new\n')
        self.script('import', '--sync', self.tree)
        self.refresh()
        self.assertEqual(self.changed(), {'two.patch'})
        self.script('import', '--sync', self.tree)
        self.assertIn('better hook', self.in_tree('block/b.c'))
        self.assertEqual(self.in_tree('tests/unit/test-new.c'), 'new\n')
        self.assertEqual(self.git('status', '--porcelain'), '')

    def test_own_file_that_differs_is_an_error(self):
        self.git('reset', '-q', '--soft', 'HEAD~1')
        self.write(self.tree / 'tests/unit/test-ours.c', 'edited here\n')
        self.git('add', '.')
        self.git('commit', '-qm', 'tests: add the second hook\n\nBody.\n')
        self.assertIn('tests/unit/test-ours.c differs', self.refresh(status=1))
        self.assertEqual(self.changed(), set())
        self.assertEqual(
            (self.repo / 'tests/unit/test-ours.c').read_text(), 'test\n')

    def test_repository_may_be_ahead_of_the_tree(self):
        self.write(self.repo / 'block/ours.c', 'ours, better\n')
        self.replace(self.tree / 'block/b.c', 'third hook', 'better hook')
        self.git('commit', '-qa', '--amend', '--no-edit')
        self.refresh()
        self.assertEqual(self.changed(), {'two.patch'})
        self.script('import', '--sync', self.tree)
        self.assertEqual(self.in_tree('block/ours.c'), 'ours, better\n')

    def test_own_file_enters_once(self):
        self.write(self.tree / 'block/ours.c', 'later\n')
        self.git('commit', '-qam', 'block: change ours\n\nBody.\n')
        output = self.refresh(status=1)
        self.assertIn('("block: change ours") changes block/ours.c', output)
        self.assertIn('("block: add the first hook")', output)
        self.assertEqual(self.changed(), set())

    def test_uncommitted_edit_is_an_error(self):
        self.replace(self.tree / 'block/b.c', 'line 30\n', 'edit\n')
        self.assertIn('uncommitted edits of block/b.c',
                      self.refresh(status=1))

    def test_message_needs_a_body(self):
        self.git('commit', '-q', '--amend', '-m', 'tests: only a subject')
        self.assertIn('must have a body', self.refresh(status=1))
        self.git('commit', '-q', '--amend', '-m', 'tests: a\n\nb\n---\nc')
        self.assertIn('without a line "---"', self.refresh(status=1))

    def test_two_commits_of_one_subject(self):
        self.replace(self.tree / 'block/b.c', 'line 30\n', 'edit\n')
        self.git('commit', '-qam', 'block: add the first hook\n\nBody.\n')
        self.assertIn('same subject', self.refresh(status=1))
        self.assertEqual(self.changed(), set())

    def test_merge_is_an_error(self):
        self.git('checkout', '-q', '--detach', 'HEAD~1')
        self.git('commit', '-q', '--allow-empty', '-m', 'side\n\nBody')
        side = self.git('rev-parse', 'HEAD').strip()
        self.git('checkout', '-q', 'rw-backing')
        self.git('merge', '-q', '--no-ff', '-m', 'merge', side)
        self.assertIn('has a merge', self.refresh(status=1))

    def test_only_the_default_base(self):
        self.write(self.source / 'VERSION', '10.2.0\n')
        other = self.place / 'other'
        self.script('import', '--base', '10.2', self.source, other)
        self.assertIn('is a tree of base 10.2',
                      self.script('refresh', other, status=1))


if __name__ == '__main__':
    support.main()
