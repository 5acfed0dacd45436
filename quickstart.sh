#!/usr/bin/env bash
# From a fresh Debian 12 machine to a mixture of experts of your own that answers over HTTP.
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
source tools/common.sh

usage() {
  cat <<'END'
Usage: ./quickstart.sh [options]

Installs what is missing, builds Cadre, trains a tokenizer and a small mixture of experts on text,
exports the model, serves it and asks it a question over HTTP.

  --data FILE    text, or .jsonl with a "text" field (default: the Bible of Debian's bible-kjv)
  --steps N      training steps (default: those of the config)
  --config FILE  training config (default: deploy/configs/quickstart_moe.yaml)
  --output DIR   where everything goes (default: runs/quickstart); kept, and reused on a rerun. A
                 run made with other data, config or steps is set aside, not resumed
  --prompt TEXT  what the model is asked to continue
  --port N       port of the server; 0 takes a free one (default: 8000, a free one where it is taken)
  --help         this text
END
}

wrong_usage() {
  printf 'error: %s; see ./quickstart.sh --help\n' "$1" >&2
  exit 2
}

data="" steps="" output=runs/quickstart prompt="Ge1:3 And God said," port=""
config=deploy/configs/quickstart_moe.yaml
while (($#)); do
  case $1 in
    --help | -h) usage; exit 0 ;;
    --data | --steps | --config | --output | --prompt | --port)
      (($# >= 2)) || wrong_usage "$1 needs a value"
      value=$2
      # Paths are the caller's.
      if [[ $1 == --@(data|config|output) && -n $2 && $2 != /* && $caller != "$PWD" ]]; then value=$caller/$2; fi
      printf -v "${1#--}" '%s' "$value"
      shift 2
      ;;
    *) wrong_usage "unknown option $1" ;;
  esac
done
[[ -z $steps || $steps =~ ^[1-9][0-9]{0,8}$ ]] || wrong_usage "--steps $steps: a whole number from 1 is needed"
[[ -z $port || ($port =~ ^[0-9]{1,5}$ && $port -le 65535) ]] || wrong_usage "--port $port: 0 to 65535 is allowed"
[[ -z $data || (-r $data && ! -d $data) ]] || wrong_usage "--data $data: a file that can be read is needed"
[[ -r $config ]] || wrong_usage "--config $config: cannot be read"
[[ -n $output ]] || wrong_usage "--output needs a folder"

cadre=build/release/cadre
server_pid=""
cleanup() {
  if [[ -n $server_pid ]]; then stop_process "$server_pid" 20; fi
  server_pid=""
}
trap cleanup EXIT
trap 'say "stopped; the same command goes on from here"; exit 130' INT
trap 'exit 143' TERM

step_number=0
begin() {
  step_number=$((step_number + 1))
  say "[$step_number/8] $*"
  step_start=$SECONDS
}
done_in() { say "      done in $((SECONDS - step_start)) s${1:+: $1}"; }

# Each product lies beside a .key with what it was made from; an equal key means nothing to do.
fresh() { [[ -e $1 && -e $1.key && $(<"$1.key") == "$2" ]]; }
mark() { printf '%s' "$2" >"$1.key"; }
key_of() { { printf '%s\n' "$@"; } | sha256sum | cut -c1-16; }
checksum() { sha256sum <"$1" | cut -c1-16; }

open_output() {
  if [[ -d $output && -n $(ls -A "$output") && ! -e $output/.quickstart ]]; then
    die "$output: not empty, and not a folder of this script; choose another --output"
  fi
  log_dir=$output/logs
  mkdir -p "$log_dir"
  touch "$output/.quickstart"
}

prepare_corpus() {
  if [[ -n $data ]]; then
    corpus=$data
  else
    corpus=$output/bible.txt
    if [[ ! -s $corpus ]]; then
      bible -f gen1:1-rev22:21 >"$corpus.part" || die "bible -f gen1:1-rev22:21 failed"
      mv "$corpus.part" "$corpus"
    fi
  fi
  [[ -s $corpus ]] || die "$corpus: empty; text to train on is needed"
  corpus_key=$(key_of "$(checksum "$corpus")" "$(basename "$corpus")")
}

train_tokenizer() {
  tokenizer=$output/tokenizer
  tokenizer_key=$(key_of "$corpus_key" 4096)
  if fresh "$tokenizer" "$tokenizer_key"; then return; fi
  rm -rf "$tokenizer" "$tokenizer.key"
  run_logged tokenizer "$cadre" tokenizer train --data "$corpus" --vocab-size 4096 --output "$tokenizer"
  mark "$tokenizer" "$tokenizer_key"
}

build_data() {
  tokens=$output/tokens
  if fresh "$tokens.idx" "$tokenizer_key"; then return; fi
  rm -f "$tokens".bin "$tokens".idx "$tokens.idx.key"
  # Text without blank lines would be one document, with nothing to hold out.
  local documents=()
  if [[ $corpus != *.jsonl* ]] && ! grep -q '^$' "$corpus"; then documents=(--lines-per-document 40); fi
  run_logged data "$cadre" data build --tokenizer "$tokenizer" --input "$corpus" "${documents[@]}" \
    --append-eos --output "$tokens"
  mark "$tokens.idx" "$tokenizer_key"
}

# Outlives a Ctrl-C, so that the trainer can still say that it saved.
show_progress() { (trap '' INT TERM; tee "$1" | sed -u 's/^/      /'); }

# The run's key is written before it starts, so an interrupted run is resumed, not begun again.
train_model() {
  run=$output/run
  run_key=$(key_of "$tokenizer_key" "$(checksum "$config")" "$steps")
  if ! fresh "$run" "$run_key"; then
    if [[ -e $run/checkpoints ]]; then
      local kept
      kept=$(mktemp -d "$run.XXXXXX")
      mv -T "$run" "$kept"
      say "      made with other data, config or steps, so kept as $kept: the run that was there"
    fi
    rm -rf "$run" "$run.key"
    mkdir -p "$run"
    mark "$run" "$run_key"
  fi
  local overrides=(--set "data.sources[0].path=$tokens" --set "tokenizer=$tokenizer")
  if [[ -n $steps ]]; then overrides+=(--set "train_steps=$steps" --set "lr_schedule.warmup_steps=$((steps / 10))"); fi
  "$cadre" train -c "$config" "${overrides[@]}" --output "$run" 2>&1 | show_progress "$log_dir/train.log" ||
    die "cadre train failed; its output is in $log_dir/train.log"
}

export_model() {
  model=$output/model
  checkpoint=$run/checkpoints/$(readlink "$run/checkpoints/latest") || die "$run/checkpoints: no checkpoint"
  model_key=$(key_of "$run_key" "$checkpoint")
  if fresh "$model" "$model_key"; then return; fi
  rm -rf "$model" "$model.key"
  run_logged export "$cadre" checkpoint convert "$checkpoint" --to "$model"
  mark "$model" "$model_key"
}

# launch_server PORT: waits until its own log says where it serves, for another server may answer on
# PORT, and then for /ready; at most a minute. Fails as soon as the server is gone.
launch_server() {
  local log=$log_dir/serve.log deadline=$((SECONDS + 60))
  "$cadre" serve --model "$model" --port "$1" >"$log" 2>&1 &
  server_pid=$!
  url=""
  until [[ -n $url ]] && curl -fsS -o /dev/null --max-time 2 "$url/ready" 2>/dev/null; do
    if ! kill -0 "$server_pid" 2>/dev/null; then
      server_pid=""
      return 1
    fi
    ((SECONDS < deadline)) || { tail -n 25 "$log" >&2; die "$1: no server is ready on that port within 60 s"; }
    sleep 0.1
    url=$(sed -nE 's|.* serving .* at (http://[0-9.]+:[0-9]+),.*|\1|p' "$log")
  done
}

start_server() {
  local log=$log_dir/serve.log
  if launch_server "${port:-8000}"; then return; fi
  if [[ -z $port ]] && grep -q 'cannot listen on' "$log"; then
    say "      port 8000 is taken; serving on a free one"
    if launch_server 0; then return; fi
  fi
  local reason
  reason=$(sed -n 's/^error: //p' "$log" | tail -n 1)
  die "cadre serve: ${reason:-it ended before it was ready}; its output is in $log"
}

ask() {
  local body
  body=$(python3 -c 'import json, sys
print(json.dumps({"model": sys.argv[1], "prompt": sys.argv[2], "max_tokens": 80, "temperature": 0.7, "top_p": 0.95, "seed": 1}))' \
    model "$prompt")
  http_status=$(curl -sS --max-time 120 -o "$output/answer.json" -w '%{http_code}' \
    -H 'Content-Type: application/json' -d "$body" "$url/v1/completions") ||
    die "$url/v1/completions: no answer; the server's output is in $log_dir/serve.log"
  [[ $http_status == 200 ]] || {
    cat "$output/answer.json" >&2
    die "$url/v1/completions: HTTP status $http_status"
  }
}

report() {
  python3 - "$output" "$run/metrics.jsonl" "$prompt" "$http_status" <<'END'
import json, pathlib, sys
output, metrics, prompt = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
lines = [json.loads(line) for line in open(metrics, encoding="utf-8")]
losses = [line["loss"] for line in lines if line.get("loss") is not None]
tail = losses[-min(20, max(1, len(losses) // 4)):]
choice = json.loads((output / "answer.json").read_text(encoding="utf-8"))["choices"][0]
summary = {"steps": len(losses), "loss_start": losses[0], "loss_end": sum(tail) / len(tail),
           "http_status": int(sys.argv[4]), "prompt": prompt, "answer": choice["text"], "finish_reason": choice["finish_reason"]}
(output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
print(f"\nPrompt   {prompt}\nAnswer  {choice['text']}\n")
print(f"Loss     {losses[0]:.3f} at step 1, {summary['loss_end']:.3f} over the last {len(tail)} "
      f"of {len(losses)} steps ({metrics})")
END
}

start=$SECONDS
open_output
begin "installing what is missing"
tools/install_deps.sh
done_in

begin "building (the first time takes ten minutes or so; $log_dir/build_release.log shows where it is)"
build_preset release cadre || die "the build failed"
done_in "$cadre"
built=$SECONDS

begin "preparing the corpus"
prepare_corpus
done_in "$corpus, $(wc -c <"$corpus") bytes"

begin "training a tokenizer of 4,096 entries"
train_tokenizer
done_in "$tokenizer"

begin "turning the corpus into tokens"
build_data
done_in "$tokens.bin"

begin "training a mixture of experts ($config)"
train_model
done_in "$run"

begin "exporting it as a Hugging Face folder"
export_model
done_in "$model"

begin "serving it and asking over HTTP"
start_server
ask
done_in "$url/v1/completions"
report
cleanup

served=${url##*:}
printf -v model_arg '%q' "$model"
printf -v checkpoint_arg '%q' "$checkpoint"
cat <<END
Time     $((SECONDS - built)) s after the build, $((SECONDS - start)) s in all

Next:
  $cadre serve --model $model_arg --port $served
  curl -s http://127.0.0.1:$served/v1/completions -H 'Content-Type: application/json' \\
    -d '{"model": "model", "prompt": "In the beginning", "max_tokens": 60}'
  $cadre generate --model $model_arg --prompt "In the beginning" --max-tokens 60 --temperature 0.7
  $cadre checkpoint inspect $checkpoint_arg
  ./quickstart.sh --data your.txt --output runs/mine --steps 1000
END
