#!/usr/bin/env bash
# What overlapping hides of communication. Needs build/release/bench_overlap and cadre, and root:
#   bench/overlap.sh speed          two ranks in two network namespaces, on a link as fast as computing
#   bench/overlap.sh losses DIR     1,000 steps of either wiring on the Bible (bible-kjv), in DIR
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=300

speed() {
  local what rate
  for what in tp dp; do
    rate=$(build/release/bench_overlap rate "$what")
    echo "$what: a link of $rate"
    bench/shaped_link.sh up "$rate"
    trap 'bench/shaped_link.sh down' EXIT
    build/release/bench_overlap "$what" --netns cadre-a,cadre-b
    bench/shaped_link.sh down
    trap - EXIT
  done
}

losses() {
  local dir=$1 cadre=build/release/cadre wiring
  mkdir -p "$dir"
  bible -f gen1:1-rev22:21 >"$dir/bible.txt"
  "$cadre" tokenizer train --data "$dir/bible.txt" --vocab-size 2048 --output "$dir/tokenizer" >/dev/null
  "$cadre" data build --tokenizer "$dir/tokenizer" --input "$dir/bible.txt" --lines-per-document 40 \
    --append-eos --output "$dir/tokens" >/dev/null
  cat >"$dir/job.yaml" <<JOB
model: {model_type: llama, vocab_size: 2048, hidden_size: 128, intermediate_size: 352,
        num_hidden_layers: 6, num_attention_heads: 4, num_key_value_heads: 2,
        max_position_embeddings: 256, tie_word_embeddings: true}
data: {seq_len: 128, validation_fraction: 0.02, sources: [{path: $dir/tokens}]}
optimizer: {lr: 2e-3}
lr_schedule: {warmup_steps: 50}
global_batch_size: 16
micro_batch_size: 16
train_steps: 1000
checkpoint: {interval: 0}
eval: {interval: 1000, batches: 16}
log: {interval: 200, tensorboard: false}
JOB
  for wiring in standard ladder; do
    rm -rf "$dir/$wiring"
    "$cadre" launch --nproc-per-node 2 train -c "$dir/job.yaml" --set "model.residual=$wiring" \
      --set parallel.tensor_parallel_size=2 --output "$dir/$wiring" >"$dir/$wiring.log" 2>&1 ||
      { tail -n 5 "$dir/$wiring.log" >&2 && exit 1; }
    tail -n 50 "$dir/$wiring/metrics.jsonl" | awk -v wiring="$wiring" '
      { match($0, /"loss":[0-9.e+-]+/); sum += substr($0, RSTART + 7, RLENGTH - 7); n++ }
      match($0, /"eval_loss":[0-9.e+-]+/) { eval = substr($0, RSTART + 12, RLENGTH - 12) }
      END { printf "%-9s mean loss of the last %d steps %.4f, validation %s\n", wiring, n, sum / n, eval }'
  done
}

case ${1:-} in
  speed) speed ;;
  losses) losses "${2:?a folder}" ;;
  *)
    echo "usage: $0 speed | losses DIR" >&2
    exit 2
    ;;
esac
