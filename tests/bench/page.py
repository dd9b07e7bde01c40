# The page on performance: its tables stand between two comments that name
# them, and are made from the recorded results.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import json
import re
from typing import Any

from common import Failure
import report

GOALS = 'goals'


def generated(results: dict[str, Any], name: str) -> str:
    """What has to stand at the place called @name."""
    if name == GOALS:
        return report.goals_table(results)
    if name not in report.TABLES:
        raise Failure(f'there is no table {name}')
    table = report.make_table(results, name)
    if table is None:
        return 'Not recorded yet.'
    return f'{table}\n\n{report.about(results, report.TABLES[name][0])}'


def fill(text: str, results: dict[str, Any]) -> str:
    """The page @text, with the tables of @results."""
    return re.sub(
        r'^(\.\. begin (\S+)\n\n).*?(^\.\. end \2$)',
        lambda found: (f'{found[1]}{generated(results, found[2])}\n\n'
                       f'{found[3]}'),
        text, flags=re.MULTILINE | re.DOTALL)


def places(text: str) -> list[str]:
    """The names of the tables that @text has."""
    return re.findall(r'^\.\. begin (\S+)$', text, re.MULTILINE)


def dump(results: dict[str, Any]) -> str:
    """@results as JSON, a row a line, so that changes can be read."""
    sections = []
    for section in report.SECTIONS:
        if section in results:
            rows = ',\n'.join(f'   {json.dumps(row)}'
                              for row in results[section]['rows'])
            sections.append(
                f' {json.dumps(section)}: {{\n'
                f'  "about": {json.dumps(results[section]["about"])},\n'
                f'  "rows": [\n{rows}\n  ]\n }}')
    return '{\n' + ',\n'.join(sections) + '\n}\n'
