#!/usr/bin/env python3
#
# scripts/validate passes a good series and finds each thing that can be
# wrong with one; scripts/export writes mails from which git am makes the
# same tree.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import support


class Validate(support.Workshop):
    def setUp(self):
        super().setUp()
        self.import_tree()

    def validate(self, problem=None):
        """Run scripts/validate, which must find just this @problem."""
        output = self.script('validate', status=1 if problem else 0)
        found = [line for line in output.splitlines() if 'PROBLEM' in line]
        if problem:
            self.assertEqual(len(found), 1, output)
            self.assertIn(problem, found[0])
        return output

    def test_good_series(self):
        output = self.validate()
        self.assertIn('2 patches, 2 files of ours', output)
        self.assertIn('2 lines added to block/a.c', output)
        self.assertIn('base 10.0: applies to QEMU 10.0.9', output)
        self.assertIn('base 10.2: not at hand', output)
        self.assertIn('git am of the exported series gives the same tree',
                      output)
        self.assertIn('the series is in order', output)

    def test_missing_series(self):
        (self.patches / 'series').unlink()
        self.assertIn('patches/series is missing',
                      self.script('validate', status=1))

    def test_empty_series(self):
        self.write(self.patches / 'series', '# nothing yet\n')
        self.validate('patches/series is empty')

    def test_missing_patch(self):
        self.two.unlink()
        (self.repo / 'tests/unit/test-ours.c').unlink()
        self.validate('there is no patches/two.patch')

    def test_duplicate_entry(self):
        self.write(self.patches / 'series',
                   'one.patch\ntwo.patch\none.patch\n')
        self.validate('one.patch is there twice')

    def test_orphan(self):
        self.write(self.patches / 'old.patch', 'whatever\n')
        self.validate('patches/old.patch is not in patches/series')

    def test_patch_that_does_not_parse(self):
        (self.repo / 'tests/unit/test-ours.c').unlink()
        self.replace(self.two, 'Subject: ', 'Topic: ')
        self.validate('patches/two.patch: does not parse')

    def test_foreign_line_before_hunks(self):
        (self.repo / 'tests/unit/test-ours.c').unlink()
        self.replace(self.two, 'Own-file: ', 'Ownfile: ')
        self.validate('only "Own-file: PATH" may stand')

    def test_subject_without_subsystem(self):
        self.replace(self.two, 'tests: add', 'add')
        self.validate('is not "subsystem: summary"')

    def test_subject_with_prefix(self):
        self.replace(self.two, 'tests: add', '[PATCH] tests: add')
        self.validate('is not "subsystem: summary"')

    def test_long_subject(self):
        self.replace(self.two, 'second hook\n\n', 'x' * 80 + '\n\n')
        self.validate('columns, more than 76')

    def test_missing_body(self):
        self.replace(self.two, 'Why it is so.\n\n', '')
        self.validate('the message has no body')

    def test_long_line(self):
        self.replace(self.two, 'Why it', 'Why ' * 20 + 'it')
        self.validate('has more than 76 columns')

    def test_missing_sign_off(self):
        self.replace(self.two, 'Signed-off-by', 'Reviewed-by')
        self.validate(f'there is no "Signed-off-by: {support.AUTHOR}"')

    def test_numbered_name(self):
        self.two.rename(self.patches / '0002-two.patch')
        self.write(self.patches / 'series', 'one.patch\n0002-two.patch\n')
        self.validate('names carry no number')

    def test_own_file_listed_twice(self):
        self.replace(self.two, 'Own-file: ', 'Own-file: block/ours.c\n'
                     'Own-file: ')
        self.validate('block/ours.c is listed by patches/one.patch already')

    def test_own_line_twice(self):
        self.replace(self.two, 'Own-file: ', 'Own-file: tests/unit/'
                     'test-ours.c\nOwn-file: ')
        self.validate('are not sorted and each there once')

    def test_pattern(self):
        self.replace(self.two, 'test-ours.c', 'test-*.c')
        self.write(self.repo / 'tests/unit/test-more.c', 'more\n')
        self.assertIn('2 patches, 3 files of ours', self.validate())

    def test_pattern_and_name_of_one_file(self):
        self.replace(self.one, 'block/ours.c\n',
                     'block/ours.c\nOwn-file: tests/unit/test-other.c\n')
        self.replace(self.two, 'test-ours.c', 'test-*.c')
        self.write(self.repo / 'tests/unit/test-other.c', 'other\n')
        self.assertIn('2 patches, 3 files of ours', self.validate())

    def test_two_patterns_of_one_file(self):
        self.replace(self.one, 'block/ours.c\n',
                     'block/ours.c\nOwn-file: tests/unit/*-ours.c\n')
        self.replace(self.two, 'test-ours.c', 'test-*.c')
        self.validate('tests/unit/test-ours.c is listed by patches/one.patch '
                      'already')

    def test_pattern_of_no_file(self):
        self.replace(self.one, 'block/ours.c\n',
                     'block/ours.c\nOwn-file: tests/unit/test-*.c\n')
        self.validate('tests/unit/test-*.c matches no file of its own')

    def test_pattern_does_not_mean_leftovers(self):
        self.replace(self.two, 'test-ours.c', 'test-*')
        self.write(self.repo / 'tests/unit/test-ours.c.orig', 'old\n')
        self.validate('tests/unit/test-ours.c.orig is listed by no patch')

    def test_own_file_missing(self):
        (self.repo / 'tests/unit/test-ours.c').unlink()
        self.validate('tests/unit/test-ours.c is listed, and is not')

    def test_own_file_unlisted(self):
        self.write(self.repo / 'docs/interop/new.rst', 'text\n')
        self.validate('docs/interop/new.rst is listed by no patch')

    def test_new_file_by_a_hunk(self):
        with self.two.open('a') as stream:
            stream.write('diff --git a/block/n.c b/block/n.c\n'
                         'new file mode 100644\n--- /dev/null\n'
                         '+++ b/block/n.c\n@@ -0,0 +1 @@\n+new\n')
        self.validate('block/n.c is new')

    def test_patch_that_does_not_apply(self):
        self.replace(self.two, ' line 19\n', ' line nineteen\n')
        self.validate('patches/two.patch does not apply')

    def test_adaptation_of_nothing(self):
        self.write(self.patches / 'adapt/10.2/three.patch',
                   'Adapts three.patch, for the call is another.\n')
        self.validate('the series has no three.patch to adapt')

    def test_adaptation_without_reason(self):
        self.write(self.patches / 'adapt/10.2/two.patch',
                   support.add_after('block/b.c', 30, 'x'))
        self.validate('must begin with a text')

    def test_adaptation_to_unknown_base(self):
        self.write(self.patches / 'adapt/9.9/two.hunks.patch',
                   'Adapts two.patch, for the call is another.\n')
        self.validate('base.conf has no base 9.9')

    def test_other_base_at_hand(self):
        self.write(self.source / 'VERSION', '10.2.0\n')
        self.replace(self.source / 'block/a.c', 'line 8\n', 'changed\n')
        self.write(self.repo / 'patches/adapt/10.2/one.hunks.patch',
                   'Adapts one.patch to 10.2, where a line is another.\n\n'
                   + support.add_after('block/a.c', 10, 'first hook')
                   .replace(' line 8\n', ' changed\n'))
        self.script('import', '--base', '10.2', self.source,
                    self.repo / 'build-10.2/qemu-src')
        self.assertIn('base 10.2: applies to QEMU 10.2.0', self.validate())
        (self.repo / 'patches/adapt/10.2/one.hunks.patch').unlink()
        self.validate('base 10.2: patches/one.patch does not apply')

    def test_checkpatch(self):
        self.replace(self.two, '+third hook', '+BAD hook')
        self.validate('checkpatch, 0002-tests-add-the-second-hook.patch: '
                      'ERROR: bad word')

    def test_checkpatch_sees_our_own_files(self):
        self.write(self.repo / 'block/ours.c', 'BAD\n')
        self.validate('checkpatch, 0001-block-add-the-first-hook.patch: '
                      'ERROR: bad word')

    def test_checkpatch_that_fails(self):
        self.write(self.tree / 'scripts/checkpatch.pl', 'die "broken";')
        self.assertIn('checkpatch.pl failed',
                      self.script('validate', status=1))


class Export(support.Workshop):
    def setUp(self):
        super().setUp()
        self.import_tree()
        self.mails = self.place / 'mails'

    def test_git_am_gives_the_same_tree(self):
        output = self.script('export', self.mails)
        names = [path.name for path in sorted(self.mails.iterdir())]
        self.assertEqual(names, ['0000-cover-letter.patch',
                                 '0001-block-add-the-first-hook.patch',
                                 '0002-tests-add-the-second-hook.patch'])
        self.assertEqual(output.splitlines(),
                         [str(self.mails / name) for name in names])
        expected = self.git('rev-parse', 'HEAD^{tree}')
        self.git('checkout', '-q', 'base')
        self.git('am', '-q', *sorted(self.mails.glob('000[12]*')))
        self.assertEqual(self.git('rev-parse', 'HEAD^{tree}'), expected)

    def test_cover_letter(self):
        self.write(self.patches / 'cover-letter',
                   'qcow2: all about it\n\nFirst.\n\nSecond.\n')
        self.script('export', '-v', '3', self.mails)
        letter = (self.mails / 'v3-0000-cover-letter.patch').read_text()
        self.assertIn('Subject: [PATCH v3 0/2] qcow2: all about it\n', letter)
        self.assertIn('\n\nFirst.\n\nSecond.\n\n', letter)
        self.assertIn(f'From: {support.AUTHOR}\n', letter)
        self.assertIn(' block/a.c ', letter)
        self.assertNotIn('***', letter)

    def test_same_mails_every_time(self):
        self.script('export', self.mails)
        self.script('export', self.place / 'again')
        for mail in self.mails.iterdir():
            self.assertEqual(mail.read_text(),
                             (self.place / 'again' / mail.name).read_text())

    def test_directory_in_use(self):
        self.write(self.mails / 'letter', 'precious\n')
        self.assertIn('is not empty',
                      self.script('export', self.mails, status=1))


if __name__ == '__main__':
    support.main()
