#!/usr/bin/env python3
"""Drives a running Cadre server over raw HTTP; Python's standard library only.

    python3 tests/client/raw_http_test.py --base-url http://127.0.0.1:8000 [unittest flags, test names]

The server should be idle otherwise: counters and gauges are compared. Any model will do; requests ask
for `ignore_eos`. Test names: `Streams`, `Http.test_huge_headers` and so on.
"""

import sys
import unittest

import api_cases
import cadre_http
import hostile_cases
import structured_cases
import surface_cases

MODULES = (api_cases, surface_cases, hostile_cases, structured_cases)


def load_tests(loader, _, __):
    return unittest.TestSuite(loader.loadTestsFromModule(m) for m in MODULES)


def publish_cases():
    """Makes every test class a name of this module, so that the command line can choose some."""
    for module in MODULES:
        for name, value in vars(module).items():
            if isinstance(value, type) and issubclass(value, cadre_http.Case):
                if value is not cadre_http.Case:
                    globals()[name] = value


if __name__ == "__main__":
    arguments = cadre_http.parse(__doc__.splitlines()[0])
    publish_cases()
    unittest.main(argv=arguments)
