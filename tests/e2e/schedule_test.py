#!/usr/bin/env python3
"""`cadre schedule` as users run it, and the tables of docs/pipeline.md, which are its output.

    python3 tests/e2e/schedule_test.py [--cadre build/release/cadre] [unittest flags, test names]
"""

import re
import unittest
import xml.etree.ElementTree

import e2e
from e2e import refused


class Show(unittest.TestCase):
    def test_numbers_are_the_textbooks(self):
        shown = e2e.cadre_json("schedule", "show", "--schedule", "1f1b", "--stages", "4",
                               "--microbatches", "8", "--forward", "1", "--backward", "3")
        self.assertEqual(shown["makespan"], (8 + 3) * 4)
        self.assertAlmostEqual(shown["bubble_to_ideal"], 3 / 8)
        self.assertEqual([rank["peak_activations"] for rank in shown["ranks"]], [4, 3, 2, 1])
        self.assertEqual(shown["ranks"][3]["actions"][1],
                         {"action": "forward stage 3 microbatch 0", "start": 3, "end": 4})

    def test_text_and_svg(self):
        path = e2e.temporary_folder() / "schedule.svg"
        shown = e2e.cadre("schedule", "show", "--schedule", "interleaved_1f1b", "--virtual", "3",
                          "--stages", "2", "--microbatches", "4", "--svg", path).stdout
        self.assertRegex(shown, r"(?m)^rank 1 \.*F0a-")
        self.assertIn("bubble", shown)
        self.assertNotIn("\x1b", shown)
        svg = xml.etree.ElementTree.parse(path)
        boxes = svg.findall(".//{http://www.w3.org/2000/svg}g")
        self.assertEqual(len(boxes), 2 * 3 * 2 * 4)

    def test_a_split_costs_what_its_dearest_stage_costs(self):
        def makespan(split):
            return e2e.cadre_json("schedule", "show", "--stages", "2", "--microbatches", "100",
                                  "--split", split)["makespan"]
        self.assertGreater(makespan("6,2"), 1.4 * makespan("4,4"))

    def test_bad_input(self):
        show = ("schedule", "show", "--stages", "4")
        self.assertEqual(refused(*show, "--schedule", "interleaved_1f1b", "--microbatches", "6", code=2),
                         "6 microbatches over 4 pipeline ranks: interleaved_1f1b takes multiples of the "
                         "pipeline's ranks; the nearest is 8")
        self.assertIn("allowed: gpipe, 1f1b", refused(*show, "--schedule", "zb", code=2))
        self.assertIn("at most", refused(*show, "--microbatches", "2000000000", code=2))
        self.assertIn("4096", refused("schedule", "show", "--stages", "2000000000", code=2))
        self.assertIn("durations", refused(*show, "--backward", "-1", code=2))
        self.assertIn("--backward excludes", refused(*show, "--backward", 2, "--backward-weight", 1, code=2))
        self.assertIn("durations", refused(*show, "--split", "1,2", code=2))
        self.assertIn("--split", refused(*show, "--split", "0,0,0,0", code=2))


class Compare(unittest.TestCase):
    def test_a_split_says_how_many_stages_a_rank_has(self):
        def rows(split):
            done = e2e.cadre("schedule", "compare", "--stages", "2", "--microbatches", "8", "--split", split)
            return dict(re.findall(r"(?m)^\| (\w+) \| (.*)$", done.stdout))
        for split, many in (("3,1", False), ("1,1,1,1", True)):
            with self.subTest(split=split):
                found = rows(split)
                self.assertEqual(set(found) - {"schedule"}, {"gpipe", "1f1b", "interleaved_1f1b", "zb_h1", "zb_v"})
                self.assertEqual("on each rank" in found["zb_v"], not many, found)
                self.assertEqual("on each rank" in found["1f1b"], many, found)
        self.assertIn("costs of 3 stages", refused("schedule", "compare", "--stages", "2", "--split", "1,1,1",
                                                   code=2))


class Documentation(unittest.TestCase):
    def test_its_tables_are_what_the_command_prints(self):
        text = (e2e.ROOT / "docs/pipeline.md").read_text(encoding="utf-8")
        tables = re.findall(r"(?m)^m = (\d+)\n\n((?:\|.*\n)+)", text)
        self.assertEqual([count for count, _ in tables], ["8", "32"])
        for count, table in tables:
            printed = e2e.cadre("schedule", "compare", "--stages", "4", "--microbatches", count).stdout
            self.assertEqual(printed, table)


if __name__ == "__main__":
    unittest.main(argv=e2e.parse())
