#!/usr/bin/env bash
# Builds everything and tests it; about 20 minutes on two cores, most of it the first build.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source tools/common.sh

usage() {
  cat <<'END'
Usage: ./test.sh [--all] [--help]

Installs what is missing, builds the presets release, asan, tsan and fuzz, and runs:
  release  every unit test, golden test and end-to-end test
  asan     core, model and training (the parsers of files and text), serving (what strangers send)
           and parallel (what peers send) under ASan and UBSan
  tsan     parallel (ranks as threads) under ThreadSanitizer, with one OpenMP thread
           (tests/tsan.supp says why)
  fuzz     each libFuzzer target for a few seconds from a fixed seed; skipped where clang is
           absent (tools/install_deps.sh --fuzz installs it)

  --all    all tests in release and asan, in tsan the folders with threads and the layouts, longer
           fuzz runs, and the end-to-end tests that take minutes
END
}

all=0
case ${1:-} in
  "") ;;
  --all) all=1 ;;
  --help | -h) usage; exit 0 ;;
  *) printf 'error: unknown option %s; see ./test.sh --help\n' "$1" >&2; exit 2 ;;
esac

log_dir=build/test_logs
mkdir -p "$log_dir"
passed=0 failed=() skipped=()

# stage NAME FUNCTION: runs it, counts its outcome, goes on either way.
stage() {
  local name=$1 began=$SECONDS
  say "==> $name"
  if "$2"; then
    passed=$((passed + 1))
    say "    passed in $((SECONDS - began)) s"
  else
    failed+=("$name")
    say "    FAILED after $((SECONDS - began)) s"
  fi
}

# ctest's own report without its list of the tests that passed, but with its closing lines.
run_ctest() {
  local name=$1 preset=$2 code=0
  shift 2
  ctest --test-dir "build/$preset" --output-on-failure --no-tests=error -j "$(nproc)" "$@" \
    >"$log_dir/$name.log" 2>&1 || code=$?
  if [[ $code -ne 0 ]]; then tail -n 120 "$log_dir/$name.log"; fi
  grep -E '^[0-9]+% tests passed' "$log_dir/$name.log" | sed 's/^/    /' || true
  return "$code"
}

release() {
  local flag=OFF
  if ((all)); then flag=ON; fi
  run_logged configure_release cmake --preset release -DCADRE_TEST_ALL=$flag &&
    run_logged build_release ninja -C build/release -j "$(nproc)" &&
    run_ctest test_release release
}

# Parsers and servers take what strangers wrote, so they are tested in the mode that sees every stray
# byte.
asan() {
  if ((all)); then
    build_preset asan && ASAN_OPTIONS=detect_stack_use_after_return=1 run_ctest test_asan asan -LE e2e
  else
    build_preset asan cadre_core_test cadre_model_test cadre_training_test cadre_serving_test \
      cadre_serving_grammar_test cadre_serving_http_test \
      cadre_parallel_test &&
      run_ctest test_asan asan -R '^(core|model|training|serving|serving_grammar|serving_http|parallel)$'
  fi
}

# In a shell of its own, which keeps its environment from the other stages.
tsan() (
  # The code asks for its threads by number, which only the limit overrides.
  export OMP_THREAD_LIMIT=1 TSAN_OPTIONS="suppressions=$PWD/tests/tsan.supp halt_on_error=1"
  # UCX hooks madvise, which a thread calls as it ends: too late for what ThreadSanitizer keeps of it.
  export UCX_MEM_EVENTS=n
  # gRPC and abseil are not instrumented, but half of them is inlined: what they do looks like races.
  export GTEST_FILTER="-RendezvousTest.*:RendezvousServer.*:RendezvousBootstrap.*:JoinJob.*"
  local tests=(parallel) targets
  if ((all)); then tests=(core parallel memory moe model training serving serving_http cluster layouts); fi
  mapfile -t targets < <(printf 'cadre_%s_test\n' "${tests[@]}")
  build_preset tsan "${targets[@]}" && run_ctest test_tsan tsan -R "^($(IFS='|'; echo "${tests[*]}"))\$"
)

fuzz() {
  local seconds=5 target code=0
  if ((all)); then seconds=120; fi
  run_logged configure_fuzz cmake --preset fuzz || return 1
  local targets
  mapfile -t targets < <(git ls-files '*_fuzz.cc' | xargs -n 1 basename | sed 's/\.cc$//')
  run_logged build_fuzz ninja -C build/fuzz -j "$(nproc)" "${targets[@]}" || return 1
  for target in "${targets[@]}"; do
    run_logged "fuzz_$target" "build/fuzz/$target" -seed=1 -max_total_time=$seconds \
      -max_len=65536 -rss_limit_mb=2048 -timeout=20 -artifact_prefix="$log_dir/$target-" || code=1
    say "    $target: $(grep -oE '^Done [0-9]+ runs' "$log_dir/fuzz_$target.log" || echo failed)"
  done
  return "$code"
}

say "==> installing what is missing"
if ((all)); then tools/install_deps.sh --starters --browser; else tools/install_deps.sh; fi
stage "release: build, unit, golden and end-to-end tests" release
stage "asan: parsers and the server under ASan and UBSan" asan
stage "tsan: threads under ThreadSanitizer" tsan
if command -v clang++ >/dev/null; then
  stage "fuzz: short runs from a fixed seed" fuzz
else
  skipped+=("fuzz (no clang++; tools/install_deps.sh --fuzz installs it)")
fi

for name in "${skipped[@]}"; do say "skipped: $name"; done
for name in "${failed[@]}"; do say "failed:  $name (logs in $log_dir)"; done
say "$passed passed, ${#failed[@]} failed, ${#skipped[@]} skipped, in $SECONDS s"
[[ ${#failed[@]} -eq 0 ]]
