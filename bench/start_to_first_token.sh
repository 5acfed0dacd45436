#!/usr/bin/env bash
# From the start of `cadre serve` to the first token of a request that has been waiting, against the
# time that reading the model's file with O_DIRECT takes, in turn; before each of them all that the
# system has cached of files is dropped (needs root). Needs build/release/cadre.
#   bench/start_to_first_token.sh DIR [ROUNDS]
# DIR keeps a random model of 1 GB (bf16), made where it is not there yet; it lies on the disk that is
# measured. SERVE_FLAGS adds flags.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/common.sh
source bench/random_model.sh
dir=${1:?a folder} rounds=${2:-5}
cadre=build/release/cadre
log_dir=$dir/logs
mkdir -p "$log_dir"
read -ra more <<<"${SERVE_FLAGS:-}"

# Seconds until the first piece of a streamed answer is there, from a client that asks again and again
# until somebody listens.
first_token='
import socket, sys, time, subprocess
server = subprocess.Popen(sys.argv[2:], stdout=open(sys.argv[1], "w"), stderr=subprocess.STDOUT)
start = time.monotonic()
port = int(sys.argv[sys.argv.index("--port") + 1])
body = b"""{"prompt": [1, 2, 3, 4], "max_tokens": 4, "stream": true}"""
ask = b"POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
answer = b""
while b"data:" not in answer:
    if server.poll() is not None or time.monotonic() - start > 120:
        sys.exit("no token: " + answer.decode(errors="replace"))
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
            connection.sendall(ask + body)
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
                if b"data:" in answer or b"HTTP/1.1 503" in answer: break
    except (ConnectionRefusedError, ConnectionResetError):
        time.sleep(0.001)
print(time.monotonic() - start)
server.terminate()
server.wait()'

forget() {
  sync
  echo 3 >/proc/sys/vm/drop_caches || die "the page cache can only be dropped by root"
  # What measures is not measured.
  python3 -c 'import socket, subprocess, sys, time' && dd --version >/dev/null
}

free_port() { python3 -c 'import socket
s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

[[ -e $dir/model/config.json ]] || make_model "$dir" 1536 4096 20 24
ratios=()
for ((round = 1; round <= rounds; round++)); do
  port=$(free_port)
  forget
  read_s=$(dd if="$dir/model/model.safetensors" of=/dev/null iflag=direct bs=16M 2>&1 | sed -nE 's/.* copied, ([0-9.]+) s.*/\1/p')
  forget
  start_s=$(python3 -c "$first_token" "$log_dir/serve.log" "$cadre" serve --model "$dir/model" --port "$port" "${more[@]}")
  ratio=$(python3 -c "print(f'{$start_s / $read_s:.2f}')")
  ratios+=("$ratio")
  say "round $round: reading $read_s s, start to first token $(printf %.3f "$start_s") s, ratio $ratio"
done
say "ratio: $(printf '%s\n' "${ratios[@]}" | sort -n | sed -n "$(((rounds + 1) / 2))p") (median of $rounds)"
