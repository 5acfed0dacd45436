#!/usr/bin/env bash
# The highest rate of a trace that a server bears within its SLO, with chunked prefill and without,
# in turn, again and again. Needs build/release/cadre and bench_serve_load.
#   bench/goodput.sh DIR TRACE [ROUNDS]
# DIR keeps a random model (820M parameters: a step is long beside what a shared machine takes away now
# and then), made where it is not there yet. The SLO is three times the medians of the unloaded server,
# measured once, with chunks; both servers are held to it. Lengths are half of the trace's, and prompts
# are cut at 1.2 times the median of the requests that are sent: the longest are over three times it,
# and no server reads those within three times the median's time. The load runs on the machine's last
# core and the server on the others, so that neither takes the other's time. Without chunks the search
# starts at the rate that is to be beaten, the one with chunks over 1.5, and ends at a sixth of that; a
# rate that is not borne costs only the seconds until that is certain. LOAD_FLAGS takes the place of the
# lengths and of the search's bounds; CHUNKED_FLAGS and WHOLE_FLAGS are the servers' (WHOLE_FLAGS' default
# lets a step read several prompts).
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/common.sh
source bench/random_model.sh
export OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=300
dir=${1:?a folder} trace=${2:?a trace} rounds=${3:-3}
cadre=build/release/cadre load=build/release/bench_serve_load
cores=$(nproc) on_server="" on_load=""
if ((cores > 1)); then on_server="taskset -c 0-$((cores - 2))" on_load="taskset -c $((cores - 1))"; fi
# Of whom may, at raised priority: another process's few milliseconds would be a slow gap.
if nice -n -10 true 2>/dev/null; then on_server="nice -n -10 $on_server" on_load="nice -n -10 $on_load"; fi
log_dir=$dir/logs
mkdir -p "$log_dir"

# serve NAME FLAGS...: sets url and server.
serve() {
  local log=$log_dir/$1.log
  shift
  $on_server "$cadre" serve --model "$dir/model" --port 0 --set max_queue_size=4096 "$@" >"$log" 2>&1 &
  server=$!
  url=""
  until [[ -n $url ]] && curl -fsS -o /dev/null "$url/ready" 2>/dev/null; do
    kill -0 "$server" 2>/dev/null || die "the server ended: $(tail -n 1 "$log")"
    sleep 0.1
    url=$(sed -nE 's|.* at (http://[0-9.]+:[0-9]+),.*|\1|p' "$log")
  done
  # The first requests are slower.
  $on_load "$load" --url "$url" --rate 50 --requests 8 --prompt-tokens 64 --output-tokens 8 >/dev/null
}

read -ra lengths <<<"${LOAD_FLAGS:---length-scale 0.5 --max-prompt-tokens 240 --requests 40 --search-steps 1}"
flags=(--trace "$trace" --vocabulary 2048 --token-ids --unloaded-requests 15 --search --json "${lengths[@]}")
read -ra chunked <<<"${CHUNKED_FLAGS:-}"
read -ra whole <<<"${WHOLE_FLAGS:---set max_num_batched_tokens=2048}"
field() { python3 -c 'import json, sys; d = json.load(sys.stdin)
for name in sys.argv[1].split("."): d = d[name]
print(d)' "$1"; }

ratio() { python3 -c 'import sys; print(max(float(sys.argv[1]) / float(sys.argv[2]), 0.01))' "$@"; }

server=""
trap '[[ -z $server ]] || stop_process "$server" 5' EXIT
[[ -e $dir/model/config.json ]] || make_model "$dir" 2048 5632 18 16
slo=() bounds=(--search-start 0.25)
for ((round = 1; round <= rounds; round++)); do
  for kind in chunked whole; do
    if [[ $kind == chunked ]]; then
      serve "$kind$round" "${chunked[@]}"
    else
      serve "$kind$round" --set enable_chunked_prefill=false "${whole[@]}"
    fi
    $on_load "$load" --url "$url" "${flags[@]}" "${slo[@]}" "${bounds[@]}" --seed "$round" >"$log_dir/$kind$round.json"
    rate=$(field highest_rate <"$log_dir/$kind$round.json")
    if ((${#slo[@]} == 0)); then
      ttft=$(field slo.ttft_ms <"$log_dir/$kind$round.json") itl=$(field slo.itl_ms <"$log_dir/$kind$round.json")
      slo=(--slo-ttft "$ttft" --slo-itl "$itl")
      say "SLO: first token within $ttft ms, 99 % of the gaps within $itl ms"
    fi
    say "round $round $kind: $rate requests a second"
    if [[ $kind == chunked ]]; then
      bounds=(--search-start "$(ratio "$rate" 1.5)" --search-lowest "$(ratio "$rate" 9)")
    else
      bounds=(--search-start 0.25)
    fi
    stop_process "$server" 5
    server=""
  done
done
