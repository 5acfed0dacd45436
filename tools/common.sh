# For the scripts in the root and .ci; sourced, never run. The caller sets `log_dir` before run_logged.

# Objects are shared between clones of the repository.
export CCACHE_BASEDIR="$PWD" CCACHE_NOHASHDIR=1

say() { printf '%s\n' "$*"; }

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# run_logged NAME COMMAND...: output into $log_dir/NAME.log; where the command fails, prints the
# log's end and returns its exit code.
run_logged() {
  local name=$1 log="$log_dir/$1.log" code=0
  shift
  "$@" >"$log" 2>&1 || code=$?
  [[ $code -eq 0 ]] && return 0
  {
    printf -- '--- the end of %s:\n' "$log"
    tail -n 25 "$log"
    printf -- '---\nerror: %s failed with exit code %d: %s\n' "$name" "$code" "$*"
  } >&2
  return "$code"
}

# build_preset PRESET [TARGET...]: configures and builds under build/PRESET. OpenMP's limits, which
# nproc follows, are for what runs, not for the build.
build_preset() {
  local preset=$1 jobs
  jobs=$(env -u OMP_THREAD_LIMIT -u OMP_NUM_THREADS nproc)
  shift
  run_logged "configure_$preset" cmake --preset "$preset" &&
    run_logged "build_$preset" ninja -C "build/$preset" -j "$jobs" "$@"
}

# stop_process PID SECONDS: SIGTERM, then SIGKILL after that long. Only for children of this shell.
stop_process() {
  local pid=$1 deadline=$((SECONDS + $2))
  kill -TERM "$pid" 2>/dev/null || return 0
  while kill -0 "$pid" 2>/dev/null && ((SECONDS < deadline)); do sleep 0.1; done
  kill -KILL "$pid" 2>/dev/null || true
  wait "$pid" 2>/dev/null || true
}
