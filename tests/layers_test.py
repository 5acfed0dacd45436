"""Checks every #include of the tree against the levels of the design: a folder includes itself and
strictly lower levels, siblings never meet, CUDA stays in .cu files and *_cuda.h, and the
environment is read in cli/ alone. Run from anywhere: python3 tests/layers_test.py"""

import pathlib
import re
import subprocess
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent

LEVELS = {
    "proto": 0,
    "core": 1,
    "core/ops": 2,
    "parallel": 3,
    "memory": 4,
    "moe": 5,
    "model": 6,
    "training": 7,
    "serving/grammar": 7,
    "serving": 8,
    "serving/http": 9,
    "cluster": 7,
    "cli": 10,
}
# These trees never meet but in cli, whatever the levels inside one of them.
APART = {"training", "serving", "cluster"}
# Above everything: they may include any folder, and nothing includes them.
FREE = {"tests", "bench"}
# Libraries whose own documentation includes them in quotes.
LIBRARIES = ("google/protobuf/", "hwy/")
SOURCE = {".cc", ".h", ".cu", ".cuh", ".proto"}

INCLUDE = re.compile(r'^\s*(?:#\s*include|import(?:\s+(?:public|weak))?)\s*(["<])([^">]+)[">]', re.M)
CUDA = re.compile(r"^(cuda|cublas|cudnn|nccl|cub/|thrust/|cutlass/)")
# cli/environment.h hands values down; nobody else asks the system.
GETENV = re.compile(r"\b(?:secure_)?getenv\s*\(|\benviron\b\s*[;\[]")


def folder_of(path):
    """The row of LEVELS (or member of FREE) that a path lies in: the longest that fits."""
    fitting = [f for f in (*LEVELS, *FREE) if path.startswith(f + "/")]
    return max(fitting, key=len, default=None)


def siblings(one, other):
    """Whether two folders lie side by side: on one level, or in two trees that never meet."""
    trees = {one.split("/")[0], other.split("/")[0]}
    return LEVELS[one] == LEVELS[other] or (len(trees) == 2 and trees <= APART)


def check(path, text):
    """What is wrong with a file, one line each."""
    found = []
    own = folder_of(path)
    for match in INCLUDE.finditer(text):
        bracket, target = match.groups()
        where = f"{path}:{text.count(chr(10), 0, match.start(2)) + 1}: includes {target}"
        if bracket == "<":
            if CUDA.match(target) and not path.endswith((".cu", ".cuh", "_cuda.h")):
                found.append(f"{where}: CUDA headers belong in .cu files and *_cuda.h")
            continue
        other = folder_of(target)
        if other is None:
            if not target.startswith(LIBRARIES):
                found.append(f"{where}: not a path from the repository root into a known folder")
        elif own in FREE:
            continue
        elif other in FREE:
            found.append(f"{where}: {own} must not include {other}")
        elif other != own and (siblings(own, other) or LEVELS[other] >= LEVELS[own]):
            kind = "a sibling" if siblings(own, other) else "a higher level"
            found.append(f"{where}: {other} is {kind} of {own}")
    if own not in FREE and own != "cli" and path.endswith((".cc", ".h", ".cu")):
        for match in GETENV.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"{path}:{line}: the environment is read in cli/ alone")
    return found


def sources():
    """Tracked and new files; where there is no git (a tarball), what lies in the known folders."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        listed = [p.relative_to(ROOT).as_posix()
                  for f in (*LEVELS, *FREE) for p in (ROOT / f).rglob("*")]
    return sorted({p for p in listed
                   if pathlib.PurePosixPath(p).suffix in SOURCE and folder_of(p)
                   and (ROOT / p).is_file()})


class Rules(unittest.TestCase):
    def test_downward_and_own_includes_are_fine(self):
        self.assertEqual(check("model/a.cc", '#include "core/a.h"\n#include "model/b.h"\n'
                               '#include "core/ops/c.h"\n#include "proto/config.pb.h"\n'), [])
        self.assertEqual(check("tests/a.cc", '#include "cli/a.h"\n'), [])
        self.assertEqual(check("serving/http/a.cc", '#include "serving/b.h"\n'), [])
        self.assertEqual(check("core/ops/rms_norm.cu", "#include <cuda_runtime.h>\n"), [])
        self.assertEqual(check("cli/a.cc", 'getenv("HOME");'), [])
        self.assertEqual(check("proto/a.proto", 'import public "proto/b.proto";\n'
                               'import "google/protobuf/descriptor.proto";\n'), [])

    def test_violations_are_named(self):
        cases = [
            ("core/a.cc", '\n#include "core/ops/b.h"', "core/a.cc:2: includes core/ops/b.h: core/ops is a higher"),
            ("training/a.h", '#include "serving/b.h"', "a sibling"),
            ("cluster/a.h", '#include "training/b.h"', "a sibling"),
            ("serving/http/a.h", '#include "training/b.h"', "a sibling"),
            ("serving/a.h", '#include "serving/http/b.h"', "a higher level"),
            ("serving/grammar/a.h", '#include "serving/b.h"', "a higher level"),
            ("model/a.h", '  #  include "training/b.h"', "a higher level"),
            ("model/a.h", '#include "tests/b.h"', "must not include tests"),
            ("model/a.h", '#include "b.h"', "from the repository root"),
            ("model/a.h", '#include "../core/b.h"', "from the repository root"),
            ("proto/a.proto", 'import "core/b.proto";', "a higher level"),
            ("core/ops/a.cc", "#include <cuda_runtime.h>", "CUDA headers"),
            ("core/a.cc", 'std::getenv("X")', "environment"),
        ]
        for path, text, message in cases:
            with self.subTest(path=path, text=text):
                found = check(path, text)
                self.assertEqual(len(found), 1, found)
                self.assertIn(message, found[0])


class Tree(unittest.TestCase):
    def test_every_include_goes_down(self):
        files = sources()
        self.assertGreater(len(files), 20, "the sources were not found")
        found = [line for path in files
                 for line in check(path, (ROOT / path).read_text(encoding="utf-8"))]
        self.assertEqual(found, [], "\n" + "\n".join(found))


if __name__ == "__main__":
    unittest.main()
